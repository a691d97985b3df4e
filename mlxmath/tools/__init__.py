"""Answers that calculate: what a model writes as a call, running it within bounds, and what is put behind it."""
