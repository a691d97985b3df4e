"""Problems and conversations in the tokenizer's own chat template.

The template is rendered with a marker for each message's text; the texts themselves are put in afterwards, as segments
of their own. So a problem never meets Jinja, and `<|im_end|>` in it is ten characters, while the template's is a token.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, ClassVar

from mlxmath.data.chat_format import DATE, MARKER, STRFTIME_NOW, ChatFormat, marker, numbers_of
from mlxmath.data.conversation import join_neighbours, with_reasoning
from mlxmath.data.problem import Message, Problem, SkippedRowError
from mlxmath.data.templates import (
    JINJA_CONTENT,
    Segment,
    Template,
    Text,
    completion,
    fill,
    jinja_fill,
    joined,
    not_opened_twice,
)
from mlxmath.errors import InputError


@dataclass(frozen=True)
class ChatTemplate(Template):
    """The tokenizer's chat template; the loss counts every assistant turn with the token that ends it."""

    tokenizer: Any = None

    keeps_system: ClassVar[bool] = True

    @property
    def definition(self) -> dict[str, Any]:
        """See `Template.definition`."""
        return super().definition | ({} if self.tokenizer is None else {"tokenizer": self.format.source})

    @cached_property
    def format(self) -> ChatFormat:
        """What the tokenizer's chat template writes."""
        return ChatFormat(self.tokenizer, self.name)

    @property
    def stop(self) -> str | None:
        """The control token that ends a turn (of a base model, this need not be its end-of-text token)."""
        return self.format.stop

    def for_tokenizer(self, tokenizer: Any) -> "ChatTemplate":
        """The template bound to a tokenizer.

        Raises:
            InputError: the tokenizer has no chat template.
        """
        inner = getattr(tokenizer, "_tokenizer", None)
        if hasattr(inner, "get_chat_template"):  # mlx_lm's wrapper
            tokenizer = inner
        if not getattr(tokenizer, "chat_template", None):
            raise InputError(
                f"--template {self.name}: the tokenizer {tokenizer.name_or_path} has no chat template; choose "
                "another template, for example instruction."
            )
        return replace(self, tokenizer=tokenizer)

    def prompt(self, question: str, examples: Sequence[Problem] = ()) -> Text:
        """See `Template.prompt`; `examples` are earlier turns.

        Raises:
            SkippedRowError: an example lacks what the template needs.
            InputError: the tokenizer's chat template does not take the turns.
        """
        turns = [
            turn
            for one in examples
            for turn in (
                self._user(one.question), Message("assistant", completion(self.spec.completion, one, after="")),
            )
        ]  # fmt: skip
        try:
            return self._context([*self._system(), *turns, self._user(question)])
        except SkippedRowError as error:
            raise InputError(f"--template {self.name}: {error}; choose another template.") from None

    def conversation(self, messages: Sequence[Message]) -> tuple[Text, ...]:
        """See `Template.conversation`; a system message counts, or the template's own where there is none.

        Of earlier answers there is what the chat template keeps.
        """
        turns = [
            self._user(one.content) if one.role == "user"
            else one._replace(content=self.format.without_thinking(one.content)) if one.role == "assistant"
            else one
            for one in messages
        ]  # fmt: skip
        begun = turns if turns[0].role == "system" else [*self._system(), *turns]
        try:
            return (self._context(self._as_taken(begun)),)
        except SkippedRowError as error:
            raise InputError(f"--template {self.name}: {error}; choose another template.") from None

    def _user(self, question: str) -> Message:
        return Message("user", fill(self.spec.prompt, {"question": question}))

    def render(self, problem: Problem) -> Text:
        """See `Template.render`."""
        if problem.is_text:
            return (Segment(problem.question, True),)
        turns = self._as_taken(self._turns(problem))
        if turns[-1].role != "assistant":
            raise SkippedRowError("conversation that does not end with an answer")
        thinks = any(turn.reasoning for turn in turns)
        if problem.tools or any(turn.calls for turn in turns) or (thinks and self.format.thinking_field):
            return render_turns(self.format, turns, problem.tools)
        context = self._context(turns[:-1])
        answer = turns[-1].content
        if not problem.messages:
            answer = completion(self.spec.completion, problem, after=joined(context))
        elif turns[-1].reasoning:
            answer = with_reasoning(turns[-1])
        answer = not_opened_twice(answer, joined(context))
        layout = self.format.layout(tuple(turn.role for turn in turns), generate=False)
        if layout.trimmed[-1]:
            answer = answer.strip()
        end = self.format.end_of_turn.search(layout.pieces[-1])
        closed = layout.pieces[-1][: end.end()] if end else self.tokenizer.eos_token
        begun = self._begins_answer(tuple(turn.role for turn in turns))
        return tuple(
            s
            for s in (*context, Segment(begun, True, True), Segment(answer, True), Segment(closed, True, True))
            if s.text
        )

    def _begins_answer(self, roles: tuple[str, ...]) -> str:
        """Control tokens that the template writes before an answer and leaves to the model (gpt-oss: the channel)."""
        asked, whole = self.format.layout(roles[:-1], generate=True), self.format.layout(roles, generate=False)
        before = whole.pieces[-2]
        more = before[len(asked.pieces[-1]) :] if before.startswith(asked.pieces[-1]) else ""
        return more if self.format.end_of_turn.search(more) else ""

    def _turns(self, problem: Problem) -> list[Message]:
        """The conversation to be rendered: the row's own, or one of a question and a solution."""
        messages = problem.messages or (Message("user", problem.question), Message("assistant", ""))
        turns = [
            turn._replace(content=fill(self.spec.prompt, {"question": turn.content})) if turn.role == "user" else turn
            for turn in messages
        ]
        return turns if turns[0].role == "system" else [*self._system(), *turns]

    def _as_taken(self, turns: Sequence[Message]) -> list[Message]:
        """Turns with neighbours of one role joined, where the chat template wants users and assistants to alternate.

        Raises:
            SkippedRowError: an assistant opens the conversation, which the chat template does not take.
        """
        roles = [turn.role for turn in turns if turn.role != "system"]
        if roles[0] == "assistant" and not self.format.takes("assistant", "user", "assistant"):
            raise SkippedRowError("conversation that an assistant opens, which the chat template does not take")
        pairs = set(pairwise(roles))
        joined = [
            role
            for role, probe in (("user", "user user assistant"), ("assistant", "user assistant assistant"))
            if (role, role) in pairs and not self.format.takes(*probe.split())
        ]
        return join_neighbours(turns, *joined)

    def _system(self) -> list[Message]:
        return [] if self.spec.system is None else [Message("system", self.spec.system)]

    def _context(self, turns: Sequence[Message]) -> Text:
        """The turns, answers among them being targets, and the beginning of the next answer."""
        layout = self.format.layout(tuple(turn.role for turn in turns), generate=True)
        if layout.folds_system:
            turns = [Message("user", f"{turns[0].content}\n\n{turns[1].content}"), *turns[2:]]
        segments: list[Segment] = []
        after_answer = False
        for index, piece in enumerate(layout.pieces):
            end = self.format.end_of_turn.search(piece) if after_answer else None
            cut = end.end() if end else 0
            segments += [Segment(piece[:cut], True, True), Segment(piece[cut:], False, True)]
            if index < len(turns):
                after_answer = turns[index].role == "assistant" and turns[index].is_target
                text = turns[index].content.strip() if layout.trimmed[index] else turns[index].content
                segments.append(Segment(text, after_answer))
        return tuple(segment for segment in segments if segment.text)

    def chat_template(self, *, bos: bool) -> str:  # noqa: ARG002
        """The tokenizer's chat template after what this template adds to it: its prompt, its system message, a date."""
        header = ""
        if "date_string" in self.format.source:
            header += f"{{%- set date_string = '{DATE}' -%}}"
        if "strftime_now" in self.format.source:
            header += STRFTIME_NOW
        system = self.spec.system
        if system is None and self.spec.prompt == "{question}":
            return header + self.format.source
        folded = system is not None and self.format.layout(("system", "user"), generate=True).folds_system
        first = json.dumps(f"{system}\n\n", ensure_ascii=False) if folded else "''"
        own = json.dumps(system, ensure_ascii=False) if system is not None and not folded else None
        added = f"[{{'role': 'system', 'content': {own}}}] if messages[0]['role'] != 'system' else []" if own else "[]"
        return (
            f"{header}{{%- set ns = namespace(turns={added}, first={first}) -%}}"
            "{%- for m in messages -%}{%- if m['role'] == 'user' -%}"
            f"{{%- set ns.turns = ns.turns + [{{'role': 'user', 'content': ns.first + {jinja_fill(self.spec.prompt)}}}]"
            " -%}{%- set ns.first = '' -%}{%- else -%}"
            f"{{%- set ns.turns = ns.turns + [{{'role': m['role'], 'content': {JINJA_CONTENT}}}] -%}}"
            "{%- endif -%}{%- endfor -%}{%- set messages = ns.turns -%}" + self.format.source
        )


