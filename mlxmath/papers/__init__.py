"""Tables, figures and a statement of how to reproduce, for a paper, out of what runs and evaluations recorded."""
