"""How fast and how reliable is the grader? Ours against math_verify alone, on graded answers and GSM8K's solutions.

math_verify gets what a user of it would write: its default extraction on the response, and the gold answer between
dollar signs where it is bare LaTeX.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.common import GSM8K, command_line, machine, save_json, show_table

SHARED = GSM8K.parents[1]

Pair = tuple[str, str, bool]
"""Response, gold, verdict."""


def load(data: Path, limit: int | None) -> dict[str, list[Pair]]:
    """The pairs of each set."""
    graded = [json.loads(line) for line in (data / "graded_dev.jsonl").read_text(encoding="utf-8").splitlines()]
    gsm8k = [
        json.loads(line)["answer"]
        for split in ("train", "test")
        for line in (data / "gsm8k" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    return {
        "graded answers": [(r["response"], r["gold"], r["correct"]) for r in graded if not r["policy"]][:limit],
        "GSM8K references": [(text, text.rpartition("####")[2].strip(), True) for text in gsm8k][:limit],
    }


def ours(pairs: list[Pair]) -> list[bool]:
    from mlxmath.grading import grade_many

    return [verdict.correct for verdict in grade_many([(response, gold) for response, gold, _ in pairs])]


def math_verify_alone(pairs: list[Pair]) -> list[bool]:
    from math_verify import parse, verify

    from mlxmath.grading.symbolic import wrapped

    return [bool(verify(parse(wrapped(gold)), parse(response))) for response, gold, _ in pairs]


def measure(grader: Callable[[list[Pair]], list[bool]], pairs: list[Pair]) -> dict[str, Any]:
    """Verdicts against the known ones, and the time that they took."""
    grader(pairs[:2])
    start = time.perf_counter()
    verdicts = grader(pairs)
    seconds = time.perf_counter() - start
    known = [correct for _, _, correct in pairs]
    return {
        "items": len(pairs),
        "agreement": sum(a == b for a, b in zip(verdicts, known, strict=True)) / len(pairs),
        "false_positives": sum(a and not b for a, b in zip(verdicts, known, strict=True)),
        "false_negatives": sum(b and not a for a, b in zip(verdicts, known, strict=True)),
        "items_per_s": len(pairs) / seconds,
        "ms_per_item": 1000 * seconds / len(pairs),
    }


def main() -> None:
    parser = command_line(__doc__, "grading.json")
    parser.add_argument("--data", type=Path, default=SHARED, help="folder with graded_dev.jsonl and gsm8k/")
    parser.add_argument("--limit", type=int, help="only so many items of each set")
    options = parser.parse_args()
    if not (options.data / "graded_dev.jsonl").exists():
        parser.error(f"there is no graded_dev.jsonl in {options.data}; name its folder with --data")
    graders = {"mlxmath": ours, "math_verify": math_verify_alone}
    sets = {
        name: {grader: measure(function, pairs) for grader, function in graders.items()}
        for name, pairs in load(options.data, options.limit).items()
    }
    rows = [
        [f"{name}: {grader}", str(m["items"]), f"{100 * m['agreement']:.2f} %", str(m["false_positives"]),
         f"{m['items_per_s']:,.0f}", f"{m['ms_per_item']:.3f}"]
        for name, results in sets.items() for grader, m in results.items()
    ]  # fmt: skip
    show_table("Grading", ["set: grader", "items", "agreement", "false positives", "items/s", "ms an item"], rows)
    save_json(options.out, {"machine": machine(["math-verify", "sympy", "latex2sympy2_extended"]), "sets": sets})


if __name__ == "__main__":
    main()
