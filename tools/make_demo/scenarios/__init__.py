"""What the word problems are about; each function tells one in a number of steps."""
