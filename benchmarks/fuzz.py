"""Does a damaged or hostile file, or a wild command line, ever get more than one clear line?

    python benchmarks/fuzz.py [--inputs 20000] [--command-lines 3000] [--only GGUF] [--seed 0] [--workers 2]

Every format that mlxmath reads is damaged again and again (`benchmarks/fuzzing/`), and read by the functions that the
commands call, in forked children; a few inputs of each by the commands themselves. Accepted, or refused with one line
for the user: anything else is a failure, such as another exception, a traceback, the word defect, code that runs, a
connection, a file written elsewhere, more than 10 s of processor time, or more memory than 500 MB and twice the file.
Then command lines of random documented options run: they may end with 0, 1, 2, 130 or 143.

`--only NAME:NUMBER` tries one input again and shows what happened, with `--keep FOLDER` its files. Nothing of an
input is in the JSON: counts alone, and where in mlxmath a failure arose.
"""

import argparse
import importlib
import os
import platform
import shutil
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
for _name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ[_name] = "1"
os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1", "MPLBACKEND": "agg"}

from benchmarks.common import command_line, machine, save_json, show_table
from benchmarks.fuzzing.children import Job, Outcome, Watch, in_child, judged, line, tried
from benchmarks.fuzzing.formats import Format, attempt, make, put_original

MODULES = ("weights",)
COMMANDS_SHARE = 0.02
"""Of a format's inputs, those that the command itself is given."""


def formats(only: Sequence[str]) -> dict[str, Format]:
    """Those asked for, by name."""
    found = [form for name in MODULES for form in importlib.import_module(f"benchmarks.fuzzing.{name}").FORMATS]
    return {form.name: form for form in found if not only or any(form.name.startswith(one) for one in only)}


def write_originals(forms: dict[str, Format], folder: Path) -> None:
    """What is damaged later, whole; each must be read as it is."""
    for form in forms.values():
        (folder / form.name).mkdir(parents=True)
        form.original(folder / form.name)


def check_original(forms: dict[str, Format], originals: Path, job: Job, folder: Path, watch: Watch) -> Outcome:
    """A whole original."""
    form = forms[job.subject]
    put_original(originals / form.name, folder)
    watch.may = form.may
    return judged(lambda: form.read(folder), watch, 0)


def jobs_of(forms: dict[str, Format], total: int, seed: int) -> Iterator[Job]:
    """As many inputs as each format's share wants, a turn each."""
    shares = sum(form.share for form in forms.values())
    left = {name: max(1, round(total * form.share / shares)) for name, form in forms.items()}
    number = seed * 1_000_000
    while any(left.values()):
        for name in forms:
            if left[name]:
                left[name] -= 1
                yield Job(name, number)
        number += 1


def try_input(forms: dict[str, Format], originals: Path, job: Job, folder: Path, watch: Watch) -> Outcome:
    return attempt(forms[job.subject], job, originals, folder, watch)


class Table:
    """What was tried, and what became of it."""

    def __init__(self, log: Path | None) -> None:
        self.counts: dict[str, Counter[str]] = defaultdict(Counter)
        self.kinds: dict[str, Counter[str]] = defaultdict(Counter)
        self.slowest: dict[str, float] = defaultdict(float)
        self.log = log

    def add(self, job: Job, outcome: Outcome) -> None:
        self.counts[job.subject][outcome.verdict] += 1
        self.slowest[job.subject] = max(self.slowest[job.subject], outcome.seconds)
        if outcome.verdict == "failed":
            self.kinds[job.subject][outcome.kind] += 1
            if self.log:
                with self.log.open("a") as file:
                    file.write(line(job, outcome) + "\n")

    def rows(self) -> list[list[str]]:
        return [
            [name, f"{count.total():,}", *(f"{count[verdict]:,}" for verdict in ("refused", "accepted", "failed")),
             f"{self.slowest[name]:.1f} s"]
            for name, count in self.counts.items()
        ]  # fmt: skip

    @property
    def num_failed(self) -> int:
        return sum(count["failed"] for count in self.counts.values())

    def as_json(self) -> dict[str, Any]:
        return {
            name: {"tried": count.total(), **{verdict: count[verdict] for verdict in ("refused", "accepted", "failed")},
                   "slowest_seconds": round(self.slowest[name], 2), "failures": dict(self.kinds[name])}
            for name, count in self.counts.items()
        }  # fmt: skip


def main() -> None:
    """Try, print a table, write the JSON, and exit with 1 if anything failed."""
    parser = command_line(__doc__, "fuzz.json")
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--only", action="append", default=[], metavar="NAME[:NUMBER]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--log", type=Path, help="failures with all that is known of them, a line each")
    parser.add_argument("--keep", type=Path, help="with --only NAME:NUMBER, write its files there")
    options = parser.parse_args()
    start = time.perf_counter()
    platform.processor()  # asks another program, once
    with tempfile.TemporaryDirectory(prefix="fuzz-originals-") as name:
        failed = run(options, Path(name), start)
    sys.exit(failed)


def run(options: argparse.Namespace, originals: Path, start: float) -> int:
    name, _, number = (options.only[0] if options.only else "").rpartition(":")
    single = number.isdigit()
    forms = formats([name] if single else options.only)
    if single:
        forms = {name: forms[name]}
    in_child(partial(write_originals, forms, originals))
    if single:
        job = Job(name, int(number))
        if options.keep:
            options.keep.mkdir(parents=True)
            make(forms[name], job.seed, originals / name, options.keep)
        for _, outcome in tried([job], partial(try_input, forms, originals)):
            print(outcome.verdict, outcome.kind, outcome.detail, f"{outcome.seconds:.2f} s", sep="\n")
        return outcome.verdict == "failed"
    for job, outcome in tried([Job(n, 0) for n in forms], partial(check_original, forms, originals), options.workers):
        if outcome.verdict != "accepted":
            raise SystemExit(f"{job.subject}: what is whole is {outcome.verdict}: {outcome.kind} {outcome.detail}")
    table = Table(options.log)
    for job, outcome in tried(
        jobs_of(forms, options.inputs, options.seed), partial(try_input, forms, originals), options.workers
    ):
        table.add(job, outcome)
    show_table("inputs", ["format", "tried", "refused", "accepted", "failed", "slowest"], table.rows())
    for subject, kinds in table.kinds.items():
        for kind, count in kinds.most_common():
            print(f"{subject}: {kind}: {count}")
    seconds = time.perf_counter() - start
    print(f"{seconds:.0f} s")
    save_json(options.out, {"inputs": table.as_json(), "seconds": round(seconds, 1),
                            "machine": machine(("mlx", "mlx-lm", "numpy", "tokenizers", "transformers"))})  # fmt: skip
    return table.num_failed > 0


if __name__ == "__main__":
    main()
