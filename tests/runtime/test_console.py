"""What is said: to those who watch a command, not to a library's caller; a run goes on when nobody can hear it."""

import errno
import io
import logging
import os
import pty
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from mlxmath.runtime.console import Progress, fail, only_errors, put, say, shown, warn
from mlxmath.training.grpo.logging import LiveView, terminal
from tests.helpers import ENVIRONMENT, command

LIBRARY = """
import logging, sys
{before}
from mlxmath.runtime import console
for number in range(3):
    console.say("100 % said"); console.warn("warned"); console.fail("failed")
with console.Progress("step", 3) as progress:
    progress.update(3, now=True)
assert "tqdm" not in sys.modules
"""
TRAIN = (
    "train", "--debug", "--num-examples", "19", "--max-seq-len", "96", "--batch-size", "4", "--max-steps", "3",
    "--save-every", "1000",
)  # fmt: skip


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        ("", ""),
        ("logging.basicConfig()", "WARNING:mlxmath:warned\nERROR:mlxmath:failed\n" * 3),
        (
            "logging.basicConfig(level='INFO', format='%(message)s')",
            "100 % said\nwarned\nfailed\n" * 3 + "step 3/3: 0.0s left\n",
        ),
    ],
)
def test_a_library_s_caller_hears_what_it_asks_for(before: str, expected: str) -> None:
    code = LIBRARY.format(before=before)
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", expected)


def test_a_command_prints_each_line_once_however_many_are_in_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    with shown():
        say("said")
        with shown():
            warn("100 % wrong")
        fail("failed")
    assert capsys.readouterr().err == "said\nwarning: 100 % wrong\nerror: failed\n"
    assert not logging.getLogger("mlxmath").propagate  # the fixture's is still there


HOSTILE = "\x1b]0;owned\x07\x1b[2J\r\x9b31m\u202egnp\u2066 é\n\tx"
SHOWN = " ]0;owned  [2J 31m gnp  é\n\tx"


def test_nothing_that_is_said_steers_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with shown():
        say(HOSTILE)
        warn(HOSTILE)
        fail(HOSTILE)
        with Progress(HOSTILE, 2) as progress:
            progress.update(status=HOSTILE, now=True)
    said = f"{SHOWN}\nwarning: {SHOWN}\nerror: {SHOWN}\n"
    assert capsys.readouterr().err.startswith(said)


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_result_is_as_it_is_in_a_file_and_harmless_on_a_terminal(
    is_terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)
    put("a\x1b[2J\u202e\nb", end="")
    assert capsys.readouterr().out == ("a [2J \nb" if is_terminal else "a\x1b[2J\u202e\nb")


def on_a_terminal(code: str) -> str:
    """What a program's standard error is on a terminal."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT | {"TERM": "xterm"}, stderr=theirs, check=True)
    os.close(theirs)
    written = os.read(ours, 1 << 16).decode()
    os.close(ours)
    return written


def test_a_progress_bar_shows_no_control_characters() -> None:
    code = """
from mlxmath.runtime.console import Progress, shown
with shown(), Progress("a\\x1b]0;owned\\x07", 4) as progress:
    progress.update(1, "b\\x1b]0;owned\\x07")
    progress._bar.refresh()
