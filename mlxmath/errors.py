"""The errors that a user sees. A front door prints them as one line and exits with their code."""


class MlxmathError(Exception):
    """A failure with a message for the user: the file or option, what was expected, what was found, what to do."""

    exit_code = 1


class InputError(MlxmathError):
    """The user asked for something that cannot be: a wrong option value, file, column or name (exit code 2)."""

    exit_code = 2
