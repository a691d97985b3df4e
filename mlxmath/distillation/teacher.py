"""What every teacher is asked and gives, and how a chat completion's JSON is read."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mlxmath.distillation.questions import Task
from mlxmath.runtime.files import parse_json


@dataclass(frozen=True)
class Answer:
    """What a teacher wrote, its reasoning in front as `<think>…</think>`."""

    text: str
    finish_reason: str
    """"stop", "length" (cut off at the token limit), or the endpoint's own word."""
    prompt_tokens: int
    completion_tokens: int
    seconds: float = 0.0
    attempts: int = 1
    """Requests that it took."""


OnOutcome = Callable[[Task, Answer | str], object]
"""Takes what became of a task: an answer, or the reason why there is none."""


class TryAgain(Exception):  # noqa: N818
    """No answer this time; `retry_after_s` is what the endpoint asks to wait."""

    def __init__(self, reason: str, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class Refused(Exception):  # noqa: N818
    """The endpoint does not answer this question, however often it is asked."""


def prompt(question: str, instruction: str) -> str:
    """What the teacher is asked."""
    return f"{question}\n\n{instruction}" if instruction.strip() else question


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


def read_answer(text: str) -> Answer:
    """The answer in a chat completion's JSON.

    Raises:
        TryAgain: it is not one.
    """
    try:
        reply = parse_json(text)
    except ValueError:
        if text.lstrip().startswith(("data:", "event:")):
            raise TryAgain("the reply is a stream, though none was asked for") from None
        raise TryAgain("the reply is not JSON") from None
    try:
        choice = reply["choices"][0]
        message = choice["message"]
        found, reason = message.get("content"), choice.get("finish_reason")
    except (TypeError, KeyError, IndexError, AttributeError):
        said = error_message(text) if isinstance(reply, dict) and "error" in reply else ""
        raise TryAgain(f"the reply holds no answer{f': {said}' if said else ''}") from None
    content, thought = _parts(found)
    reasoning = next((r for name in ("reasoning_content", "reasoning") if isinstance(r := message.get(name), str)), "")
    usage = reply.get("usage") if isinstance(reply.get("usage"), dict) else {}
    counts = (usage.get("prompt_tokens"), usage.get("completion_tokens"))
    return Answer(
        with_thinking(content, reasoning or thought, finished=reason != "length"),
        reason if isinstance(reason, str) else "stop",
        *(count if type(count) is int and count >= 0 else 0 for count in counts),
    )


def error_message(text: str) -> str:
    """The message of an error's body in one short line without anything that a terminal obeys."""
    try:
        found = parse_json(text)
        found = found.get("error", found) if isinstance(found, dict) else found
        found = found.get("message", found) if isinstance(found, dict) else found
    except ValueError:
        found = text
    return " ".join("".join(c if c.isprintable() else " " for c in str(found)).split())[:200]


def _parts(content: Any) -> tuple[str, str]:
    """The text and the reasoning of a message's content: a text, or a list of typed parts."""
    if not isinstance(content, list):
        return (content if isinstance(content, str) else ""), ""
    texts, thoughts = [], []
    for part in content:
        if isinstance(part, dict) and part.get("type") == "thinking":
            thoughts.append(_parts(part.get("thinking"))[0])
        elif isinstance(part, dict) and isinstance(part.get("text"), str):
            texts.append(part["text"])
    return "".join(texts), "".join(thoughts)
