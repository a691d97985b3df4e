"""What `mlxmath doctor --cluster` runs on every host, started by mlx.launch: do the ranks find each other, how fast?

Rank 0 prints one line of JSON.
"""

import json
import time
from typing import Any

from mlxmath.errors import MlxmathError
from mlxmath.runtime.console import fail
from mlxmath.runtime.ranks import Ranks, join

_BYTES = 8 << 20
_LATENCY_ROUNDS = 20
_BANDWIDTH_ROUNDS = 3


def measure(ranks: Ranks) -> dict[str, Any]:
    """Seconds of an all-reduce of four bytes, and bytes a second of one of 8 MB (of the array, not of the wire)."""
    import mlx.core as mx

    def seconds(array: Any, rounds: int) -> float:
        ranks.vote("warm")
        ranks.sum(array)
        best = float("inf")
        for _ in range(rounds):
            ranks.vote("measure")
            start = time.perf_counter()
            ranks.sum(array)
            best = min(best, time.perf_counter() - start)
        return best

    return {
        "hosts": ranks.hosts,
        "latency_s": seconds(mx.ones(1), _LATENCY_ROUNDS),
        "bytes_per_s": _BYTES / seconds(mx.ones(_BYTES // 4), _BANDWIDTH_ROUNDS),
    }


def main() -> int:
    """Join, measure, print."""
    try:
        with join() as ranks:
            found = measure(ranks)
            if ranks.first:
                print(json.dumps(found), flush=True)
    except MlxmathError as error:
        fail(str(error))
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
