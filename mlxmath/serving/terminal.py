"""The loop of `mlxmath chat`: reads questions and commands, shows answers as they come."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress

from mlxmath.errors import InputError, MlxmathError
from mlxmath.generation.engine import Completion
from mlxmath.runtime.console import counted, fail, put, say, warn
from mlxmath.runtime.files import atomic_write, user_cache
from mlxmath.serving.conversation import Conversation, Pieces
from mlxmath.serving.readable import Readable

COMMANDS = {
    "/base": "ask the untuned model the last question, after the same turns",
    "/clear": "forget the conversation and begin anew",
    "/source": "the last answer as the model wrote it, formulas in LaTeX",
    "/help": "this list",
    "/quit": "end (or Ctrl-D)",
}
_SEVERAL_LINES = '"""'
_PROMPT, _MORE = ">>> ", "... "
_MOST_REMEMBERED = 1000


def talk(conversation: Conversation, *, remembers: bool = True) -> None:
    """Answer what is typed, or what comes through a pipe, a question a line, until it ends.

    Ctrl-C at a terminal stops an answer, and clears a question that is being typed.

    Args:
        conversation: that goes on.
        remembers: keep what is typed at a terminal, for the arrow keys, from one chat to the next.

    Raises:
        InputError: a question that comes through a pipe is too long, or a command unknown.
    """
    is_person = sys.stdin.isatty() and sys.stdout.isatty()
    for stream in (sys.stdin, sys.stdout):
        with suppress(AttributeError, ValueError):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    with _remembered(remembers and is_person) as note:
        while True:
            try:
                if not _turn(conversation, note, is_person=is_person):
                    return
            except KeyboardInterrupt:  # at the prompt, or between it and the answer
                if not is_person:
                    raise
                put("")
                say("Ctrl-D or /quit ends the chat.")


def _turn(conversation: Conversation, note: Callable[[str], None], *, is_person: bool) -> bool:
    """Read a question and do what it says; False if the chat ends."""
    try:
        question = _read(is_person)
    except EOFError:
        if is_person:
            put("")
        return False
    if question:
        note(question)
    if question == "/quit":
        return False
    try:
        if question:
            _do(question, conversation, is_person=is_person)
    except InputError as error:
        if not is_person:
            raise
        fail(str(error))
    return True


def _read(is_person: bool) -> str:
    """A question: a line, or several between lines of three quotes.

    Raises:
        EOFError: there is none any more.
    """
    line = input(_PROMPT if is_person else "").strip()
    if not line.startswith(_SEVERAL_LINES):
        return line
    lines = [line.removeprefix(_SEVERAL_LINES)]
    while not lines[-1].rstrip().endswith(_SEVERAL_LINES):
        lines.append(input(_MORE if is_person else ""))
    return "\n".join(lines).rstrip().removesuffix(_SEVERAL_LINES).strip()


def _do(question: str, conversation: Conversation, *, is_person: bool) -> None:
    """Answer a question, or do what a command says."""
    if not question.startswith("/"):
        _show(lambda stopped: conversation.ask(question, stopped), conversation, is_person)
    elif question == "/base":
        say("the base model:")
        _show(conversation.ask_base, conversation, is_person)
    elif question == "/clear":
        conversation.clear()
        say("the conversation begins anew.")
    elif question == "/source":
        if not conversation.messages:
            raise InputError("/source: there is no answer yet.")
        shown = Readable(formulas=False)
        put(shown.feed(conversation.messages[-1].content) + shown.finish())
    elif question == "/help":
        for name, what in COMMANDS.items():
            put(f"{name:8} {what}")
        put(f"{_SEVERAL_LINES:8} begins and ends a question of several lines")
    else:
        raise InputError(f"{question.split()[0][:40]!r}: there is no such command; there are {', '.join(COMMANDS)}.")


def _show(ask: Callable[[Callable[[], bool]], Pieces], conversation: Conversation, is_person: bool) -> None:
    """Write an answer as it comes, and what there is to say about it."""
    shown = Readable(formulas=_can_show_formulas())
    num_left_out, completion, is_cut_short = conversation.num_left_out, None, False
    with _stoppable(is_person) as is_stopped, closing(ask(is_stopped)) as pieces:
        try:
            for piece in pieces:
                if conversation.num_left_out > num_left_out:
                    num_left_out = conversation.num_left_out
                    say(f"the context is full: the {counted(num_left_out, 'oldest message')} are left out from now on.")
                if isinstance(piece, Completion):
                    completion = piece
                else:
                    _write(shown.feed(piece))
        except KeyboardInterrupt:
            if not is_person:
                raise
            is_cut_short = True
        is_cut_short |= is_stopped()
    _write(shown.finish() + "\n")
    if is_cut_short:
        say("(stopped; the conversation goes on from what was written)")
    elif completion and completion.finish_reason == "length":
        say(f"(cut off after {counted(len(completion.tokens), 'token')}; see --max-new-tokens)")


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _can_show_formulas() -> bool:
    """Whether a person looks at a screen that has the characters."""
    return sys.stdout.isatty() and (sys.stdout.encoding or "").lower().replace("-", "").startswith("utf")


@contextmanager
def _stoppable(is_person: bool) -> Iterator[Callable[[], bool]]:
    """Ctrl-C is noted, and interrupts only if it comes again: nothing breaks off in the middle of a token."""
    stopped = False

    def note(_signal: int, _frame: object) -> None:
        nonlocal stopped
        if stopped:
            raise KeyboardInterrupt
        stopped = True

    if not is_person:
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: stopped
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _remembered(remembers: bool) -> Iterator[Callable[[str], None]]:
    """What was typed in earlier chats can be had by the arrow keys; gives what notes a further line.

    It is kept where only the user can read it. A line with several lines in it is kept as one.
    """
    lines: list[str] = []
    path = user_cache() / "chat_history"
    with suppress(ImportError):
        import readline  # also gives `input` its keys

        if remembers:
            readline.clear_history()
            with suppress(OSError):
                for line in path.read_text(encoding="utf-8", errors="replace").splitlines()[-_MOST_REMEMBERED:]:
                    readline.add_history(line)
    try:
        yield lambda line: lines.append(" ".join(line.split()))
    finally:
        if remembers and lines:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                earlier = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
                mask = os.umask(0o077)
                try:
                    atomic_write(path, "\n".join([*earlier, *lines][-_MOST_REMEMBERED:]) + "\n")
                finally:
                    os.umask(mask)
            except (OSError, MlxmathError) as error:
                warn(f"what was typed is not remembered: {error}")