def render_turns(chat: ChatFormat, turns: Sequence[Message], tools: str) -> Text:
    """A conversation with tool calls or reasoning, rendered as a whole; each answer that counts is a target.

    An answer begins where the template begins one (what it writes with `add_generation_prompt`), and ends with the
    first token behind it that ends a turn. Calls and tools are written by the template; a row in which they spell a
    control token is left out.

    Raises:
        SkippedRowError: the template does not know tool calls, or leaves something out.
    """
    texts: list[str] = []
    messages: list[dict[str, Any]] = []
    last_user = max(index for index, turn in enumerate(turns) if turn.role == "user")
    for index, turn in enumerate(turns):
        message: dict[str, Any] = {"role": turn.role, "content": ""}
        if turn.reasoning and chat.thinking_field and index > last_user:
            message[chat.thinking_field] = marker(len(texts))
            texts.append(turn.reasoning.strip())
        if turn.content or not turn.calls:
            message["content"] = marker(len(texts))
            texts.append(turn.content)
        if turn.calls:
            message["tool_calls"] = json.loads(turn.calls)
        messages.append(message)
    if chat.end_of_turn.search("".join(turn.calls for turn in turns) + tools):
        raise SkippedRowError("tools or calls that spell a control token")
    given = json.loads(tools) if tools else None
    whole = chat.written(messages, given)
    names = [call["function"]["name"] for turn in turns if turn.calls for call in json.loads(turn.calls)]
    if whole is None or not all(name in whole for name in names):
        raise SkippedRowError("conversation with tools, which the chat template does not know")
    if numbers_of(whole) != [*range(len(texts))]:
        raise SkippedRowError("conversation of which the chat template leaves something out")
    targets = [
        _answer_span(chat, whole, messages, given, index)
        for index, turn in enumerate(turns)
        if turn.role == "assistant" and turn.is_target
    ]
    return _segments(whole[: targets[-1][1]], texts, targets)


