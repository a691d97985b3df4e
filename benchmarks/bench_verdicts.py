"""How often are verdicts on a comparison wrong, and how often are differences found? Simulated, in seconds.

    python benchmarks/bench_verdicts.py [--comparisons 2000]

Comparisons of two models on the problems of a benchmark, each of which is fixed, broken or neither with given
probabilities: `--judge` tests once (exact McNemar, on 200 problems, or on as many as were promised to be enough),
`evaluate --until-decided` after each round, with GSM8K's 1,319 problems at most. Seeds are fixed.
"""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import common
from mlxmath.config.methods import EvaluationConfig
from mlxmath.evaluation.benchmarks import Item, LoadedBenchmark
from mlxmath.evaluation.rounds import rounds_of
from mlxmath.evaluation.sequential import decide
from mlxmath.evaluation.stats import mcnemar_exact, problems_to_show

NUM_PROBLEMS, NUM_JUDGED = 1319, 200
EQUAL = ((0.02, 0.02), (0.05, 0.05), (0.1, 0.1), (0.25, 0.25))
"""Probabilities of a problem to be fixed, and to be broken."""
BETTER = ((0.15, 0.05), (0.2, 0.1), (0.3, 0.2), (0.07, 0.02), (0.3, 0.0))
SMALLEST = 0.05


def main() -> None:
    """Simulate and write the results."""
    parser = common.command_line(__doc__, "verdicts.json")
    parser.add_argument("--comparisons", type=int, default=2000, help="of each kind (default: 2000)")
    options = parser.parse_args()
    num = options.comparisons
    judge = [judged(pair, NUM_JUDGED, num) | {"promised": False} for pair in EQUAL]
    for fixed, broken in BETTER:
        size = math.ceil(problems_to_show(round(1e6 * fixed), round(1e6 * broken), 1_000_000))
        judge.append(judged((fixed, broken), size, num) | {"promised": True, "power": power((fixed, broken), size)})
    rounds = [until_decided(pair, num) for pair in (*EQUAL, (0.075, 0.025), (0.125, 0.075), *BETTER)]
    record = {
        "what": __doc__.splitlines()[0], "comparisons": num, "problems": NUM_PROBLEMS, "smallest": SMALLEST,
        "judge": judge, "until_decided": rounds,
        "judge_error": max(one["shown"] for one in judge if not one["promised"]),
        "judge_power": min(one["shown"] for one in judge if one["promised"]),
        "judge_exact_power": min(one["power"] for one in judge if one["promised"]),
        "until_decided_error": max(one["better"] + one["worse"] for one in rounds if one["difference"] == 0),
        "equal_error": max(one["equal"] for one in rounds if abs(one["difference"]) >= SMALLEST),
        "example": next(one for one in rounds if (one["fixed"], one["broken"]) == (0.2, 0.1)),
        "example_fixed": next(one["problems"] for one in judge if (one["fixed"], one["broken"]) == (0.2, 0.1)),
        "same": next(one for one in rounds if (one["fixed"], one["broken"]) == (0.05, 0.05)),
    }  # fmt: skip
    common.save_json(options.out, record)
    columns = ("fixed, broken", "better", "worse", "equal", "problems")
    table = [
        [f"{one['fixed']:g}, {one['broken']:g}", *(f"{100 * one[name]:.1f} %" for name in columns[1:4]),
         f"{one['problems']:.0f}"] for one in rounds
    ]  # fmt: skip
    common.show_table("until decided", columns, table)
    errors = {name: value for name, value in record.items() if name.endswith(("_error", "_power"))}
    print(", ".join(f"{name} {100 * value:.1f} %" for name, value in errors.items()))


def judged(chances: tuple[float, float], size: int, num: int) -> dict[str, Any]:
    """How often one test on `size` problems shows a difference."""
    counts = drawn(chances, [size], num)[:, 0]
    found = {(fixed, broken): shows(fixed, broken, size) for fixed, broken in {tuple(pair) for pair in counts.tolist()}}
    shown = np.mean([found[fixed, broken] for fixed, broken in counts.tolist()])
    return {"fixed": chances[0], "broken": chances[1], "problems": size, "shown": float(shown)}


def power(chances: tuple[float, float], size: int) -> float:
    """The same exactly: over all numbers of problems that are fixed and broken."""
    logs, total = [math.lgamma(n + 1) for n in range(size + 1)], 0.0
    shares = [math.log(max(share, 1e-300)) for share in (*chances, 1 - sum(chances))]
    for unequal in range(6, size + 1):
        num, most, sums = 2**unequal, -1, 0  # the most on the rarer side that still show a difference
        while 40 * (sums := sums + math.comb(unequal, most + 1)) < num:
            most += 1
        for rarer in range(most + 1):
            for fixed in (rarer, unequal - rarer):
                counts = (fixed, unequal - fixed, size - unequal)
                logs_of = logs[size] - sum(logs[n] for n in counts)
                total += math.exp(logs_of + sum(n * share for n, share in zip(counts, shares, strict=True)))
    return total


def shows(fixed: int, broken: int, size: int) -> bool:
    """Whether exact McNemar is below 5 %."""
    before = [False] * fixed + [True] * (size - fixed)
    after = [True] * fixed + [False] * broken + [True] * (size - fixed - broken)
    return mcnemar_exact(before, after).p_value < 0.05


def until_decided(chances: tuple[float, float], num: int) -> dict[str, Any]:
    """What the rounds come to, and after how many problems on the average."""
    ends = round_ends()
    counts = drawn(chances, np.diff(ends, prepend=0).tolist(), num)
    decisions = decide(counts[..., 0], counts[..., 1], np.array(ends), SMALLEST)
    ended = np.where((decisions != 0).any(1), (decisions != 0).argmax(1), len(ends) - 1)
    found = decisions[np.arange(num), ended]
    shares = {name: float((found == value).mean()) for name, value in (("better", 1), ("worse", -1), ("equal", 2))}
    difference = round(chances[0] - chances[1], 9)
    return {
        "fixed": chances[0], "broken": chances[1], "difference": difference, **shares,
        "problems": float(np.array(ends)[ended].mean()),
    }  # fmt: skip


def round_ends() -> list[int]:
    """Problems after each round of `evaluate --until-decided`."""
    items = tuple(Item("b", f"b/{i}", "", "") for i in range(NUM_PROBLEMS))
    settings = EvaluationConfig(until_decided=True, smallest_difference=100 * SMALLEST)
    return [len(asked[0].items) for asked in rounds_of([LoadedBenchmark("b", items, "", 1, "word")], settings)]


def drawn(chances: tuple[float, float], sizes: Sequence[int], num: int) -> Any:
    """(num, rounds, 2) problems fixed and broken after each round."""
    shares = [*chances, 1 - sum(chances)]
    rng = np.random.default_rng([round(1000 * share) for share in chances])
    return np.cumsum(rng.multinomial(sizes, shares, size=(num, len(sizes))), axis=1)[..., :2]


if __name__ == "__main__":
    main()
