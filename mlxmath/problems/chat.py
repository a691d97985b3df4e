"""Problems and conversations in the tokenizer's own chat template.

The template is rendered with a marker for each message's text; the texts themselves are put in afterwards, as segments
of their own. So a problem never meets Jinja, and `<|im_end|>` in it is ten characters, while the template's is a token.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from mlxmath.errors import InputError
from mlxmath.problems.columns import SkippedRowError
from mlxmath.problems.problem import Message, Problem
from mlxmath.problems.prompts import (
    JINJA_CONTENT,
    Definition,
    Segment,
    Text,
    completion,
    fill,
    jinja_fill,
    joined,
    not_opened_twice,
)

DATE = "26 Jul 2024"
"""What a template that writes today's date is told, so that every day gives the same rows (Llama's own default)."""

_MARKER = re.compile("\ue000([0-9]+)\ue001")


@dataclass(frozen=True)
class ChatTemplate:
    """The tokenizer's chat template; the loss counts every assistant turn with the token that ends it."""

    name: str
    spec: Definition
    tokenizer: Any = None
    _layouts: dict[tuple[str, ...], "Layout"] = field(default_factory=dict, compare=False, repr=False)

    @property
    def definition(self) -> dict[str, Any]:
        """See `Template.definition`."""
        own = {} if self.tokenizer is None else {"tokenizer": self.source}
        return self.spec.record | own

    @cached_property
    def source(self) -> str:
        """The tokenizer's Jinja text."""
        return str(self.tokenizer.get_chat_template())

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
        return ChatTemplate(self.name, self.spec, tokenizer)

    def verbatim(self) -> "ChatTemplate":
        """See `Template.verbatim`."""
        return ChatTemplate(self.name, self.spec.verbatim(), self.tokenizer)

    def prompt(self, question: str, examples: Sequence[tuple[str, str]] = ()) -> Text:
        """See `Template.prompt`; questions and solutions given as `examples` are earlier turns."""
        turns = [turn for asked, solved in examples for turn in (self._user(asked), Message("assistant", solved))]
        return self._context([*self._system(), *turns, self._user(question)])

    def _user(self, question: str) -> Message:
        return Message("user", fill(self.spec.prompt, {"question": question}))

    def render(self, problem: Problem) -> Text:
        """See `Template.render`."""
        turns = self._turns(problem)
        if turns[-1].role != "assistant":
            raise SkippedRowError("conversation that does not end with an answer")
        context = self._context(turns[:-1])
        answer = turns[-1].content
        if not problem.messages:
            answer = completion(self.spec.completion, problem, after=joined(context))
        answer = not_opened_twice(answer, joined(context))
        layout = self._layout(tuple(turn.role for turn in turns), generate=False)
        if layout.trimmed[-1]:
            answer = answer.strip()
        end = self._end_of_turn.search(layout.pieces[-1])
        closed = layout.pieces[-1][: end.end()] if end else self.tokenizer.eos_token
        return *context, Segment(answer, True), Segment(closed, True, True)

    @property
    def stop(self) -> str | None:
        """The control token that ends a turn (of a base model, this need not be its end-of-text token)."""
        end = self._end_of_turn.search(self._layout(("user", "assistant"), generate=False).pieces[-1])
        return end[0] if end else None

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """See `Template.stop_strings`."""
        return self.spec.stop or ()

    def _turns(self, problem: Problem) -> list[Message]:
        """The conversation to be rendered: the row's own, or one of a question and a solution."""
        messages = problem.messages or (Message("user", problem.question), Message("assistant", ""))
        turns = [
            turn._replace(content=fill(self.spec.prompt, {"question": turn.content})) if turn.role == "user" else turn
            for turn in messages
        ]
        return turns if turns[0].role == "system" else [*self._system(), *turns]

    def _system(self) -> list[Message]:
        return [] if self.spec.system is None else [Message("system", self.spec.system)]

    def _context(self, turns: Sequence[Message]) -> Text:
        """The turns, answers among them being targets, and the beginning of the next answer."""
        layout = self._layout(tuple(turn.role for turn in turns), generate=True)
        if layout.folds_system:
            turns = [Message("user", f"{turns[0].content}\n\n{turns[1].content}"), *turns[2:]]
        segments: list[Segment] = []
        after_answer = False
        for index, piece in enumerate(layout.pieces):
            end = self._end_of_turn.search(piece) if after_answer else None
            cut = end.end() if end else 0
            segments += [Segment(piece[:cut], True, True), Segment(piece[cut:], False, True)]
            if index < len(turns):
                after_answer = turns[index].role == "assistant"
                text = turns[index].content.strip() if layout.trimmed[index] else turns[index].content
                segments.append(Segment(text, after_answer))
        return tuple(segment for segment in segments if segment.text)

    @cached_property
    def _end_of_turn(self) -> re.Pattern[str]:
        """Finds the first control token."""
        special = {token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special}
        special.add(self.tokenizer.eos_token)
        return re.compile("|".join(re.escape(text) for text in sorted(special, key=len, reverse=True)))

    def _layout(self, roles: tuple[str, ...], *, generate: bool) -> "Layout":
        """What the template writes around messages of these roles; the same for all texts, so it is kept."""
        key = (*roles, "generate" if generate else "")
        if key not in self._layouts:
            self._layouts[key] = self._find_layout(roles, generate)
        return self._layouts[key]

    def _find_layout(self, roles: tuple[str, ...], generate: bool) -> "Layout":
        import jinja2

        try:
            pieces = self._pieces(roles, generate)
        except (jinja2.TemplateError, _LostMessageError) as error:
            if roles[:2] == ("system", "user"):  # some templates know no system message: it goes to the user's
                without = self._find_layout(roles[1:], generate)
                return Layout(without.pieces, without.trimmed, folds_system=True)
            raise InputError(
                f"--template {self.name}: the tokenizer's chat template refuses the turns {', '.join(roles)}: {error}"
            ) from None
        trimmed = [self._pieces(roles, generate, padded=index) == pieces for index in range(len(roles))]
        return Layout(pieces, tuple(trimmed))

    def _pieces(self, roles: tuple[str, ...], generate: bool, padded: int | None = None) -> tuple[str, ...]:
        """What stands before, between and after the messages' texts.

        Args:
            roles: of the messages.
            generate: end with the beginning of an answer.
            padded: the text of this message has spaces around it (they are in the pieces unless the template trims).
        """
        marks = [f"\ue000{index}\ue001" for index in range(len(roles))]
        if padded is not None:
            marks[padded] = f" {marks[padded]} "
        text = self.tokenizer.apply_chat_template(
            [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)],
            tokenize=False,
            add_generation_prompt=generate,
            date_string=DATE,
            strftime_now=lambda _: DATE,
        )
        found = [int(number) for number in _MARKER.findall(text)]
        if found != [*range(len(roles))]:
            lost = next((roles[index] for index in range(len(roles)) if found.count(index) != 1), "its order")
            raise _LostMessageError(f"it does not keep {lost}")
        return tuple(_MARKER.split(text)[::2])

    def chat_template(self, *, bos: bool) -> str:  # noqa: ARG002
        """The tokenizer's chat template after what this template adds to it: its prompt, its system message, a date."""
        header = ""
        if "date_string" in self.source:
            header += f"{{%- set date_string = '{DATE}' -%}}"
        if "strftime_now" in self.source:
            header += f"{{%- macro strftime_now(format) -%}}{DATE}{{%- endmacro -%}}"
        system = self.spec.system
        if system is None and self.spec.prompt == "{question}":
            return header + self.source
        folded = system is not None and self._layout(("system", "user"), generate=True).folds_system
        first = json.dumps(f"{system}\n\n", ensure_ascii=False) if folded else "''"
        own = json.dumps(system, ensure_ascii=False) if system is not None and not folded else None
        added = f"[{{'role': 'system', 'content': {own}}}] if messages[0]['role'] != 'system' else []" if own else "[]"
        return (
            f"{header}{{%- set ns = namespace(turns={added}, first={first}) -%}}"
            "{%- for m in messages -%}{%- if m['role'] == 'user' -%}"
            f"{{%- set ns.turns = ns.turns + [{{'role': 'user', 'content': ns.first + {jinja_fill(self.spec.prompt)}}}]"
            " -%}{%- set ns.first = '' -%}{%- else -%}"
            f"{{%- set ns.turns = ns.turns + [{{'role': m['role'], 'content': {JINJA_CONTENT}}}] -%}}"
            "{%- endif -%}{%- endfor -%}{%- set messages = ns.turns -%}" + self.source
        )


@dataclass(frozen=True)
class Layout:
    """What a chat template writes around messages of given roles."""

    pieces: tuple[str, ...]
    """One more than there are messages."""
    trimmed: tuple[bool, ...]
    """Of each message: whether spaces around its text are removed."""
    folds_system: bool = False
    """The system message is put before the first user message, in its turn."""


class _LostMessageError(Exception):
    """The chat template leaves a message out, repeats or reorders it."""
