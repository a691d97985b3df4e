"""Forked children that try inputs one after the other, and what counts as a failure.

A fresh process takes seconds to import everything; a child of one that has takes milliseconds, and serves hundreds of
inputs. One that dies or does not answer is replaced. The parent must not have computed anything with MLX: its threads
do not live on in a child.
"""

import contextlib
import io
import json
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.fuzzing.mutations import CANARY
from mlxmath.errors import MlxmathError
from mlxmath.runtime.console import fail, shown
from mlxmath.runtime.files import OF_A_NAME

LIMIT_S = 10.0
"""Of processor time, for one input."""
SILENCE_S = 180.0
"""After which a child is ended from outside; a busy machine is no failure."""
MEMORY_BYTES = 500 << 20
"""Beyond what a child begins with; or twice the input, if that is more."""
ADDRESSES_BYTES = 4 << 30
"""Of address space, likewise: what is reserved and not used does no harm, and a machine is not to be filled."""
PER_CHILD = 400
_LONGEST_LINE = 4000
_ELSEWHERE = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "subprocess.Popen", "socket.connect")
"""Python's audit events of what reading a file never needs."""


class Job(NamedTuple):
    """An input: made by `subject` out of `seed`."""

    subject: str
    seed: int


class Outcome(NamedTuple):
    """What became of an input: "accepted", "refused" with a line for the user, or "failed"."""

    verdict: str
    kind: str = ""
    detail: str = ""
    seconds: float = 0.0


class OutOfTime(BaseException):
    """An input takes longer than it may."""


@dataclass
class Watch:
    """What a child does besides reading: noted by an audit hook."""

    folder: Path
    may: frozenset[str] = frozenset()
    """Events that are part of what is tried."""

    def __post_init__(self) -> None:
        self.seen: list[tuple[str, str]] = []
        sys.addaudithook(self._note)

    def _note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "subprocess.Popen" and any(str(each).startswith("mlxmath.") for each in arguments[1] or ()):
            return  # a process of our own, which bounds what others have written
        if event in _ELSEWHERE and event not in self.may:
            self.seen.append((event, str(arguments)[:200]))
        elif event == "open" and isinstance(arguments[1], str) and arguments[1][:1] in "wax+":
            path = str(Path(os.fsdecode(arguments[0])).absolute()) if isinstance(arguments[0], str | bytes) else ""
            lock = str(self.folder.with_name(f".{self.folder.name}{OF_A_NAME}"))  # of a run that would make all of it
            if path and not path.startswith((str(self.folder), lock, "/dev/", "/proc/")):
                self.seen.append(("writes elsewhere", path))


class _Terminal(io.StringIO):
    """Standard error as people see it."""

    def isatty(self) -> bool:
        return True


def judged(call: Callable[[], object], watch: Watch, num_bytes: int, limit_s: float = LIMIT_S) -> Outcome:
    """Read an input, and say what became of it."""
    watch.seen.clear()
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    said = _Terminal()
    signal.setitimer(signal.ITIMER_PROF, limit_s)
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()), shown():
            try:
                call()
                verdict = Outcome("accepted")
            except MlxmathError as error:
                fail(str(error))
                verdict = Outcome("refused", type(error).__name__, str(error))
            except OSError as error:  # what the system says of a file, which commands pass on as a line
                if error.strerror is None:
                    raise
                verdict = Outcome("refused", "OSError")
        signal.setitimer(signal.ITIMER_PROF, 0)
    except OutOfTime as error:
        verdict = Outcome("failed", f"more than {limit_s:g} s", _frames(error))
    except BaseException as error:
        verdict = Outcome(
            "failed", f"{type(error).__name__} at {_place(error)}", f"{str(error)[:300]}\n{_frames(error)}"
        )
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    seconds = time.perf_counter() - start
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - most) * (1 if sys.platform == "darwin" else 1024)
    wrong = list(_wrong(said.getvalue(), verdict))
    if grown > max(MEMORY_BYTES, 2 * num_bytes):
        wrong.append(f"memory: {grown >> 20} MB")
    for canary in (CANARY, watch.folder / CANARY):
        if canary.exists():
            canary.unlink()
            wrong.append("code ran")
    wrong += [event for event, _ in watch.seen[:1]]
    if wrong and verdict.verdict != "failed":
        verdict = Outcome("failed", wrong[0], f"{watch.seen[:3]} {verdict.detail[:500]}\n{said.getvalue()[-500:]}")
    return verdict._replace(seconds=seconds)


