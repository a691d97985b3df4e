"""Many runs of one file: which there are, how far each is taken, how they compare."""
