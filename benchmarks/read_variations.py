"""Draw varied problems of GSM8K's test set for a person to read, and keep what the person found.

    python benchmarks/read_variations.py --seed 5  # 100 problems: question, old and new numbers, solution, answer
    python benchmarks/read_variations.py --seed 5 --record verdicts.json

`verdicts.json` names those that are not right, by index and with a reason; everything else was read and is right. The
record, `results/variations.json`, holds which problems were drawn, what was changed and what was found, no text.
"""

import json
import random
import re
from collections import Counter
from pathlib import Path

from benchmarks.common import REPOSITORY, command_line
from mlxmath.data.datasets import known
from mlxmath.data.gold import gold
from mlxmath.data.problem import Problem
from mlxmath.data.readers import read_file
from mlxmath.data.sources import problems_of
from mlxmath.data.variations.tracing import Untraceable
from mlxmath.data.variations.vary import Varied, vary

TEST = REPOSITORY.parent / "shared" / "data" / "gsm8k" / "test.jsonl"


def main() -> None:
    parser = command_line(__doc__, "variations.json")
    parser.add_argument("--problems", type=Path, default=TEST, help="GSM8K's test set")
    parser.add_argument("--seed", type=int, default=0, help="of the variations, and of the draw")
    parser.add_argument("--count", type=int, default=100, help="problems to read")
    parser.add_argument("--skip", type=int, default=0, help="leave out the first so many of them")
    parser.add_argument("--kind", default="numbers", choices=("numbers", "names", "order"), help="what is varied")
    parser.add_argument("--record", type=Path, help="verdicts, as JSON: {index: reason} of those that are not right")
    args = parser.parse_args()
    problems = list(problems_of(read_file(args.problems), known("gsm8k")))
    reasons: Counter[str] = Counter()
    varied: dict[int, Varied] = {}
    for index, problem in enumerate(problems):
        try:
            varied[index] = vary(problem, args.kind, args.seed)
        except Untraceable as reason:
            reasons[str(reason)] += 1
    drawn = random.Random(args.seed).sample(sorted(varied), args.count)
    if args.record is None:
        print(f"{len(varied)} of {len(problems)} can be varied; {dict(reasons)}")
        for number, index in list(enumerate(drawn))[args.skip :]:
            show(number, index, problems[index], varied[index])
        return
    found = {int(index): reason for index, reason in json.loads(args.record.read_text()).items()}
    record = {
        "what": f"{args.count} problems of GSM8K's test set with other {args.kind}, each read by hand: is the question "
        "sound, and is the answer right?",
        "seed": args.seed,
        "num_problems": len(problems),
        "num_varied": len(varied),
        "coverage": round(len(varied) / len(problems), 4),
        "num_with_solution": sum(each.problem.solution is not None for each in varied.values()),
        "left_out": dict(reasons),
        "num_read": len(drawn),
        "num_right": len(drawn) - len(found),
        "problems": [
            {
                "index": index,
                "numbers": [list(pair) for pair in varied[index].changes.items()],
                "gold": [gold(problems[index]), varied[index].problem.answer],
                "verdict": "wrong" if index in found else "right",
                "reason": found.get(index, ""),
            }
            for index in drawn
        ],
    }
    assert set(found) <= set(drawn), "a verdict on a problem that was not drawn"
    text = json.dumps(record, indent=1, ensure_ascii=False)
    text = re.sub(r"\[\s+([^\[\]{}]*?)\s+\]", lambda m: "[" + re.sub(r"\s*\n\s*", " ", m[1]) + "]", text)
    args.out.write_text(text + "\n")


def show(number: int, index: int, problem: Problem, varied: Varied) -> None:
    question = varied.problem.question.replace("\n", " ")
    changes = ", ".join(f"{old} → {new}" for old, new in varied.changes.items())
    solution = (varied.problem.solution or "(no solution) " + (problem.solution or "")).replace("\n", " | ")
    print(f"#{number} ({index}) {question}\n   {changes}\n   {solution}\n   {gold(problem)} → {varied.problem.answer}")


if __name__ == "__main__":
    main()
