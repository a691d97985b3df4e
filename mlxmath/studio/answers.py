"""A question to a served model: its answer as it comes, then the whole of it, graded."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx2

from mlxmath.errors import InputError, MlxmathError
from mlxmath.grading import Grade, grade
from mlxmath.parsing import parse_json
from mlxmath.studio.model_server import Server
from mlxmath.studio.place import Studio
from mlxmath.studio.tuned import Adapter, adapter

MOST_TOKENS, HOTTEST = 32_768, 2.0
MOST_CONTESTANTS = 5
"""A browser opens six connections to a server, and one is left for the rest of the page."""
_LONGEST = 2_000_000
"""Characters of a question, and of an answer."""
_LOOK_S = 0.2


@dataclass(frozen=True)
class Question:
    """What all are asked, and how they answer."""

    model: str
    adapters: tuple[Adapter, ...]
    """All that are asked, so that one server has them."""
    text: str
    gold: str
    """The right answer; empty where nobody knows it."""
    temperature: float
    max_tokens: int


@dataclass(frozen=True)
class Loading:
    """The model is being loaded."""

    seconds: float


@dataclass(frozen=True)
class Given:
    """What the model is really given: the question in its template."""

    asked: Question
    prompt: str
    num_tokens: int


@dataclass(frozen=True)
class Piece:
    """More of the answer."""

    text: str
    is_thought: bool


@dataclass(frozen=True)
class Answer:
    """The whole of it."""

    text: str
    thought: str
    """What the model thought before."""
    finish_reason: str
    num_tokens: int | None
    seconds: float
    """From the first piece to the last."""
    grade: Grade
    """Of evaluation's grader."""
    has_gold: bool

    @property
    def is_cut_off(self) -> bool:
        """Whether the limit of tokens ended it."""
        return self.finish_reason == "length"


Event = Loading | Given | Piece | Answer


def question(studio: Studio, values: Mapping[str, str], adapters: list[str]) -> Question:
    """The question that a form says.

    Raises:
        InputError: what is wrong with it.
    """
    model, text = values.get("model", ""), values.get("question", "").replace("\r\n", "\n").strip()
    if not (studio.inside(model, "model") / "config.json").is_file():
        raise InputError(f"model: expected a folder with a converted model, found {model!r}; choose one of the list.")
    if not text:
        raise InputError("question: there is none; type one, or draw a problem.")
    if len(text) > _LONGEST:
        raise InputError(f"question: at most {_LONGEST:,} characters; this one has {len(text):,}.")
    found = {name: adapter(studio, name) for name in dict.fromkeys(adapters)}
    if absent := [name for name, one in found.items() if one is None]:
        raise InputError(f"adapter: {absent[0]} holds none (any more); choose one of the list.")
    if len(found) >= MOST_CONTESTANTS:
        raise InputError(f"adapter: at most {MOST_CONTESTANTS - 1} at once; leave some out.")
    return Question(
        model, tuple(one for one in found.values() if one), text, values.get("gold", "").strip(),
        _number(values, "temperature", 0.0, HOTTEST), int(_number(values, "max_tokens", 1, MOST_TOKENS)),
    )  # fmt: skip


def _number(values: Mapping[str, str], name: str, least: float, most: float) -> float:
    try:
        number = float(values.get(name, ""))
    except ValueError:
        number = -1.0
    if not least <= number <= most:
        label = name.replace("_", " ")
        raise InputError(f"{label}: expected a number from {least:g} to {most:,.0f}, found {values.get(name)!r}.")
    return number


async def answered(server: Server, asked: Question, who: str) -> AsyncIterator[Event]:
    """Ask one model, and tell what happens; whoever stops listening ends the answer.

    Args:
        server: starts what answers.
        asked: the question.
        who: the name of the adapter that is to answer; "" for the base.

    Raises:
        MlxmathError: the model cannot be loaded, does not take the question, or has ended meanwhile.
    """
    begun_s = time.monotonic()
    job, names = await asyncio.to_thread(server.serving, asked.model, asked.adapters)
    if who not in names:
        raise InputError(f"adapter: {who} is not among those that are asked; choose it, then ask again.")
    while (url := await asyncio.to_thread(server.url, job)) is None:
        yield Loading(time.monotonic() - begun_s)
        await asyncio.sleep(_LOOK_S)
    body = {"model": names[who], "messages": [{"role": "user", "content": asked.text}]}
    drawn = {
        "temperature": asked.temperature, "max_tokens": asked.max_tokens, "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    # no proxy: it is this machine; no limit on the time that a long prompt takes, or the answers before this one
    client = httpx2.AsyncClient(base_url=url, trust_env=False, timeout=httpx2.Timeout(10.0, read=None))
    try:
        async with client:
            given = await client.post("/chat/prompt", json=body)
            told = _checked(given.status_code, given.content)
            yield Given(asked, str(told.get("prompt")), int(told.get("num_tokens", 0)))
            async with client.stream("POST", "/chat/completions", json=body | drawn) as response:
                if response.status_code != 200:
                    _checked(response.status_code, await response.aread())
                async for event in _relayed(response, asked):
                    yield event
    except httpx2.HTTPError as error:
        await asyncio.to_thread(server.url, job)  # says why, if it has ended
        raise MlxmathError(f"the model does not answer: {type(error).__name__}; ask again.") from None


async def _relayed(response: httpx2.Response, asked: Question) -> AsyncIterator[Piece | Answer]:
    parts: dict[bool, list[str]] = {False: [], True: []}
    finish_reason, num_tokens, length, first_s = "", None, 0, 0.0
    async for line in response.aiter_lines():
        if not line.startswith("data: {"):
            continue  # a sign of life, or the end
        try:
            message = parse_json(line.removeprefix("data: "))
        except ValueError:
            break  # the end of the connection, in the middle of a line
        first_s = first_s or time.monotonic()
        if usage := message.get("usage"):
            num_tokens = usage["completion_tokens"]
        for choice in message["choices"]:
            finish_reason = choice.get("finish_reason") or finish_reason
            for is_thought, name in ((True, "reasoning"), (False, "content")):
                if text := choice["delta"].get(name):
                    parts[is_thought].append(text)
                    length += len(text)
                    yield Piece(text, is_thought)
        if length > _LONGEST:
            raise MlxmathError(f"the answer is longer than {_LONGEST:,} characters; ask with fewer tokens.")
    if not finish_reason:
        raise httpx2.ReadError("the answer has no end")
    seconds = time.monotonic() - first_s
    text, thought = "".join(parts[False]), "".join(parts[True])
    # as the model wrote it: what it thinks is told apart by the server
    written = f"<think>{thought}{'</think>' if text else ''}{text}" if thought else text
    verdict = await asyncio.to_thread(grade, written, asked.gold, truncated=finish_reason == "length")
    yield Answer(text, thought, finish_reason, num_tokens, seconds, verdict, bool(asked.gold))


def _checked(status: int, content: bytes) -> dict[str, Any]:
    """A whole reply.

    Raises:
        MlxmathError: the model refuses; why.
    """
    try:
        found = parse_json(content)
    except ValueError:
        found = None
    if status == 200 and isinstance(found, dict):
        return found
    error = found.get("error") if isinstance(found, dict) else None
    why = error.get("message") if isinstance(error, dict) else error
    raise MlxmathError(f"the model does not take the question: {why or json.dumps(found)[:300]}")
