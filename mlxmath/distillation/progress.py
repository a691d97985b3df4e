"""How far the teacher is, and what it has cost: a bar on a terminal, lines in a log."""

import sys
import time

from tqdm import tqdm

from mlxmath.config.answering import DistillationConfig
from mlxmath.runtime.console import duration, say

_EVERY_S = 10.0


def cost(settings: DistillationConfig, prompt_tokens: int, completion_tokens: int) -> float:
    """In the currency of the prices."""
    return (settings.price_in * prompt_tokens + settings.price_out * completion_tokens) / 1e6


class Progress:
    """Counts answers, failures and tokens, those of earlier processes included."""

    def __init__(self, settings: DistillationConfig, total: int, done: int, tokens: tuple[int, int]) -> None:
        self.total, self.done, self.failed = total, done, 0
        self.prompt_tokens, self.completion_tokens = tokens
        self._settings, self._before = settings, done
        self._start = self._said = time.perf_counter()
        self._bar = (
            tqdm(total=total, initial=done, desc="distill", unit="answer", dynamic_ncols=True)
            if sys.stderr.isatty()
            else None
        )

    def answered(self, prompt_tokens: int, completion_tokens: int) -> None:
        """An answer has been written."""
        self.done += 1
        self.prompt_tokens += prompt_tokens
        self.completion_tokens += completion_tokens
        if self._bar is not None:
            self._bar.update()
        self.show()

    def show(self, _: int = 0) -> None:
        """Refresh the bar, or say a line now and then."""
        if self._bar is not None:
            self._bar.set_postfix_str(self._state(), refresh=False)
        elif time.perf_counter() - self._said > _EVERY_S:
            self._said = time.perf_counter()
            new = self.done - self._before
            seconds = self._said - self._start
            left = f", {duration(seconds / new * (self.total - self.done))} left" if new else ""
            say(f"distill: {self.done:,} of {self.total:,}, {self._state()}{left}")

    def close(self) -> None:
        """Remove the bar; say how it ended."""
        if self._bar is not None:
            self._bar.close()
        spent = duration(time.perf_counter() - self._start)
        say(f"distill: {self.done:,} of {self.total:,} answered, {self._state()}, {spent}")

    def _state(self) -> str:
        parts = [f"{self.failed:,} failed"] if self.failed else []
        parts.append(f"{self.prompt_tokens:,} tokens in, {self.completion_tokens:,} out")
        if self._settings.price_in or self._settings.price_out:
            parts.append(f"cost {cost(self._settings, self.prompt_tokens, self.completion_tokens):,.4f}")
        return ", ".join(parts)
