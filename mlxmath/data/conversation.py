"""Conversations in the forms that datasets have: OpenAI's messages, ShareGPT's, with tools, reasoning and weights."""

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mlxmath.data.problem import Message, SkippedRowError, text_of
from mlxmath.runtime.files import parse_json

_ROLES = {
    role: canonical
    for canonical, names in {
        "user": "user human prompter",
        "assistant": "assistant gpt bot ai model chatgpt chatbot",
        "system": "system developer",
        "tool": "tool function observation ipython tool_response function_response",
        "call": "function_call tool_call",
    }.items()
    for role in names.split()
}
_TEXT_PARTS = ("text", "input_text", "output_text")
_REASONING = ("reasoning_content", "thinking", "reasoning")
_WEIGHTS = ("weight", "train", "loss")
"""What says whether an answer is learned: OpenAI's, Axolotl's and ms-swift's name for it."""
_PAIRS = {"input": "user", "question": "user", "prompt": "user", "output": "assistant", "answer": "assistant",
          "response": "assistant"}  # fmt: skip
"""Of conversations whose items are a question and its answer."""
_HUMAN = re.compile(r"(?:^|\n\n)(Human|Assistant): ?")


def turns_of(value: Any) -> tuple[Message, ...]:
    """Messages as a dataset holds them: a list, or the same as JSON text.

    Each has `role` and `content`, or ShareGPT's `from` and `value`, or is a question with its answer ({"input",
    "output"}, {"human", "assistant"}). A developer's message is the system's. Reasoning and tool calls are kept beside
    the text; a `weight` of 0 makes an answer one that is not learned.

    Raises:
        SkippedRowError: a message has no known role, or is no text.
    """
    if isinstance(value, str):
        try:
            value = parse_json(value)
        except ValueError:
            raise SkippedRowError("messages are not a list") from None
    if isinstance(value, Mapping) and value and all(isinstance(column, list) for column in value.values()):
        value = [dict(zip(value, cells, strict=True)) for cells in zip(*value.values(), strict=False)]
    if not isinstance(value, list):
        raise SkippedRowError("empty conversation" if value is None else "messages are not a list")
    return tuple(message for turn in value for message in _turns(turn))


def are_messages(value: Any) -> bool:
    """Whether a value is a list of messages, or one as JSON text, and no text that is a problem or a solution."""
    if isinstance(value, str) and value.lstrip().startswith("[{") and value.rstrip().endswith("}]"):
        try:
            value = parse_json(value)
        except ValueError:
            return False
        return all(isinstance(turn, Mapping) and ("role" in turn or "from" in turn) for turn in value)
    return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping)


def _turns(turn: Any) -> tuple[Message, ...]:
    """The message of a list's item, or the two of one that is a question with its answer."""
    if not isinstance(turn, Mapping) or turn.get("role") or turn.get("from"):
        return (_turn(turn),)
    said = [(_ROLES.get(name.casefold()) or _PAIRS.get(name.casefold()), text) for name, text in turn.items()]
    found = [Message(role, _parts_of(text)[0]) for role, text in said if role in ("user", "assistant") and text]
    found.sort(key=lambda message: message.role != "user")
    is_either = {message.role for message in found} == {"user", "assistant"} or len(turn) == 1  # not a user's name
    return tuple(found) if found and is_either else (_turn(turn),)


def _turn(turn: Any) -> Message:
    name = (turn.get("role") or turn.get("from")) if isinstance(turn, Mapping) else None
    if not isinstance(name, str):
        raise SkippedRowError("messages without a role")
    role = _ROLES.get(name.strip().casefold())
    if role is None:
        raise SkippedRowError(f"messages of the unknown role {name[:40]!r}")
    content = next((turn[key] for key in ("content", "value", "text") if turn.get(key) is not None), None)
    text, thought = _parts_of(content)
    if role == "call":
        return Message("assistant", "", calls=_calls(text))
    calls = turn.get("tool_calls") or ([{"function": turn["function_call"]}] if turn.get("function_call") else ())
    reasoning = next((turn[key] for key in _REASONING if turn.get(key)), thought) if role == "assistant" else None
    return Message(
        role, text, text_of(reasoning, "reasoning") or "", _calls(calls) if calls and role == "assistant" else "",
        all(turn.get(name, 1) != 0 for name in _WEIGHTS) and bool(text.strip() or reasoning or calls),
    )  # fmt: skip


def _parts_of(value: Any) -> tuple[str, str]:
    """A message's text, as it is or of its parts, and the reasoning among these.

    Raises:
        SkippedRowError: a part is an image, a sound or the like.
    """
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list):
        return text_of(value, "message") or "", ""
    texts, thoughts = [], []
    for part in value:
        kind = part.get("type", "text") if isinstance(part, Mapping) else "text"
        if kind in _REASONING:
            thoughts.append(text_of(part.get(kind) or part.get("text"), "reasoning") or "")
        elif kind in _TEXT_PARTS:
            texts.append(text_of(part.get("text") if isinstance(part, Mapping) else part, "message") or "")
        else:
            raise SkippedRowError(f"message with a part that is no text ({str(kind)[:40]})")
    return "".join(texts), "".join(thoughts)


