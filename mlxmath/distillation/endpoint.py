"""One question to an OpenAI-compatible endpoint. The key is sent in a header and is nowhere else."""

import http.client
import json
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from mlxmath.errors import MlxmathError
from mlxmath.runtime.records import parse_json

_MOST_BYTES = 64 << 20
_PIECE = 1 << 16
_RETRIED = frozenset({408, 409, 425, 429})
"""Besides 5xx."""
_FATAL = frozenset({401, 402, 403, 404, 405})
_LOCAL = ("localhost", "127.0.0.1", "::1")
_HIDDEN = "[key]"
_SHORTEST_KEY = 8
"""Shorter ones are placeholders ("none") that local servers want, and words that solutions may hold."""


class TemporaryError(Exception):
    """No answer this time; `retry_after_s` is what the endpoint asks for."""

    def __init__(self, reason: str, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class RefusedError(Exception):
    """The endpoint does not answer this question, however often it is asked."""


@dataclass(frozen=True)
class Answer:
    """What a teacher wrote, its reasoning in front as `<think>…</think>`."""

    text: str
    finish_reason: str
    """"stop", "length" (cut off at the token limit), or the endpoint's own word."""
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Endpoint:
    """Where to ask, and with what settings."""

    url: str
    model: str
    settings: Mapping[str, Any]
    """Of a request's body: temperature, max_tokens …; None takes a field out."""
    timeout_s: float
    key: str | None = field(default=None, repr=False)

    @property
    def is_plain_text_abroad(self) -> bool:
        """Whether a key would cross the network unencrypted."""
        parts = urlsplit(self.url)
        return self.key is not None and parts.scheme == "http" and parts.hostname not in _LOCAL

    def ask(self, content: str, seed: int | None = None) -> Answer:
        """Ask once.

        Raises:
            TemporaryError: time-out, cut connection, overload or an unusable reply: ask again.
            RefusedError: this question is refused.
            MlxmathError: no question will be answered: a wrong key, model or address.
        """
        body: dict[str, Any] = {"model": self.model, "messages": [{"role": "user", "content": content}]}
        body |= {} if seed is None else {"seed": seed}
        body = {name: value for name, value in (body | dict(self.settings)).items() if value is not None}
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "mlxmath"}
        if self.key is not None:
            headers["Authorization"] = f"Bearer {self.key}"
        url = self.url if self.url.endswith("/chat/completions") else f"{self.url}/chat/completions"
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)
        try:
            return read_answer(self._hide(self._send(request)))
        except urllib.error.HTTPError as error:
            raise self._refusal(error) from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, ssl.SSLCertVerificationError):
                raise MlxmathError(f"--teacher-url {self.url}: its certificate is not valid ({reason}).") from None
            if isinstance(reason, TimeoutError):
                raise TemporaryError(f"no answer within {self.timeout_s:g} s") from None
            raise TemporaryError(f"connection: {reason or type(error).__name__}") from None

    def _send(self, request: urllib.request.Request) -> bytes:
        handlers: list[urllib.request.BaseHandler] = [_NoRedirect()]
        if urlsplit(self.url).hostname in _LOCAL:
            handlers.append(urllib.request.ProxyHandler({}))
        end = time.monotonic() + self.timeout_s
        with urllib.request.build_opener(*handlers).open(request, timeout=self.timeout_s) as reply:
            expected = reply.headers.get("Content-Length")
            pieces, total = [], 0
            while piece := reply.read1(_PIECE):
                pieces.append(piece)
                total += len(piece)
                if time.monotonic() > end:
                    raise TimeoutError
                if total > _MOST_BYTES:
                    raise TemporaryError(f"a reply of more than {_MOST_BYTES >> 20} MB")
        if expected is not None and expected.isdigit() and total < int(expected):
            raise TemporaryError(f"connection: cut after {total:,} of {int(expected):,} bytes")
        return b"".join(pieces)

    def _hide(self, content: bytes) -> str:
        text = content.decode("utf-8", "replace")
        return text.replace(self.key, _HIDDEN) if self.key and len(self.key) >= _SHORTEST_KEY else text

    def _refusal(self, error: urllib.error.HTTPError) -> Exception:
        try:
            said = _said(self._hide(error.read(_PIECE)))
        except (OSError, http.client.HTTPException):
            said = ""
        reason = f"HTTP {error.code}{f': {said}' if said else ''}"
        if error.code in _RETRIED or error.code >= 500:
            return TemporaryError(reason, retry_after(error.headers.get("Retry-After"), time.time()))
        if error.code < 400:
            return MlxmathError(
                f"--teacher-url {self.url}: it sends requests on to another address ({reason}); name that one."
            )
        if error.code in _FATAL:
            hint = {
                401: "name the environment variable with the right key: --teacher-key-env",
                403: "the key may not use this model",
                402: "the account has no credit",
                404: f"check the address and --teacher-model {self.model}",
            }.get(error.code, "check the address")
            return MlxmathError(f"--teacher-url {self.url}: {reason}; {hint}.")
        return RefusedError(reason)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Another host never gets the key."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Follow nothing."""


