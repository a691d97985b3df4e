"""A teacher's solutions: asked for, judged by the grader, kept as a dataset to train on."""
