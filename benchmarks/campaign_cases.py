"""One case of the campaign: a command is disturbed, goes on, and is compared with an undisturbed run."""

import os
import random
import re
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.campaign_commands import Command, lay_out
from benchmarks.faults import NEED_SPACE, Fault, operations
from benchmarks.starting import Fresh, Zygote, kill_session
from benchmarks.whole import broken, differences

LIMIT_S = 300.0
_CHECKPOINT = re.compile(r"(.*/)?checkpoints/step-\d+/\S+ is (missing|there)")
_ALONE_S = 20.0
"""How long the second of a pair may take while the first stands still; longer, and it waits for it."""
KINDS = {"kill": "killed", "disk": "disk full", "error": "other errors", "signal": "signalled", "pair": "two at once"}


@dataclass(frozen=True)
class Case:
    """What is done to which command."""

    kind: str
    """One of `KINDS`."""
    command: Command
    faults: tuple[Fault, ...]
    """Of the first process, and of the one that goes on."""
    how: str = "zygote"
    together: bool = False
    """Of a pair: the first goes on as soon as the second starts."""

    @property
    def key(self) -> str:
        faults = ", then ".join(f"{fault.number or fault.act} at {fault.at}" for fault in self.faults)
        how = " in new processes" * (self.how == "process") + " together" * self.together
        return f"{self.kind}: {self.command.key}: {faults}{how}"


@dataclass
class Outcome:
    """What came of it."""

    operation: str = "none"
    """The kind of operation at which it happened; none: the process ended before."""
    problems: list[str] = field(default_factory=list)
    resumed: bool = False

    @property
    def text(self) -> str:
        return f"{self.operation}: {'; '.join(self.problems) or 'equal'}"[:600]


class Place:
    """Where cases run: one folder, always the same, since some files name it."""

    def __init__(self, work: Path, library: Path, material: Path, run: Path, num_answered: Callable[[], int]) -> None:
        self._work, self._material, self.run = work, material, run
        self._log, self._operations = work / "log", work / "operations"
        self._num_answered = num_answered
        self._starters = {"process": Fresh(library), "zygote": Zygote(library)}
        self._how: Fresh | Zygote = self._starters["zygote"]
        self._known: dict[str, list[tuple[str, str]]] = {}
        self._pid = 0

    def close(self) -> None:
        """End what it has started."""
        for starter in self._starters.values():
            starter.close()

    def undisturbed(self, command: Command) -> list[tuple[str, str]]:
        """The operations of a run that nothing happens to; its result is what others are compared with."""
        if command.key not in self._known:
            self._known[command.key] = self._lone(command)
            shutil.rmtree(self.reference(command), ignore_errors=True)
            shutil.copytree(self.run, self.reference(command))
        return self._known[command.key]

    def reference(self, command: Command) -> Path:
        """A folder as `command` leaves it."""
        return self._work / "reference" / command.key.replace(" ", "-")

    def _lone(self, command: Command) -> list[tuple[str, str]]:
        self._how = self._starters["zygote"]
        lay_out(self._material, command, self.run)
        code, said = self._finish(command.arguments, Fault())
        if code:
            raise RuntimeError(f"{command.key} ends with {code}, though nothing happens to it: {_last(said)}")
        return operations(self._operations)

    def try_case(self, case: Case) -> Outcome:
        """Disturb, look, go on, compare."""
        command, outcome, before = case.command, Outcome(), self._num_answered()
        self._how = self._starters[case.how]
        lay_out(self._material, command, self.run)
        if case.kind == "pair":
            self._pair(case, outcome)
        else:
            for number, fault in enumerate(case.faults):
                self._disturbed(case, fault, outcome, again=number > 0)
        code, said = self._finish((*command.arguments, *command.again))
        outcome.problems += [f"going on: {line}" for line in _offences(said)]
        outcome.resumed = code == 0 or (code == 2 and bool(command.refused) and command.refused in said)
        if not outcome.resumed:
            outcome.problems.append(f"going on ends with {code}: {_last(said)}")
        found = differences(self.run, self.reference(command))
        if case.kind in ("disk", "error", "signal"):  # one that cannot be written is left out; a signal adds one
            found = [what for what in found if not _CHECKPOINT.fullmatch(what)]
        outcome.problems += found
        again = self._num_answered() - before - command.num_answers
        if again > 2 * (len(case.faults) + (case.kind == "pair")) and command.num_answers:
            outcome.problems.append(f"{again} answers were asked for again")
        return outcome

    def _disturbed(self, case: Case, fault: Fault, outcome: Outcome, *, again: bool) -> None:
        command = case.command
        code, said = self._finish((*command.arguments, *(command.again if again else ())), fault)
        done = operations(self._operations)
        if len(done) >= fault.at:
            outcome.operation = done[fault.at - 1][0]
        expected = {"kill": (-signal.SIGKILL,), "signal": (0, 130, 143, -signal.SIGTERM)}.get(case.kind, (0, 1))
        is_refused = again and code == 2 and bool(command.refused) and command.refused in said
        if code not in expected and not is_refused and not (case.kind == "kill" and code == 0 and len(done) < fault.at):
            outcome.problems.append(f"ends with {code}: {_last(said)}")
        outcome.problems += _offences(said) + broken(self.run)

    def _pair(self, case: Case, outcome: Outcome) -> None:
        command, (fault,) = case.command, case.faults
        arguments = [command.arguments, (*command.arguments, *command.again)]
        first = self._start(arguments[0], fault, self._log)
        status = self._how.wait(first, LIMIT_S)
        done = operations(self._operations)
        if status is None or not os.WIFSTOPPED(status):
            kill_session(first)
            return
        outcome.operation = done[-1][0]
        log = self._log.with_suffix(".second")
        second = self._start(arguments[case.together], None, log)
        ended = None if case.together else self._how.wait(second, _ALONE_S)
        os.kill(first, signal.SIGCONT)
        codes = [self._ended(first), self._ended(second) if ended is None else _code(ended)]
        said = [self._log.read_text(errors="replace"), log.read_text(errors="replace")]
        if 0 not in codes or any(code not in (0, 2) for code in codes):
            outcome.problems.append(f"they end with {codes}: {_last(said[0])} / {_last(said[1])}")
        outcome.problems += [*_offences(said[0]), *_offences(said[1]), *broken(self.run)]

    def _start(self, arguments: Sequence[str], fault: Fault | None, log: Path) -> int:
        told = fault.environment(self.run, self._operations) if fault else {}
        if fault:
            self._operations.unlink(missing_ok=True)
        return self._how.start(self.run, arguments, told, log)

    def _ended(self, pid: int) -> int | None:
        """The exit code of a process, negative if a signal ended it; None after the time limit. Its workers end too."""
        status = self._how.wait(pid, LIMIT_S)
        kill_session(pid)
        if status is None:
            self._how.wait(pid, LIMIT_S)
        return None if status is None else _code(status)

    def _finish(self, arguments: Sequence[str], fault: Fault | None = None) -> tuple[int | None, str]:
        code = self._ended(self._start(arguments, fault, self._log))
        return code, self._log.read_text(errors="replace")


