"""What a run tells people: lines on stderr, so that stdout carries only results."""

import sys

import click

_prefix = ""


def only_errors(prefix: str) -> None:
    """From now on say nothing but errors, each with `prefix`: this process is not the one that people watch."""
    global _prefix
    _prefix = prefix


def prefixed(text: str) -> str:
    """The line as this process prints it."""
    return _prefix + text


def say(text: str = "") -> None:
    """Print a line to stderr, above a progress bar if one is shown."""
    if not _prefix:
        _print(text)


def warn(text: str) -> None:
    """Print a warning line to stderr."""
    say(click.style("warning: ", fg="yellow") + text if sys.stderr.isatty() else f"warning: {text}")


def fail(text: str) -> None:
    """Print an error line to stderr."""
    _print(prefixed(f"error: {text}"))


def _print(text: str) -> None:
    if "tqdm" in sys.modules:
        from tqdm import tqdm

        tqdm.write(text, file=sys.stderr)
    else:
        click.echo(text, err=True)


def size(num_bytes: float) -> str:
    """`1234567` as `1.23 MB` (decimal units)."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} B" if unit == "B" else f"{num_bytes:.2f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.2f} TB"


def counted(number: int, noun: str) -> str:
    """`1 problem`, `1,234 problems`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """`3725` as `1h 02m`; `65` as `1m 05s`; `5` as `5.0s`."""
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m {rest:02d}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes:02d}m"
