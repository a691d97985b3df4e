"""Damaged and hostile inputs: how they are made, who reads them, what must not happen.

`benchmarks/fuzz.py` runs them.
"""
