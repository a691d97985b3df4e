"""What a GRPO run shows on a terminal: one panel that is drawn again as the run goes on."""

import sys
from collections import deque

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

_BARS = "▁▂▃▄▅▆▇█"
_HISTORY = 24
"""Values that a trend shows."""
_QUESTION, _COMPLETION = 200, 500
"""Characters of the example."""
_TICKS_PER_S = 2


class LiveView:
    """A panel of figures, with their trends, and one completion with its grade.

    Lines that are printed meanwhile stand above it.

    Args:
        console: a terminal.
        total_steps: planned.
    """

    def __init__(self, console: Console, total_steps: int) -> None:
        self._progress = f"0/{total_steps} steps"
        self._figures: dict[str, tuple[str, deque[float]]] = {}
        self._example: RenderableType = ""
        self._live = Live(
            console=console, get_renderable=self.render, refresh_per_second=_TICKS_PER_S, redirect_stdout=False
        )

    def __enter__(self) -> "LiveView":
        self._live.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the last panel on the terminal."""
        self._live.__exit__(None, None, None)

    def show(self, figures: dict[str, tuple[float, str]], progress: str) -> None:
        """New figures: of each its value, for the trend, and how it is written; and how far the run is."""
        for name, (value, text) in figures.items():
            _, history = self._figures.get(name, ("", deque[float](maxlen=_HISTORY)))
            history.append(value)
            self._figures[name] = (text, history)
        self._progress = progress
        self._live.refresh()

    def show_example(self, question: str, completion: str, verdict: str, *, right: bool) -> None:
        """A completion and its grade."""
        self._example = Group(
            Text(_cut(question, _QUESTION), style="dim"),
            Text(_cut(completion, _COMPLETION)),
            Text(f"{'✓' if right else '✗'} {verdict}", style="green" if right else "red"),
        )

    def render(self) -> RenderableType:
        """The panel as it is now."""
        table = Table.grid(padding=(0, 2))
        table.add_column(style="bold")
        table.add_column(justify="right")
        table.add_column(style="cyan")
        for name, (text, history) in self._figures.items():
            table.add_row(escape(name), text, trend(history))
        return Panel(Group(table, "", self._example), title=self._progress, title_align="left")


def trend(values: "deque[float]") -> str:
    """A value as a bar each, from the lowest to the highest."""
    known = [value for value in values if value == value]
    if len(known) < 2 or min(known) == max(known):
        return ""
    low, height = min(known), max(known) - min(known)
    return "".join(_BARS[min(7, int(8 * (value - low) / height))] for value in known)


def terminal() -> Console | None:
    """Standard error, where it is a terminal."""
    return Console(stderr=True) if sys.stderr.isatty() else None


def _cut(text: str, length: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1] + "…"
