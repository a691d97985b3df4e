"""The other trainers, each a script for a fresh process: `python benchmarks/peers/NAME.py JOB.json RESULT.json`."""