def _code(status: int) -> int:
    return os.waitstatus_to_exitcode(status)


def _last(said: str) -> str:
    lines = [line for line in said.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "nothing said"


def _offences(said: str) -> list[str]:
    """What a user must never see."""
    return [f"says {word!r}: {_last(said)}" for word in ("Traceback", "defect") if word in said]


def cases(
    kind: str, command: Command, done: Sequence[tuple[str, str]], count: int, chance: random.Random
) -> Iterator[Case]:
    """`count` cases of a kind, if there are so many, spread over the kinds of operations that the command does."""
    acts: dict[str, tuple[tuple[str, str], ...]] = {
        "kill": (("before", ""), ("in", ""), ("after", "")),
        "disk": (("error", "ENOSPC"),),
        "error": (("error", "EIO"), ("error", "EROFS")),
        "signal": (("signal", "SIGTERM"), ("signal", "SIGINT")),
        "pair": (("signal", "SIGSTOP"),),
    }
    places: dict[str, list[Fault]] = {}
    for at, (operation, _) in enumerate(done, 1):
        if kind == "disk" and operation not in NEED_SPACE:
            continue
        chosen = [(act, number) for act, number in acts[kind] if act != "in" or operation == "write"]
        places.setdefault(operation, []).extend(Fault(act, at, number) for act, number in chosen)
    for faults in places.values():
        chance.shuffle(faults)
    kinds = chance.sample([*places], len(places))
    for number in range(count):
        if not (left := [operation for operation in kinds if places[operation]]):
            return
        operation = left[number % len(left)]
        faults = [places[operation].pop()]
        if kind == "kill" and number % 5 == 4:  # what goes on is killed too
            faults.append(Fault(chance.choice(("before", "after")), chance.randint(1, len(done))))
        how = "process" if number % 20 == 7 else "zygote"
        yield Case(kind, command, tuple(faults), how, together=kind == "pair" and number % 2 == 1)
