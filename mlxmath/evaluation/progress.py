"""How far an evaluation is: a bar on a terminal, lines in a log."""

import math
import time
from collections import deque
from collections.abc import Callable

from mlxmath.runtime import console
from mlxmath.runtime.console import duration, say

_RECENT = 32
"""Steps that tell the speed of late."""


class Progress:
    """Counts answers, right ones and tokens; shows accuracy so far, tokens a second and the time left.

    Args:
        label: of the contestant.
        total: answers in all.
        done: those that were there before.
        right: of these.
        clock: tells seconds.
    """

    def __init__(
        self, label: str, total: int, done: int, right: int, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.label, self.total, self.done, self.right, self.tokens = label, total, done, right, 0
        self._before, self._clock = done, clock
        self._num_ended = self._tokens_ended = self._num_under_way = self._ended_now = self._longest = 0
        self._recent: deque[tuple[float, int]] = deque(maxlen=_RECENT)
        self._progress = console.Progress(label, total, done, "answers", clock)

    def limit(self, max_tokens: int) -> None:
        """From now on no answer is longer."""
        self._longest = max_tokens

    def ended(self, num_tokens: int) -> None:
        """An answer has got its last token."""
        self._num_ended += 1
        self._ended_now += 1
        self._tokens_ended += num_tokens

    def answered(self, correct: bool) -> None:
        """An answer has been graded."""
        self.done += 1
        self.right += correct

    def step(self, num_tokens: int) -> None:
        """Each answer under way has got a token."""
        self.tokens += num_tokens
        self._num_under_way, self._ended_now = num_tokens - self._ended_now, 0
        self._recent.append((self._clock(), num_tokens))
        left_s = self.seconds_left
        self._progress.update(self.done - self._progress.done, self._state(), math.inf if left_s is None else left_s)

    @property
    def seconds_left(self) -> float | None:
        """The tokens that are to be expected, at the speed so far; at the speed of late once none is left to begin.

        None as long as no answer has ended and none is a quarter as long as the limit. An answer under way is on the
        average half as long as it will be, or as long as those that have ended if they are longer, and never longer
        than the limit. Those not begun are as long as the ones begun.
        """
        num = self._num_under_way
        to_begin = max(0, self.total - self._before - self._num_ended - num)
        under_way = max(0, self.tokens - self._tokens_ended)
        age = under_way / num if num else 0.0
        if not self._num_ended and 4 * age < self._longest:
            return None
        mean = self._tokens_ended / self._num_ended if self._num_ended else 0.0
        expected = min(self._longest, max(2 * age, mean))
        each = (self._tokens_ended + num * expected) / max(1, self._num_ended + num)
        seconds, tokens = self._progress.elapsed_s, self.tokens
        if not to_begin and len(self._recent) > 1:
            seconds = self._recent[-1][0] - self._recent[0][0]
            tokens = sum(count for _, count in self._recent) - self._recent[0][1]
        return (to_begin * each + num * max(0.0, expected - age)) * seconds / max(1, tokens)

    def _state(self) -> str:
        right = f"{100 * self.right / self.done:.1f} % right" if self.done else "nothing finished"
        return f"{right}, {self.tokens / max(self._progress.elapsed_s, 1e-9):,.0f} tok/s"

    def close(self) -> None:
        """Remove the bar; say how it ended."""
        self._progress.close()
        if self.done > self._before:
            say(f"{self.label}: {self.done:,} answers, {self._state()}, {duration(self._progress.elapsed_s)}")
