"""Scripts for fresh processes, `python benchmarks/peers/NAME.py JOB.json RESULT.json`: the other trainers, and single
measurements that must not disturb each other."""
