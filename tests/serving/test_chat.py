"""`mlxmath chat` in a terminal and through a pipe."""

import json
from contextlib import suppress
from pathlib import Path

import pytest

from mlxmath.serving import terminal
from tests.helpers import run, succeed
from tests.serving.served import Terminal

QUESTION = "What is 12 + 7?"


def infer(folder: Path, *arguments: str) -> str:
    return json.loads(succeed(folder, "infer", "--json", "--prompt", QUESTION, *arguments).stdout)["text"]


def test_at_a_terminal(debug_run: Path, tmp_path: Path) -> None:
    screen = Terminal(debug_run, "chat", "--temperature", "9", "--max-new-tokens", "900", XDG_CACHE_HOME=str(tmp_path))
    try:
        assert "template tutor" in screen.until(">>> ")
        screen.type("half a ques")
        screen.until("half a ques")
        for _ in range(6):  # clears what is being typed; readline may lose one that comes before it waits again
            screen.type("\x03")
            with suppress(AssertionError):
                screen.until("ends the chat", seconds=10)
                break
        else:
            pytest.fail(screen.shown)
        screen.until(">>> ")
        screen.type(f"{QUESTION}\n")
        screen.until("7?\n")
        screen.until(" ")
        screen.type("\x03")  # stops the answer, not the program
        stopped = screen.until(">>> ")
        assert "(stopped;" in stopped and len(stopped) < 3000
        screen.type("\x1b[A")  # the question again
        screen.until(QUESTION)
        screen.type("\x15/frobnicate\n")
        screen.until("there is no such command")
        screen.type('"""Tom has 5 apples.\n')
        screen.until("... ")
        screen.type('How many?"""\n')
        screen.until("many?")
        screen.type("\x03\x03")
        screen.until(">>> ")
        screen.type("\x04")
        assert screen.process.wait(timeout=20) == 0
    finally:
        screen.close()
    kept = tmp_path / "mlxmath" / "chat_history"
    assert kept.read_text().splitlines()[0] == QUESTION and kept.stat().st_mode & 0o777 == 0o600


def test_ctrl_c_never_ends_a_persons_chat(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where it comes between the question and the answer."""
    typed = iter([QUESTION, QUESTION, "/quit"])
    done = []

    def interrupted(question: str, *_: object, **__: object) -> None:
        done.append(question)
        raise KeyboardInterrupt

    for stream in ("stdin", "stdout"):
        monkeypatch.setattr(f"sys.{stream}.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda _: next(typed))
    monkeypatch.setattr(terminal, "_do", interrupted)
    terminal.talk(None, remembers=False)  # type: ignore[arg-type]
    assert done == [QUESTION, QUESTION]
    assert capsys.readouterr().err.count("ends the chat") == 2


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
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = tmp_path / "mlxmath" / "chat_history"
    for number in range(3):
        with terminal._remembered(True) as note:
            for line in range(400):
                note(f"{number}\n {line}")
    lines = path.read_text().splitlines()
    assert len(lines) == 1000 and lines[0] == "0 200" and lines[-1] == "2 399"
    with terminal._remembered(False) as note:
        note("secret")
    assert "secret" not in path.read_text()
