"""Does a damaged or hostile file, or a wild command line, ever get more than one clear line?

    python benchmarks/fuzz.py [--inputs 20000] [--command-lines 3000] [--only GGUF] [--seed 0 [--add]] [--workers 2]

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
import json
import os
import platform
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
for _name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ[_name] = "1"
os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1", "MPLBACKEND": "agg"}

from benchmarks.common import command_line, machine, save_json, show_table
from benchmarks.fuzzing.children import SILENCE_S, Job, Outcome, Watch, in_child, judged, line, tried
from benchmarks.fuzzing.formats import Format, attempt, attempt_by_command, make, put_original
from mlxmath.runtime.versions import versions

VERDICTS = ("refused", "accepted", "failed")
SUBJECT = "command lines"
MODULES = ("weights", "adapters", "rows", "runs", "texts")
COMMANDS_SHARE = 0.02
"""So many inputs, compared with those that are read directly, are given to the commands."""
PROCESSES_SHARE = 0.01
"""Likewise of command lines in processes of their own."""


def formats(only: Sequence[str]) -> dict[str, Format]:
    """Those asked for, by name."""
    found = [form for name in MODULES for form in importlib.import_module(f"benchmarks.fuzzing.{name}").FORMATS]
    return {form.name: form for form in found if not only or any(form.name.startswith(one) for one in only)}


def command_lines() -> Any:
    """What makes command lines; it imports every command."""
    return importlib.import_module("benchmarks.fuzzing.command_lines")


def write_originals(forms: Mapping[str, Format], folder: Path, *, lines: bool) -> None:
    """What is damaged later, whole; and what command lines find."""
    tempfile.tempdir = str(folder)
    for form in forms.values():
        (folder / form.name).mkdir(parents=True)
        form.original(folder / form.name)
    if lines:
        (folder / SUBJECT).mkdir()
        command_lines().prepare(folder / SUBJECT)


@dataclass(frozen=True)
class Trials:
    """How inputs of these formats are tried."""

    forms: Mapping[str, Format]
    originals: Path

    def whole(self, job: Job, folder: Path, watch: Watch) -> Outcome:
        """An original, which must be accepted."""
        form = self.forms[job.subject]
        put_original(self.originals / form.name, folder)
        return judged(lambda: form.read(folder), watch, 0)

    def read(self, job: Job, folder: Path, watch: Watch) -> Outcome:
        """An input."""
        return attempt(self.forms[job.subject], job, self.originals, folder, watch)

    def by_command(self, job: Job, folder: Path, watch: Watch) -> Outcome:
        """An input, by the command."""
        return attempt_by_command(self.forms[job.subject], job, self.originals, folder, watch)

    def line(self, job: Job, folder: Path, watch: Watch) -> Outcome:
        """A command line."""
        return command_lines().try_line(self.originals / SUBJECT, job, folder, watch)

    def process(self, job: Job, folder: Path, _: Watch) -> Outcome:
        """A command line in a process of its own."""
        return command_lines().in_process(self.originals / SUBJECT, job, folder)


def jobs_of(shares: Mapping[str, float], total: int, seed: int) -> Iterator[Job]:
    """As many inputs as each subject's share wants, a turn each."""
    left = {name: max(1, round(total * share / sum(shares.values()))) for name, share in shares.items()}
    number = seed * 1_000_000
    while any(left.values()):
        for name in shares:
            if left[name]:
                left[name] -= 1
                yield Job(name, number)
        number += 1


class Table:
    """What was tried, and what became of it."""

    def __init__(self, log: Path | None, before: Mapping[str, Any]) -> None:
        self.log = log
        self.counts: dict[str, Counter[str]] = defaultdict(Counter)
        self.kinds: dict[str, Counter[str]] = defaultdict(Counter)
        self.slowest: dict[str, float] = defaultdict(float)
        for name, found in before.items():
            self.counts[name].update({verdict: found[verdict] for verdict in VERDICTS})
            self.kinds[name].update(found["failures"])
            self.slowest[name] = found["slowest_seconds"]

    def add(self, job: Job, outcome: Outcome) -> None:
        """Count an outcome; a failure goes into the log too."""
        self.counts[job.subject][outcome.verdict] += 1
        self.slowest[job.subject] = max(self.slowest[job.subject], outcome.seconds)
        if outcome.verdict == "failed":
            self.kinds[job.subject][outcome.kind] += 1
            if self.log:
                with self.log.open("a") as file:
                    file.write(line(job, outcome) + "\n")

    def rows(self) -> list[list[str]]:
        """For people."""
        return [
            [name, f"{count.total():,}", *(f"{count[verdict]:,}" for verdict in VERDICTS),
             f"{self.slowest[name]:.1f} s"]
            for name, count in self.counts.items()
        ]  # fmt: skip

    @property
    def num_failed(self) -> int:
        """Inputs that got something else than acceptance or a line."""
        return sum(count["failed"] for count in self.counts.values())

    def as_json(self) -> dict[str, Any]:
        """For `--out`."""
        return {
            name: {"tried": count.total(), **{verdict: count[verdict] for verdict in VERDICTS},
                   "slowest_seconds": round(self.slowest[name], 2), "failures": dict(self.kinds[name])}
            for name, count in self.counts.items()
        }  # fmt: skip