def read_answer(text: str) -> Answer:
    """The answer in a chat completion's JSON.

    Raises:
        TemporaryError: it is not one.
    """
    try:
        reply = parse_json(text)
    except ValueError:
        if text.lstrip().startswith(("data:", "event:")):
            raise TemporaryError("the reply is a stream, though none was asked for") from None
        raise TemporaryError("the reply is not JSON") from None
    choices = reply.get("choices") if isinstance(reply, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        said = _said(text) if isinstance(reply, dict) and "error" in reply else ""
        raise TemporaryError(f"the reply holds no answer{f': {said}' if said else ''}")
    content, thought = _parts(message.get("content"))
    reasoning = next((r for name in ("reasoning_content", "reasoning") if isinstance(r := message.get(name), str)), "")
    usage = reply.get("usage") if isinstance(reply.get("usage"), dict) else {}
    reason = choice.get("finish_reason")
    return Answer(
        with_thinking(content, reasoning or thought, finished=reason != "length"),
        reason if isinstance(reason, str) else "stop",
        _count(usage.get("prompt_tokens")),
        _count(usage.get("completion_tokens")),
    )


def with_thinking(content: str, reasoning: str = "", *, finished: bool = True) -> str:
    """A text whose reasoning, if any, stands first between `<think>` and `</think>`.

    Args:
        content: the answer. If it closes a thinking part that the prompt has opened, this is opened.
        reasoning: of endpoints that send it apart.
        finished: False if the token limit was reached: reasoning that nothing follows is then left open.
    """
    if reasoning.strip():
        closed = finished or content.strip()
        return f"<think>\n{reasoning.strip()}\n" + (f"</think>\n\n{content.strip()}" if closed else "")
    if "</think>" in content and "<think>" not in content.partition("</think>")[0]:
        return f"<think>\n{content.lstrip()}".strip()
    return content.strip()


def retry_after(value: str | None, now: float) -> float | None:
    """Seconds that a Retry-After header (a number or a date) asks to wait; None if it says nothing."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - now
        except (ValueError, OverflowError):
            return None
    return seconds if 0 <= seconds < float("inf") else None


def _parts(content: Any) -> tuple[str, str]:
    """The text and the reasoning of a message's content: a text, or a list of typed parts."""
    if not isinstance(content, list):
        return (content if isinstance(content, str) else ""), ""
    texts, thoughts = [], []
    for part in content:
        if isinstance(part, dict) and part.get("type") == "thinking":
            inner = part.get("thinking")
            thoughts.append(_parts(inner)[0])
        elif isinstance(part, dict) and isinstance(part.get("text"), str):
            texts.append(part["text"])
    return "".join(texts), "".join(thoughts)


def _count(value: Any) -> int:
    return value if isinstance(value, int) and value >= 0 else 0


def _said(text: str) -> str:
    """The message of an error's body, in one short line."""
    try:
        found = parse_json(text)
        found = found.get("error", found) if isinstance(found, dict) else found
        found = found.get("message", found) if isinstance(found, dict) else found
    except ValueError:
        found = text
    return " ".join(str(found).split())[:200]
