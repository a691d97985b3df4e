"""`mlxmath chat` in a terminal and through a pipe."""

import json
from pathlib import Path

import pytest

from tests.helpers import run, succeed
from tests.serving.served import Terminal

QUESTION = "What is 12 + 7?"


def infer(folder: Path, *arguments: str) -> str:
    return json.loads(succeed(folder, "infer", "--json", "--prompt", QUESTION, *arguments).stdout)["text"]


def test_at_a_terminal(debug_run: Path, tmp_path: Path) -> None:
    terminal = Terminal(
        debug_run, "chat", "--temperature", "9", "--max-new-tokens", "900", XDG_CACHE_HOME=str(tmp_path)
    )
    try:
        assert "template tutor" in terminal.until(">>> ")
        terminal.type("half a ques")
        terminal.until("half a ques")
        terminal.type("\x03")  # clears what is being typed
        terminal.until("ends the chat")
        terminal.until(">>> ")
        terminal.type(f"{QUESTION}\n")
        terminal.until("7?\n")
        terminal.until(" ")
        terminal.type("\x03")  # stops the answer, not the program
        stopped = terminal.until(">>> ")
        assert "(stopped;" in stopped and len(stopped) < 3000
        terminal.type("\x1b[A")  # the question again
        terminal.until(QUESTION)
        terminal.type("\x15/frobnicate\n")
        terminal.until("there is no such command")
        terminal.type('"""Tom has 5 apples.\n')
        terminal.until("... ")
        terminal.type('How many?"""\n')
        terminal.until("many?")
        terminal.type("\x03\x03")
        terminal.until(">>> ")
        terminal.type("\x04")
        assert terminal.process.wait(timeout=20) == 0
    finally:
        terminal.close()
    kept = tmp_path / "mlxmath" / "chat_history"
    assert kept.read_text().splitlines()[0] == QUESTION and kept.stat().st_mode & 0o777 == 0o600


def test_through_a_pipe(debug_run: Path) -> None:
    tuned, base = infer(debug_run), infer(debug_run, "--no-adapter")
    said = succeed(debug_run, "chat", stdin=f"{QUESTION}\n/base\n/clear\n\n{QUESTION}\n/source\n/quit\nnever read\n")
    assert tuned != base
    assert said.stdout == "".join(f"{text}\n" for text in (tuned, base, tuned, tuned))
    several = succeed(debug_run, "chat", "--no-adapter", stdin=f'"""\n{QUESTION}\n"""')
    assert several.stdout == f"{base}\n"
    cut_off = succeed(debug_run, "chat", "--max-new-tokens", "3", stdin=QUESTION)
    assert "cut off after 3 tokens" in cut_off.stderr
    assert "/quit" in succeed(debug_run, "chat", stdin="/help\n").stdout


@pytest.mark.parametrize(
    ("arguments", "stdin", "code", "message"),
    [
        (("--adapter-path", "nowhere"), "", 1, "nowhere holds no adapter"),
        (("--mlx-path", "nowhere"), "", 1, "nowhere is not a model folder"),
        (("--temperature", "-1"), "", 2, "--temperature"),
        (("--template", "tutor", "--template-file", "x"), "", 2, "exclude each other"),
        (("--no-adapter",), f"{QUESTION}\n/base\n", 2, "this is the base model already"),
        ((), "/base\n", 2, "nothing was asked yet"),
        ((), "/source\n", 2, "there is no answer yet"),
        ((), "12 + " * 900, 2, "the model's context ends at 1,024"),
    ],
)
def test_bad_input(debug_run: Path, arguments: tuple[str, ...], stdin: str, code: int, message: str) -> None:
    found = run(debug_run, "chat", *arguments, stdin=stdin)
    assert found.returncode == code and message in found.stderr
    assert found.stderr.splitlines()[-1].startswith("error: ")


def test_what_was_typed_is_remembered_once_and_not_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlxmath.serving.terminal import _remembered

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = tmp_path / "mlxmath" / "chat_history"
    for number in range(3):
        with _remembered(True) as note:
            for line in range(400):
                note(f"{number}\n {line}")
    lines = path.read_text().splitlines()
    assert len(lines) == 1000 and lines[0] == "0 200" and lines[-1] == "2 399"
    with _remembered(False) as note:
        note("secret")
    assert "secret" not in path.read_text()