def _calls(value: Any) -> str:
    """Tool calls as JSON, in the form that chat templates know: [{"type", "function": {"name", "arguments"}}]."""
    try:
        if isinstance(value, str):
            value = json.loads(value)
        calls = []
        for call in value if isinstance(value, list) else [value]:
            function = call.get("function", call)
            arguments = function.get("arguments", function.get("parameters")) or {}
            arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
            if not isinstance(function["name"], str) or not isinstance(arguments, dict):
                raise ValueError
            # pyarrow gives each call the arguments of all calls, null where it has none
            given = {name: argument for name, argument in arguments.items() if argument is not None}
            calls.append({"type": "function", "function": {"name": function["name"], "arguments": given}})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise SkippedRowError("tool calls that are not a function's name and its arguments") from None
    return json.dumps(calls, ensure_ascii=False)


def tools_of(value: Any) -> str:
    """The tools that a conversation may use, as JSON; empty for none.

    Raises:
        SkippedRowError: they are no list of objects.
    """
    if value is None or value == "" or value == []:
        return ""
    try:
        tools = json.loads(value) if isinstance(value, str) else value
        if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
            raise ValueError
        return json.dumps(tools, ensure_ascii=False)
    except (ValueError, TypeError, RecursionError):
        raise SkippedRowError("tools that are not a list of objects") from None


def conversation(turns: Sequence[Message], system: str = "") -> tuple[Message, ...]:
    """A conversation up to its last answer: [system,] user, assistant [, tool, assistant], user, assistant …

    Neighbours of one role stay as they are; a chat template may want them joined (`join_neighbours`). What an assistant
    says before anything is asked is no answer: it is context, not learned.

    Args:
        turns: as `turns_of` gives them.
        system: another column's instruction, which goes before them.

    Raises:
        SkippedRowError: it has another order, or no question and answer.
    """
    kept = join_neighbours(turns, "system")
    if system and not (kept and kept[0].role == "system"):
        kept.insert(0, Message("system", system))
    while kept and (kept[-1].role != "assistant" or not kept[-1].is_target):
        kept.pop()
    roles = [turn.role for turn in kept]
    if "user" not in roles or "assistant" not in roles[roles.index("user") :]:
        raise SkippedRowError("conversation without a question and an answer")
    check_order(kept)
    first = roles.index("user")
    opening = (turn._replace(is_target=turn.role != "assistant") for turn in kept[:first])
    return (*opening, *kept[first:])


def check_order(turns: Sequence[Message]) -> None:
    """Refuse turns that do not follow one another as they do in a conversation.

    Raises:
        SkippedRowError: they do not.
    """
    before = ""
    for turn in turns:
        if turn.role == "system" and before:
            raise SkippedRowError("conversation with a system message inside")
        if (turn.role == "tool") != (before == "call") and (turn.role, before) not in (
            ("tool", "tool"), ("assistant", "tool"),
        ):  # fmt: skip
            raise SkippedRowError("conversation whose tool calls and results do not follow one another")
        before = "call" if turn.calls else turn.role


def join_neighbours(turns: Sequence[Message], *roles: str) -> list[Message]:
    """The turns, neighbours of one of these roles made one: their texts with a blank line between them.

    Raises:
        SkippedRowError: of two answers only one is learned.
    """
    joined: list[Message] = []
    for turn in turns:
        last = joined[-1] if joined else None
        if last is None or last.role != turn.role or turn.role not in roles or last.calls:
            joined.append(turn)
            continue
        if last.is_target != turn.is_target:
            raise SkippedRowError("answers one after the other, of which not all are learned")
        content, reasoning = (
            "\n\n".join(text for text in texts if text.strip())
            for texts in ((last.content, turn.content), (last.reasoning, turn.reasoning))
        )
        joined[-1] = turn._replace(content=content, reasoning=reasoning)
    return joined


def question_of(turns: Sequence[Message]) -> str:
    """What a conversation asks first."""
    first = next((index for index, turn in enumerate(turns) if turn.role == "user"), len(turns))
    asked = list(itertools.takewhile(lambda turn: turn.role == "user", turns[first:]))
    return "".join(turn.content for turn in join_neighbours(asked, "user"))


def with_reasoning(turn: Message) -> str:
    """An answer after its reasoning, in the form that reasoning models write."""
    return f"<think>\n{turn.reasoning.strip()}\n</think>\n\n{turn.content}" if turn.reasoning.strip() else turn.content


def human_and_assistant(text: str) -> list[dict[str, str]] | None:
    """The turns of a text in the form of Anthropic's hh-rlhf ("Human: … Assistant: …"); None for any other text."""
    heads = list(_HUMAN.finditer(text))
    if not heads or text[: heads[0].start()].strip() or heads[0][1] != "Human":
        return None
    ends = [*(head.start() for head in heads[1:]), len(text)]
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": roles[head[1]], "content": text[head.end() : end].strip()}
        for head, end in zip(heads, ends, strict=True)
    ]
