"""Asks an endpoint many questions at once, and again where it fails, until each is answered or given up."""

import queue
import random
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from mlxmath.config.answering import DistillationConfig
from mlxmath.distillation.endpoint import Answer, Endpoint, RefusedError, TemporaryError
from mlxmath.distillation.pace import Pace
from mlxmath.distillation.questions import Task
from mlxmath.errors import MlxmathError
from mlxmath.runtime.console import say, warn

_LONGEST_BACKOFF_S = 60.0
_LONGEST_HOLD_S = 3600.0
_MOST_FAILED = 10
"""Questions given up in a row, all threads together, after which the endpoint is taken for dead."""


@dataclass(frozen=True)
class Outcome:
    """What became of a task: an answer, or the reason why there is none."""

    task: Task
    answer: Answer | None
    failure: str | None
    seconds: float
    attempts: int


def prompt(question: str, instruction: str) -> str:
    """What the teacher is asked."""
    return f"{question}\n\n{instruction}" if instruction.strip() else question


def ask_endpoint(
    endpoint: Endpoint,
    tasks: Sequence[Task],
    settings: DistillationConfig,
    seed_of: Callable[[Task], int | None],
    on_outcome: Callable[[Outcome], object],
) -> None:
    """Ask all tasks' questions.

    Args:
        endpoint: where.
        tasks: what is asked, in this order.
        settings: concurrency, pace, retries.
        seed_of: the seed to send with a task, if any.
        on_outcome: called in this thread with each outcome as it comes.

    Raises:
        MlxmathError: the endpoint answers nobody. What was under way has been waited for.
        KeyboardInterrupt: likewise; a second one does not wait.
    """
    asking = _Asking(endpoint, tasks, settings, seed_of)
    failed_in_a_row = 0
    with asking.interruptible():
        asking.start()
        while (found := asking.next()) is not None:
            if isinstance(found, BaseException):
                asking.end(found)
                continue
            on_outcome(found)
            failed_in_a_row = 0 if found.answer else failed_in_a_row + 1
            if failed_in_a_row >= _MOST_FAILED:
                asking.end(
                    MlxmathError(
                        f"--teacher-url {endpoint.url}: {failed_in_a_row} questions in a row got no answer (the last: "
                        f"{found.failure}); what was answered is kept. Go on later with --resume."
                    )
                )
    if asking.error is not None:
        raise asking.error


class _Asking:
    """The threads that ask, and what comes of it."""

    def __init__(
        self,
        endpoint: Endpoint,
        tasks: Sequence[Task],
        settings: DistillationConfig,
        seed_of: Callable[[Task], int | None],
    ) -> None:
        self.error: BaseException | None = None
        self._endpoint, self._settings, self._seed_of = endpoint, settings, seed_of
        self._waiting = deque(tasks)
        self._found: queue.SimpleQueue[Outcome | BaseException | None] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._pace = Pace(settings.requests_per_minute)
        self._alive = min(settings.concurrency or 8, len(tasks))

    def start(self) -> None:
        for _ in range(self._alive):
            threading.Thread(target=self._work, daemon=True).start()

    def next(self) -> Outcome | BaseException | None:
        """What comes next; None once all threads have ended."""
        while self._alive:
            found = self._found.get()
            if found is not None:
                return found
            self._alive -= 1
        return None

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Make the first Ctrl-C or SIGTERM one more thing that comes next: it never falls between two answers."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        usual = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def restore() -> None:
            for number, handler in usual.items():
                signal.signal(number, handler)

        def interrupt(*_: object) -> None:
            restore()
            self._found.put(KeyboardInterrupt())

        for number in usual:
            signal.signal(number, interrupt)
        try:
            yield
        finally:
            restore()

    def end(self, error: BaseException) -> None:
        """Begin nothing more; the first error is the one that counts."""
        if isinstance(error, KeyboardInterrupt):
            say("waiting for the answers under way; Ctrl-C again stops at once")
        self.error = self.error or error
        self._stop.set()

    def _work(self) -> None:
        try:
            while not self._stop.is_set():
                try:
                    task = self._waiting.popleft()
                except IndexError:
                    break
                outcome = self._ask(task)
                if outcome is not None:
                    self._found.put(outcome)
        except BaseException as error:
            self._found.put(error)
        finally:
            self._found.put(None)

    def _ask(self, task: Task) -> Outcome | None:
        """Ask until there is an answer; None if the run ends before that."""
        settings, start = self._settings, time.monotonic()
        content = prompt(task.question.text, settings.instruction)
        for attempt in range(1, settings.retries + 2):
            if not self._pace.wait(self._stop):
                return None
            try:
                answer = self._endpoint.ask(content, self._seed_of(task))
                return Outcome(task, answer, None, time.monotonic() - start, attempt)
            except RefusedError as error:
                return Outcome(task, None, str(error), time.monotonic() - start, attempt)
            except TemporaryError as error:
                reason = str(error)
                delay = self._delay(attempt, error.retry_after_s)
            if attempt <= settings.retries:
                warn(f"problem {task.question.id}: {reason}; asking again in {delay:.1f}s")
                self._stop.wait(delay)
        return Outcome(task, None, reason, time.monotonic() - start, attempt)

    def _delay(self, attempt: int, retry_after_s: float | None) -> float:
        """Seconds to wait: doubled each time, with jitter, and no less than the endpoint asks for."""
        backoff = min(_LONGEST_BACKOFF_S, self._settings.backoff_s * 2 ** (attempt - 1)) * random.uniform(0.5, 1)
        if retry_after_s is None:
            return backoff
        if retry_after_s > _LONGEST_HOLD_S:
            raise MlxmathError(
                f"--teacher-url {self._endpoint.url}: it asks to wait {retry_after_s:,.0f} s; what was answered is "
                "kept. Go on then with --resume."
            )
        self._pace.hold(retry_after_s)
        return max(retry_after_s, backoff)
