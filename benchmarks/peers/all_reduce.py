"""One rank: the time of all-reduces of several sizes, printed by rank 0 as JSON. Arguments: sizes in bytes."""

import json
import sys
import time

import mlx.core as mx


def main() -> None:
    """The least of several, after two that open the way."""
    group = mx.distributed.init(strict=True, backend="ring")
    found = {}
    for size in map(int, sys.argv[1:]):
        array = mx.ones(max(1, size // 4))
        mx.eval(array)
        times = []
        for _ in range(8 if size > 1e5 else 40):
            mx.eval(mx.distributed.all_sum(mx.ones(1), group=group))
            start = time.perf_counter()
            mx.eval(mx.distributed.all_sum(array, group=group))
            times.append(time.perf_counter() - start)
        found[size] = sorted(times[2:])[len(times[2:]) // 2]
    if group.rank() == 0:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
