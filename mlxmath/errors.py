"""The errors that a user sees. A front door prints them as one line and exits with their code."""

from collections.abc import Iterable


class MlxmathError(Exception):
    """A failure with a message for the user: the file or option, what was expected, what was found, what to do."""

    exit_code = 1


class InputError(MlxmathError):
    """The user asked for something that cannot be: a wrong option value, file, column or name (exit code 2)."""

    exit_code = 2


class OtherRunError(InputError):
    """What is to be continued was made from something else.

    Attributes:
        names: what differs.
    """

    def __init__(self, text: str, names: Iterable[str]) -> None:
        super().__init__(text)
        self.names = frozenset(names)
