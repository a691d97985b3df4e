"""How far an evaluation is: a bar on a terminal, lines in a log."""

import sys
import time

from tqdm import tqdm

from mlxmath.console import duration, say

_EVERY_S = 10.0


class Progress:
    """Counts answers, right ones and tokens; shows accuracy so far, tokens a second and the time left."""

    def __init__(self, label: str, total: int, done: int, right: int) -> None:
        self.label, self.total, self.done, self.right, self.tokens = label, total, done, right, 0
        self._before = done
        self._start = self._said = time.perf_counter()
        self._bar = (
            tqdm(total=total, initial=done, desc=label, unit="answer", dynamic_ncols=True)
            if sys.stderr.isatty()
            else None
        )

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.perf_counter() - self._start

    def answered(self, correct: bool) -> None:
        """An answer has been graded."""
        self.done += 1
        self.right += correct
        if self._bar is not None:
            self._bar.update()

    def step(self, num_tokens: int) -> None:
        """Tokens have been made."""
        self.tokens += num_tokens
        if self._bar is not None:
            self._bar.set_postfix_str(self._state(), refresh=False)
        elif time.perf_counter() - self._said > _EVERY_S:
            self._said = time.perf_counter()
            new = self.done - self._before
            left = f", {duration(self.seconds / new * (self.total - self.done))} left" if new else ""
            say(f"{self.label}: {self.done:,} of {self.total:,}, {self._state()}{left}")

    def _state(self) -> str:
        right = f"{100 * self.right / self.done:.1f} % right" if self.done else "nothing finished"
        return f"{right}, {self.tokens / max(self.seconds, 1e-9):,.0f} tok/s"

    def close(self) -> None:
        """Remove the bar; say how it ended."""
        if self._bar is not None:
            self._bar.close()
        if self.done > self._before:
            say(f"{self.label}: {self.done:,} answers, {self._state()}, {duration(self.seconds)}")
