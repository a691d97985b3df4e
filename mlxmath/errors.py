"""The errors that a user sees. A front door prints them as one line and exits with their code."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_LONG_WORD, _LONG_TEXT = 600, 4_000
"""Characters: beyond them a word, a whole message, loses its middle. It may repeat what a file of megabytes says."""


def shortened(text: str) -> str:
    """A message without the middle of its very long words, and without its own if it is very long itself."""
    text = re.sub(rf"\S{{{_LONG_WORD},}}", lambda word: _without_middle(word[0], _LONG_WORD), text)
    return _without_middle(text, _LONG_TEXT)


def _without_middle(text: str, most: int) -> str:
    rest = len(text) - most
    return text if rest <= 0 else f"{text[: most * 2 // 3]} … ({rest:,} characters) … {text[-most // 3 :]}"


class MlxmathError(Exception):
    """A failure with a message for the user: the file or option, what was expected, what was found, what to do."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(shortened(message))


class InputError(MlxmathError):
    """The user asked for something that cannot be: a wrong option value, file, column or name (exit code 2)."""

    exit_code = 2


@contextmanager
def foreign(what: str | Callable[[BaseException], str], remedy: str = "") -> Iterator[None]:
    """Let a library take what others have written; whatever it raises becomes one line.

    Libraries raise of all kinds for a file that is not theirs (tokenizers nothing more special than Exception, and
    where its Rust panics not even that), so that no list of kinds would do.

    Args:
        what: fails, for example "the tokenizer in mlx_model cannot be loaded"; or the whole line, made of the error.
        remedy: what to do, as a sentence.

    Raises:
        MlxmathError: something was raised. What says so already, a lack of memory and a wish to end stay what they are.
    """
    try:
        yield
    except (MlxmathError, MemoryError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        if callable(what):
            raise MlxmathError(what(error)) from error
        said = next((line.strip() for line in str(error).splitlines() if line.strip()), "nothing more")
        raise MlxmathError(f"{what}: {type(error).__name__}: {said.rstrip('.')[:300]}. {remedy}") from error
