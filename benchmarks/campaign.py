"""Is anything lost when commands are killed, starved of disk, signalled, or run twice in one folder?

    python benchmarks/campaign.py [--kills 1000] [--full-disk 200] [--pairs 100] [--only COMMAND] [--short]

Each command runs in a folder of its own, with tiny settings, on the bundled model and on one that is not bundled. A
library counts its file-system operations (`faults.c`); at the n-th of them the process is killed (before it, in it,
after it), gets an error (the disk is full from then on, or read-only, or fails once), a signal, or a second process
beside it. Then the same command goes on, with `--resume` where there is such an option. Accepted: what is left is
whole at any time, going on ends well, nobody sees a traceback, no answer of a teacher that was written is asked for
again, and in the end all files equal those of an undisturbed run byte for byte, but for what `whole.py` names.

Every case is written to the JSON as it ends; the same command again tries only what is not there or failed. The points
are spread over all kinds of operations, by `--seed`. Every twentieth case runs in new processes, the others in
children of one that has imported everything. Linux only; it needs a C compiler.
"""

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY))

from benchmarks.campaign_cases import KINDS, Case, Place, cases
from benchmarks.campaign_commands import Command, commands, make_material, teacher
from benchmarks.common import WORK, command_line, machine, save_json, show_table
from benchmarks.faults import build
from benchmarks.whole import MAY_DIFFER
from mlxmath.runtime.files import read_json

SHORT = {"kills": 20, "full_disk": 8, "pairs": 5}


def main() -> None:
    """Plan, try what has not been tried, print the table."""
    options = _options()
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mlxmath-campaign-") as name, teacher() as server:
        work = Path(name).resolve()
        run, material = work / "run", work / "material"
        make_material(material, run)
        place = Place(work, build(work), material, run, lambda: sum(server.answered.values()))
        try:
            failed = try_all(options, place, commands(server.url), start)
        finally:
            place.close()
    if failed:
        sys.exit(f"{failed} of the cases failed")


def _options() -> argparse.Namespace:
    parser = command_line(__doc__, "campaign.json")
    parser.add_argument("--kills", type=int, default=1000, help="over all commands (default: 1000)")
    parser.add_argument("--full-disk", type=int, default=200, help="and half as many other errors (default: 200)")
    parser.add_argument("--pairs", type=int, default=100, help="pairs of processes, and signals (default: 100)")
    parser.add_argument("--only", metavar="COMMAND", help="one command, or one of its variants, as the JSON names it")
    parser.add_argument("--seed", type=int, default=0, help="of the points (default: 0)")
    parser.add_argument("--short", action="store_true", help="a few of each, all anew, one model a command, for CI")
    parser.add_argument("--hours", type=float, default=1e9, help="stop after so long; the same command goes on")
    options = parser.parse_args()
    if options.short:
        vars(options).update(SHORT)
        if options.out == parser.get_default("out"):
            options.out = WORK / "campaign-short.json"
        options.out.unlink(missing_ok=True)  # all anew
    return options


def try_all(options: argparse.Namespace, place: Place, known: list[Command], start: float) -> int:
    """Try what the JSON does not hold; how many of all have failed."""
    record = _opened(options.out)
    tried = record["cases"]
    chosen = [command for command in known if options.only in (None, command.name, command.key)]
    if options.short:
        chosen = _one_variant_each(chosen, random.Random(options.seed))
    planned = _plan(options, place, chosen)
    waiting = [case for case in planned if case.key not in tried]
    _say(start, f"{len(planned)} cases, {len(waiting)} of them not tried yet")
    for number, case in enumerate(waiting):
        if time.monotonic() - start > 3600 * options.hours:
            _say(start, f"stopped; {len(waiting) - number} cases are left")
            break
        outcome = place.try_case(case)
        tried[case.key] = outcome.text
        save_json(options.out, record | {"table": _table(tried)})
        if outcome.problems or number % 20 == 0:
            _say(start, f"{number + 1} of {len(waiting)}: {case.key}: {outcome.text}")
    columns = ("what", "command", "operation", "tried", "resumed", "equal", "failed")
    show_table("Disturbed commands", columns, [[str(row[name]) for name in columns] for row in _table(tried)])
    return sum(row["failed"] for row in _table(tried))


def _opened(path: Path) -> dict[str, Any]:
    record: dict[str, Any] = read_json(path) if path.exists() else {"cases": {}}
    return {
        "cases": {key: text for key, text in record["cases"].items() if text.endswith(": equal")},
        "question": "is anything lost when commands are killed, starved of disk, signalled, or run two at once?",
        "machine": machine(("mlx", "mlx-lm")),
        "may_differ": [asdict(rule) for rule in MAY_DIFFER],
    }


def _one_variant_each(known: list[Command], chance: random.Random) -> list[Command]:
    """One of each command's variants; more often one of the small model."""
    names = dict.fromkeys(command.name for command in known)
    return [
        chance.choice([c for c in known if c.name == name and (c.model != "demo" or name == "train")]) for name in names
    ]


def _plan(options: argparse.Namespace, place: Place, chosen: list[Command]) -> list[Case]:
    """All cases, in an order of which each part is spread over the commands."""
    numbers = {
        "kill": options.kills, "disk": options.full_disk, "error": options.full_disk // 2, "pair": options.pairs,
        "signal": options.pairs,
    }  # fmt: skip
    names = list(dict.fromkeys(command.name for command in chosen))
    planned: list[tuple[float, Case]] = []
    for command in chosen:
        done = place.undisturbed(command)
        variants = [one for one in chosen if one.name == command.name]
        for kind, number in numbers.items():
            if kind == "signal" and command.measures:
                continue
            chance = random.Random(f"{options.seed} {kind} {command.key}")
            count = _part(_part(number, names, command.name), variants, command)
            found = list(cases(kind, command, done, count, chance))
            planned += [((index + chance.random()) / len(found), case) for index, case in enumerate(found)]
    return [case for _, case in sorted(planned, key=lambda each: each[0])]


def _part(number: int, owners: Sequence[Any], one: Any) -> int:
    """The share of `one` when `number` things are dealt out."""
    return len(range(owners.index(one), number, len(owners)))


def _table(tried: dict[str, str]) -> list[dict[str, Any]]:
    """Rows by what happened, command and kind of operation."""
    rows: dict[tuple[str, ...], Counter[str]] = {}
    for key, text in tried.items():
        kind, command, _ = key.split(": ", 2)
        operation, _, problems = text.partition(": ")
        counts = rows.setdefault((KINDS[kind], command.split()[0], operation), Counter())
        counts["tried"] += 1
        counts["resumed"] += "going on ends with" not in problems
        counts["equal" if problems == "equal" else "failed"] += 1
    names = ("what", "command", "operation")
    numbers = ("tried", "resumed", "equal", "failed")
    return [dict(zip(names, row, strict=True)) | {n: rows[row][n] for n in numbers} for row in sorted(rows)]


def _say(start: float, text: str) -> None:
    print(f"{(time.monotonic() - start) / 60:5.1f} min  {text}", flush=True)


if __name__ == "__main__":
    main()