def _answer_span(
    chat: ChatFormat, whole: str, messages: Sequence[Mapping[str, Any]], tools: Any, index: int
) -> tuple[int, int]:
    """Where the answer of message `index` stands in the whole conversation, with the token that ends it."""
    before = chat.written(messages[:index], tools, generate=True)
    if before is None or not whole.startswith(before):
        raise SkippedRowError("conversation whose answers do not begin as the chat template begins one")
    inside = [m.end() for m in MARKER.finditer(whole) if m[0] in messages[index].values()]
    start = max([len(before), *inside])
    if messages[index].get("tool_calls"):
        following = next((whole.find(m["content"]) for m in messages[index + 1 :] if m["content"]), len(whole))
        name = messages[index]["tool_calls"][-1]["function"]["name"]
        start = max(start, whole.find(name, start, following))
        end = chat.ends_a_call.search(whole, start)
    else:
        end = chat.end_of_turn.search(whole, start)
    return len(before), end.end() if end else len(whole)


def _segments(whole: str, texts: Sequence[str], targets: Sequence[tuple[int, int]]) -> Text:
    """The rendered conversation as segments, with the texts in the places of their markers."""
    cuts = sorted(
        {
            0,
            len(whole),
            *(cut for span in targets for cut in span),
            *(cut for m in MARKER.finditer(whole) for cut in m.span()),
        }
    )
    segments = []
    for start, end in pairwise(cuts):
        part = whole[start:end]
        is_target = any(low <= start and end <= high for low, high in targets)
        found = MARKER.fullmatch(part)
        segments.append(Segment(texts[int(found[1])], is_target) if found else Segment(part, is_target, True))
    return tuple(segment for segment in segments if segment.text)
