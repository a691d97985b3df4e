"""A teacher behind an OpenAI-compatible endpoint. The key is sent in one header and is nowhere else."""

import asyncio
import json
import math
import os
import random
import signal
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from email.utils import parsedate_to_datetime
from typing import Any

import httpx2

from mlxmath.config.methods import DistillationConfig
from mlxmath.distillation.questions import Task, sample_seed
from mlxmath.distillation.teacher import Answer, OnOutcome, Refused, TryAgain, error_message, prompt, read_answer
from mlxmath.errors import InputError, MlxmathError
from mlxmath.runtime.console import say, warn
from mlxmath.runtime.ending import Terminated
from mlxmath.runtime.secrets import spelt

_MOST_BYTES, _MOST_ERROR_BYTES = 64 << 20, 1 << 16
_TRIED_AGAIN = (408, 409, 425, 429)
"""Besides 5xx."""
_HINTS = {
    401: "name the environment variable with the right key: --teacher-key-env",
    402: "the account has no credit",
    403: "the key may not use this model",
    404: "check the address and --teacher-model",
    405: "check the address",
}
"""Statuses after which no question will be answered."""
_LOCAL = ("localhost", "127.0.0.1", "::1")
_SHORTEST_KEY = 8
"""Shorter ones are placeholders ("none") that local servers want, and words that solutions may hold."""
_LONGEST_BACKOFF_S, _LONGEST_HOLD_S = 60.0, 3600.0
_MOST_FAILED = 10
"""Questions given up in a row after which the endpoint is taken for dead."""