def _wrong(said: str, verdict: Outcome) -> Iterator[str]:
    """What is wrong with what the user is told."""
    if "defect" in said:
        yield "the word defect"
    if "Traceback (most recent call last)" in said:
        yield "a traceback"
    _, is_error, told = said.rpartition("error: ")
    if is_error and any(not (c.isprintable() or c in "\n\t") for c in told):
        yield "a control character"
    if verdict.verdict == "refused" and len(verdict.detail) > _LONGEST_LINE:
        yield "an endless line"


def _place(error: BaseException) -> str:
    """The last line of ours in a traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/mlxmath/" in frame.filename] or frames
    return (
        f"{ours[-1].filename.rpartition('/mlxmath/')[2].rpartition('/site-packages/')[2]}:{ours[-1].name}"
        if ours
        else "?"
    )


def _frames(error: BaseException) -> str:
    return "".join(traceback.format_tb(error.__traceback__)[-6:])[-1500:]


Attempt = Callable[[Job, Path, Watch], Outcome]


class _Child:
    """A process that tries inputs; it has one of them at a time."""

    def __init__(self, attempt: Attempt, silence_s: float) -> None:
        self.silence_s = silence_s
        self.folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
        self.pipe, theirs = multiprocessing.Pipe()
        self.job: Job | None = None
        self.left, self.deadline = PER_CHILD, 0.0
        self.process = multiprocessing.get_context("fork").Process(
            target=_serve, args=(theirs, attempt, self.folder), daemon=True
        )
        self.process.start()
        theirs.close()

    def give(self, job: Job) -> None:
        self.job, self.deadline, self.left = job, time.monotonic() + self.silence_s, self.left - 1
        self.pipe.send(job)

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def _serve(pipe: Connection, attempt: Attempt, folder: Path) -> None:
    def late(*_: object) -> None:
        raise OutOfTime

    signal.signal(signal.SIGPROF, late)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ["HOME"] = os.environ["TMPDIR"] = str(folder)
    tempfile.tempdir = str(folder)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):  # what libraries print, and the last words of a process that dies
        os.dup2(nowhere, stream)
    if sys.platform == "linux":
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + ADDRESSES_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.setrecursionlimit(1000)
    watch = Watch(folder)
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        inner = folder / "input"
        inner.mkdir()
        os.chdir(inner)
        try:
            outcome = attempt(job, inner, watch)
        except Exception as error:
            outcome = Outcome("failed", f"the fuzzer itself: {type(error).__name__}", _frames(error))
        pipe.send(outcome)
        os.chdir(folder)
        shutil.rmtree(inner, ignore_errors=True)


def tried(
    jobs: Iterable[Job], attempt: Attempt, workers: int = 2, silence_s: float = SILENCE_S
) -> Iterator[tuple[Job, Outcome]]:
    """Try inputs in forked children; what became of each, as they end."""
    waiting = iter(jobs)
    children: list[_Child] = []
    try:
        while True:
            for job in waiting if len(children) < workers else ():
                children.append(_Child(attempt, silence_s))
                children[-1].give(job)
                if len(children) == workers:
                    break
            if not children:
                return
            ready = wait([child.pipe for child in children], 1.0)
            for child in list(children):
                outcome = _outcome(child, child.pipe in ready)
                if outcome is None:
                    continue
                assert child.job is not None
                yield child.job, outcome
                following = next(waiting, None)
                if following is not None and child.left and child.process.is_alive() and outcome.verdict != "failed":
                    child.give(following)
                    continue
                child.end()
                children.remove(child)
                if following is not None:
                    children.append(_Child(attempt, silence_s))
                    children[-1].give(following)
    finally:
        for child in children:
            child.end()


def _outcome(child: _Child, is_ready: bool) -> Outcome | None:
    """What a child has answered; that it died, or does not answer; None while there is time."""
    if is_ready:
        try:
            found: Outcome = child.pipe.recv()
            return found
        except (EOFError, ConnectionResetError):
            child.process.join()
            code = child.process.exitcode or 0
            return Outcome("failed", f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with {code}")
    if time.monotonic() > child.deadline:
        return Outcome("failed", "does not answer")
    return None


def in_child(call: Callable[[], object]) -> None:
    """Do something that computes in a process of its own."""
    process = multiprocessing.get_context("fork").Process(target=call)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"the originals were not made: {process.exitcode}")


def line(job: Job, outcome: Outcome) -> str:
    """An outcome as a line of JSON, for a log."""
    return json.dumps({**job._asdict(), **outcome._asdict()})
