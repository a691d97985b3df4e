"""Did the model get better, and are we sure? Asks models, grades, compares, reports."""