class Endpoint:
    """Where to ask, and how."""

    def __init__(self, settings: DistillationConfig) -> None:
        """Take the key out of the environment.

        Raises:
            InputError: the model has no name, the address is none, or the variable is not set.
        """
        self.settings, self.url = settings, settings.teacher_url or ""
        if settings.teacher_model is None:
            raise InputError("--teacher-url needs --teacher-model, the endpoint's name of the model.")
        try:
            self._host = httpx2.URL(self.url).host
            self._host.encode("idna")
        except (httpx2.InvalidURL, UnicodeError) as error:
            raise InputError(f"--teacher-url {self.url}: no such address can be ({error}).") from None
        self._key = None
        if settings.teacher_key_env is not None:
            self._key = os.environ.get(settings.teacher_key_env, "").strip()
            if not self._key or not self._key.isascii() or not self._key.isprintable():
                raise InputError(
                    f"--teacher-key-env: the environment variable {settings.teacher_key_env} holds no key; export it "
                    "first."
                )
            if self.url.startswith("http:") and self._host not in _LOCAL:
                warn(f"--teacher-url {self.url}: the key crosses the network unencrypted; use https.")
        self._spelt = spelt(self._key) if self._key and len(self._key) >= _SHORTEST_KEY else None
        self._body = settings.model_dump(include={"temperature", "top_p", "max_tokens"})
        self._body |= json.loads(settings.teacher_extra or "{}")

    @property
    def identity(self) -> dict[str, Any]:
        """Everything about it that its answers depend on; never the key."""
        settings = self.settings
        return {"url": self.url, "model": settings.teacher_model, **self._body, "instruction": settings.instruction}

    def ask(self, tasks: Sequence[Task], on_outcome: OnOutcome, _on_step: object = None) -> None:
        """Ask all tasks' questions, many at once, again where that fails; each has one outcome.

        Raises:
            MlxmathError: the endpoint answers nobody. What was under way has been waited for.
            KeyboardInterrupt, Terminated: likewise; a second one does not wait.
        """
        asking = _Asking(self, on_outcome).run(tasks)
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            asyncio.run(asking)
        else:  # in a notebook
            with ThreadPoolExecutor(1) as thread:
                thread.submit(asyncio.run, asking).result()

    def client(self) -> httpx2.AsyncClient:
        """What sends requests: each over its own connection, through no proxy to this machine, on to no other host."""
        key = {} if self._key is None else {"Authorization": f"Bearer {self._key}"}
        headers = {"User-Agent": "mlxmath", "Accept": "application/json", "Content-Type": "application/json", **key}
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
        try:
            return httpx2.AsyncClient(
                headers=headers, timeout=None, limits=limits, trust_env=self._host not in _LOCAL, follow_redirects=False
            )
        except (ImportError, ValueError) as error:
            raise MlxmathError(f"the proxy that the environment names cannot be used: {error}.") from None

    async def request(self, client: httpx2.AsyncClient, content: str, seed: int | None) -> Answer:
        """Ask once; `timeout_s` bounds the whole of it.

        Raises:
            TryAgain: time-out, cut connection, overload or an unusable reply.
            Refused: this question is refused, however often it is asked.
            MlxmathError: no question will be answered: a wrong key, model or address.
        """
        url = self.url if self.url.endswith("/chat/completions") else f"{self.url}/chat/completions"
        body = {"model": self.settings.teacher_model, "messages": [{"role": "user", "content": content}], "seed": seed}
        sent = json.dumps({name: value for name, value in (body | self._body).items() if value is not None})
        reply, content_read = None, bytearray()
        try:
            async with asyncio.timeout(self.settings.timeout_s), client.stream("POST", url, content=sent) as reply:
                most = _MOST_BYTES if reply.is_success else _MOST_ERROR_BYTES
                async for piece in reply.aiter_bytes():
                    content_read += piece
                    if len(content_read) > most:
                        break
            if len(content_read) > most and not reply.is_success:
                content_read.clear()  # as below
        except (TimeoutError, httpx2.HTTPError) as error:
            if reply is None or reply.is_success:
                raise self._broken(error) from None
            content_read.clear()  # the status says enough, and half a body may hold half a key
        text = self._hide(content_read.decode("utf-8", "replace"))
        if not reply.is_success:
            raise self._refusal(reply.status_code, reply.headers.get("Retry-After"), error_message(text))
        if len(content_read) > most:
            raise TryAgain(f"a reply of more than {most >> 20} MB")
        return read_answer(text)

    def _broken(self, error: Exception) -> Exception:
        """What a request means that brought no whole reply."""
        if isinstance(error, TimeoutError):
            return TryAgain(f"no answer within {self.settings.timeout_s:g} s")
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, ssl.SSLCertVerificationError):
                return MlxmathError(f"--teacher-url {self.url}: its certificate is not valid ({cause.verify_message}).")
            cause = cause.__cause__ or cause.__context__
        return TryAgain(f"connection: {error_message(self._hide(str(error))) or type(error).__name__}")

    def _refusal(self, status: int, wait: str | None, said: str) -> Exception:
        """What a status means that is no success."""
        reason = f"HTTP {status}{f': {said}' if said else ''}"
        if status in _TRIED_AGAIN or status >= 500:
            return TryAgain(reason, retry_after(wait, time.time()))
        if status < 400:
            reason = f"it sends requests on to another address ({reason})"
        hint = _HINTS.get(status, "name that one" if status < 400 else None)
        return MlxmathError(f"--teacher-url {self.url}: {reason}; {hint}.") if hint else Refused(reason)

    def _hide(self, text: str) -> str:
        """The text without the key."""
        return text if self._spelt is None else self._spelt.sub("[key]", text)