def main() -> None:
    """Try, print tables, write the JSON, and exit with 1 if anything failed."""
    parser = command_line(__doc__, "fuzz.json")
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--command-lines", type=int, default=3000)
    parser.add_argument("--only", action="append", default=[], metavar="NAME[:NUMBER]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--add", action="store_true", help="add to what is in --out (with another --seed)")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--log", type=Path, help="failures with all that is known of them, a line each")
    parser.add_argument("--keep", type=Path, help="with --only NAME:NUMBER, write its files there")
    options = parser.parse_args()
    versions()  # a run's record asks git for the commit once, and reading starts no process
    platform.processor()  # asks another program, once; as the fonts do
    importlib.import_module("matplotlib.font_manager")
    with tempfile.TemporaryDirectory(prefix="fuzz-originals-") as name:
        failed = run(options, Path(name))
    sys.exit(failed)


def run(options: argparse.Namespace, originals: Path) -> int:
    """All that was asked for; 1 if anything failed."""
    start = time.perf_counter()
    name, _, number = (options.only[0] if options.only else "").rpartition(":")
    single = number.isdigit()
    forms = formats([name] if single else options.only)
    if single:
        forms = {key: form for key, form in forms.items() if key == name}
    command_lines()
    lines = options.command_lines > 0 and (not options.only or SUBJECT in (name, number))
    in_child(partial(write_originals, forms, originals, lines=lines))
    trials = Trials(forms, originals)
    if single:
        return try_one(trials, Job(name, int(number)), options.keep)
    wrong = [
        f"{job.subject}: what is whole is {outcome.verdict}: {outcome.kind} {outcome.detail}"
        for job, outcome in tried([Job(name, 0) for name in forms], trials.whole, options.workers)
        if outcome.verdict != "accepted"
    ]
    if wrong:
        raise SystemExit("\n".join(wrong))
    shares = {name: form.share for name, form in forms.items()}
    commands = {name: form.share for name, form in forms.items() if form.command}
    before: dict[str, Any] = json.loads(options.out.read_text()) if options.add and options.out.exists() else {}
    titles = ("inputs", "inputs, by the command", "command lines", "command lines, a process each")
    tables = {title: Table(options.log, before[title]) for title in titles if title in before}
    for title, attempt_one, share, total in (
        (titles[0], trials.read, shares, options.inputs),
        (titles[1], trials.by_command, commands, round(options.inputs * COMMANDS_SHARE)),
        (titles[2], trials.line, {SUBJECT: 1.0} if lines else {}, options.command_lines),
        (titles[3], trials.process, {SUBJECT: 1.0} if lines else {},
         round(options.command_lines * PROCESSES_SHARE)),
    ):  # fmt: skip
        if not share or not total:
            continue
        table = tables.setdefault(title, Table(options.log, {}))
        for job, outcome in tried(jobs_of(share, total, options.seed), attempt_one, options.workers, SILENCE_S * 4):
            table.add(job, outcome)
        show_table(title, ["subject", "tried", "refused", "accepted", "failed", "slowest"], table.rows())
        for subject, kinds in table.kinds.items():
            for kind, count in kinds.most_common():
                print(f"{subject}: {kind}: {count}")
        found = {each: one.as_json() for each, one in tables.items()}
        seconds = round(time.perf_counter() - start) + before.get("seconds", 0)
        about = machine(("mlx", "mlx-lm", "numpy", "tokenizers", "transformers"))
        save_json(
            options.out,
            {**found, "seeds": [*before.get("seeds", []), options.seed], "seconds": seconds, "machine": about},
        )
    return any(table.num_failed for table in tables.values())


def try_one(trials: Trials, job: Job, keep: Path | None) -> int:
    """Try one input again, and show what happened."""
    if keep and job.subject != SUBJECT:
        keep.mkdir(parents=True)
        make(trials.forms[job.subject], job.seed, trials.originals / job.subject, keep)
    attempt_one = trials.line if job.subject == SUBJECT else trials.read
    ((_, outcome),) = tried([job], attempt_one)
    print(outcome.verdict, outcome.kind, outcome.detail, f"{outcome.seconds:.2f} s", sep="\n")
    return outcome.verdict == "failed"


if __name__ == "__main__":
    main()