"""
    written = on_a_terminal(code)
    assert "a ]0;owned" in written and "b ]0;owned" in written and "\x1b]0" not in written and "\x07" not in written


def test_a_rank_that_nobody_watches_prints_errors_alone(capsys: pytest.CaptureFixture[str]) -> None:
    only_errors("rank 1 (b): ")
    say("said")
    warn("warned")
    fail("failed")
    with Progress("step", 3) as progress:
        progress.update(3, now=True)
    assert capsys.readouterr().err == "rank 1 (b): error: failed\n"
    only_errors("")


def test_progress_in_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    with Progress("step", 3000, 1000, clock=lambda: now[0]) as progress:
        progress.update(now=True)
        for _ in range(100):
            now[0] += 1
            progress.update(10, "loss 0.5")
        assert progress.done == 2001 and progress.left_s == pytest.approx(999 / 10.01)
        progress.update(1, left_s=3725)
        progress.update(1, left_s=float("inf"), now=True)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 12
    assert lines[0] == "step 1,001/3,000: 0.0s left" and lines[1] == "step 1,101/3,000: loss 0.5, 3m 08s left"
    assert lines[-2:] == ["step 2,001/3,000: loss 0.5, 1m 40s left", "step 2,003/3,000"]
    with Progress("writing", None, unit="B") as progress:
        progress.update(1_234_567, now=True)
    with Progress("tokenizing", 10, unit="rows", clock=lambda: 0) as progress:
        progress.update(0, now=True)
    assert capsys.readouterr().err == "writing 1.23 MB\ntokenizing 0/10 rows\n"


def test_progress_on_a_terminal_is_a_bar_and_lines_stand_above_it() -> None:
    code = """
from mlxmath.runtime.console import Progress, say, shown
with shown(), Progress("step", 4) as progress:
    for number in range(4):
        progress.update(1, f"loss {number}")
        progress._bar.refresh()
    say("a line")
"""
    written = on_a_terminal(code)
    assert "4/4" in written and "loss 3" in written and "\ra line" in written


@pytest.mark.parametrize("log", ["gone", "full", "closed"])
def test_a_run_goes_on_when_its_log_cannot_be_written(tmp_path: Path, log: str) -> None:
    if log == "gone":
        reading, writing = os.pipe()
        os.close(reading)
    else:
        writing = os.open("/dev/full", os.O_WRONLY)
    arguments = [*command(*TRAIN), "--adapter-path", "out"]
    if log == "closed":
        arguments = ["sh", "-c", 'exec "$0" "$@" >&- 2>&-', *arguments]
    done = subprocess.run(
        arguments, cwd=tmp_path, env=ENVIRONMENT | {"PYTHONUNBUFFERED": ""}, stdin=subprocess.DEVNULL, stdout=writing,
        stderr=writing, check=False,
    )  # fmt: skip
    os.close(writing)
    assert done.returncode == 0
    assert (tmp_path / "out" / "adapters.safetensors").exists() and (tmp_path / "out/checkpoints/step-3").exists()
    assert '"status": "finished"' in (tmp_path / "out" / "run.json").read_text()


@pytest.mark.parametrize(("reads", "code"), [("true", 1), ("cat", 0)])
def test_a_reader_of_the_results_that_goes_ends_the_command_quietly(reads: str, code: int) -> None:
    shell = f"(sleep 0.5; exec {sys.executable} -m mlxmath recipes show demo) | {reads}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", shell], env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (code, "")
    assert ("[lora]" in done.stdout) == (reads == "cat")


@pytest.mark.parametrize("arguments", [("recipes",), ("recipes", "show", "demo")])
def test_results_that_cannot_be_written_are_one_clear_error(arguments: tuple[str, ...]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command(*arguments), env=ENVIRONMENT, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1
    assert done.stderr.startswith("error: cannot write the results: No space left") and done.stderr.count("\n") == 1


class Broken(io.StringIO):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        raise self.error


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("reentrant call inside <_io.BufferedWriter name='<stderr>'>"),
        OSError(errno.EIO, "Input/output error"),
        BrokenPipeError(errno.EPIPE, "Broken pipe"),
        ValueError("I/O operation on closed file"),
    ],
)
def test_what_a_terminal_does_not_take_is_dropped(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of lines, of tqdm's bar, of rich's panel."""
    monkeypatch.setattr(sys, "stderr", stream := Broken(error))
    with shown():
        say("stopping")
        with Progress("step", 3) as progress:
            progress.update()
            progress._bar.refresh()  # type: ignore[union-attr]
        console_ = terminal()
        assert console_ is not None
        with LiveView(console_, 3) as live:
            live.show({"reward": (0.5, "0.5")}, "1/3 steps")
    assert sys.stderr is stream


def test_a_process_without_standard_input_reads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with shown(), sys.stdin as stdin:
        assert stdin.read() == ""