class _Asking:
    """One run of questions to an endpoint."""

    def __init__(self, endpoint: Endpoint, on_outcome: OnOutcome) -> None:
        self._endpoint, self._settings, self._on_outcome = endpoint, endpoint.settings, on_outcome
        self._error: BaseException | None = None
        self._ended = asyncio.Event()
        self._next_turn = 0.0
        """When the next request may be made, of `time.monotonic`."""
        self._failed_in_a_row = 0

    async def run(self, tasks: Sequence[Task]) -> None:
        waiting = iter(tasks)
        count = min(self._settings.concurrency or 8, len(tasks))
        async with self._endpoint.client() as client:
            work = asyncio.gather(*(self._work(client, waiting) for _ in range(count)))
            with _interrupts(lambda reason: work.cancel() if self._ended.is_set() else self._end(reason)):
                try:
                    await work
                except asyncio.CancelledError:
                    raise self._error or KeyboardInterrupt from None
        if self._error is not None:
            raise self._error

    def _end(self, error: BaseException) -> None:
        """Begin nothing more; the first error is the one that counts."""
        if isinstance(error, KeyboardInterrupt | Terminated):
            say("waiting for the answers under way; Ctrl-C again stops at once")
        self._error = self._error or error
        self._ended.set()

    async def _work(self, client: httpx2.AsyncClient, waiting: Iterator[Task]) -> None:
        for task in waiting:
            try:
                outcome = await self._ask(client, task)
                if outcome is None:
                    return
                self._on_outcome(task, outcome)
            except MlxmathError as error:
                self._end(error)
                return
            self._failed_in_a_row = self._failed_in_a_row + 1 if isinstance(outcome, str) else 0
            if self._failed_in_a_row >= _MOST_FAILED:
                self._end(
                    MlxmathError(
                        f"--teacher-url {self._endpoint.url}: {self._failed_in_a_row} questions in a row got no answer "
                        f"(the last: {outcome}); what was answered is kept. Go on later with --resume."
                    )
                )

    async def _ask(self, client: httpx2.AsyncClient, task: Task) -> Answer | str | None:
        """Ask until there is an answer, or the reason why there is none; None if the run ends before that."""
        settings, start = self._settings, time.monotonic()
        content = prompt(task.question.text, settings.instruction)
        seed = None if settings.seed is None else sample_seed(settings.seed, task)
        reason = ""
        for attempt in range(1, settings.retries + 2):
            if not await self._turn():
                return None
            try:
                answer = await self._endpoint.request(client, content, seed)
                return replace(answer, seconds=time.monotonic() - start, attempts=attempt)
            except Refused as error:
                return str(error)
            except TryAgain as error:
                reason, delay = str(error), self._delay(attempt, error.retry_after_s)
            if attempt <= settings.retries:
                warn(f"problem {task.question.id}: {reason}; asking again in {delay:.1f}s")
                await self._pause(delay)
        return reason

    def _delay(self, attempt: int, retry_after_s: float | None) -> float:
        """Seconds to wait: doubled each time, with jitter, and no less than the endpoint asks everybody to wait."""
        backoff = min(_LONGEST_BACKOFF_S, self._settings.backoff_s * 2 ** (attempt - 1)) * random.uniform(0.5, 1)
        if retry_after_s is None:
            return backoff
        if retry_after_s > _LONGEST_HOLD_S:
            raise MlxmathError(
                f"--teacher-url {self._endpoint.url}: it asks to wait {retry_after_s:,.0f} s; what was answered is "
                "kept. Go on then with --resume."
            )
        self._next_turn = max(self._next_turn, time.monotonic() + retry_after_s)
        return max(retry_after_s, backoff)

    async def _turn(self) -> bool:
        """Wait until a request may be made; False if the run ends first."""
        while (delay := self._next_turn - time.monotonic()) > 0 and not self._ended.is_set():
            await self._pause(delay)
        self._next_turn = time.monotonic() + 60 / (self._settings.requests_per_minute or math.inf)
        return not self._ended.is_set()

    async def _pause(self, seconds: float) -> None:
        """Wait so long, or until the run ends."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._ended.wait(), seconds)


@contextmanager
def _interrupts(handle: Callable[[BaseException], object]) -> Iterator[None]:
    """Have the loop give `handle` each Ctrl-C, SIGTERM or SIGHUP, which then never falls between two answers."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    found = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    before = {number: handler for number, handler in found.items() if handler != signal.SIG_IGN}  # as under nohup
    for number in before:
        reason: BaseException = KeyboardInterrupt() if number == signal.SIGINT else Terminated(number)
        loop.add_signal_handler(number, handle, reason)  # wakes the loop, which a handler of Python's alone may not
    try:
        yield
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)


def retry_after(value: str | None, now: float) -> float | None:
    """Seconds that a Retry-After header (a number or a date) asks to wait; None if it says nothing."""
    for read in (float, lambda date: parsedate_to_datetime(date).timestamp() - now):
        with suppress(ValueError, OverflowError):
            seconds = read(value or "")
            return seconds if 0 <= seconds < math.inf else None
    return None
