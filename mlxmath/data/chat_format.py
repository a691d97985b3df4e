"""What the chat template of a tokenizer writes around the messages of a conversation.

The template is rendered with a marker for each message's text, and what stands between the markers is kept: it is the
same for all texts.
"""

import re
from collections.abc import Container, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from mlxmath.data.problem import SkippedRowError
from mlxmath.errors import InputError
from mlxmath.grading.extract import THINKING
from mlxmath.runtime.bounded import OverrunError
from mlxmath.runtime.foreign import TemplateError, rendered

DATE = "26 Jul 2024"
"""What a template that writes today's date is told, so that every day gives the same rows (Llama's own default)."""
STRFTIME_NOW = f"{{%- macro strftime_now(format) -%}}{DATE}{{%- endmacro -%}}"
MARKER = re.compile("\ue000([0-9]{1,6})\ue001")

_MOST_LAYOUTS = 1000
_CALL_ENDS = ("<|eom_id|>", "<|call|>")
"""What ends a turn that calls a tool in the templates of Llama 3.1 and gpt-oss."""
_THINKING_FIELDS = ("reasoning_content", "thinking", "reasoning")


def marker(number: int) -> str:
    """Stands for a text while the template is rendered."""
    return f"\ue000{number}\ue001"


def numbers_of(text: str) -> list[int]:
    """The numbers of the markers in a text."""
    return [int(number) for number in MARKER.findall(text)]


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """Finds any of these; of none, nothing."""
    return re.compile("|".join(map(re.escape, texts)) or "(?!)")


class Layout(NamedTuple):
    """What a chat template writes around messages of given roles."""

    pieces: tuple[str, ...]
    """One more than there are messages."""
    trimmed: tuple[bool, ...]
    """Of each message: whether spaces around its text are removed."""
    folds_system: bool = False
    """The system message is put before the first user message, in its turn."""


class _LostMessageError(Exception):
    """The chat template leaves a message out, repeats or reorders it."""


class ChatFormat:
    """A tokenizer's chat template.

    Args:
        tokenizer: of `transformers`.
        name: of the template that asks, for errors.
    """

    def __init__(self, tokenizer: Any, name: str) -> None:
        self._tokenizer, self._name = tokenizer, name
        self._layouts: dict[tuple[str, ...], Layout | Exception] = {}
        self._left_out: dict[str, tuple[bool, bool]] = {}

    @cached_property
    def source(self) -> str:
        """The tokenizer's Jinja text; of several named ones the default or the only one.

        Raises:
            InputError: there are several and none is the default.
        """
        template = self._tokenizer.chat_template
        if not isinstance(template, dict):
            return str(template)
        if "default" not in template and len(template) != 1:
            raise InputError(
                f"--template {self._name}: the tokenizer {self._tokenizer.name_or_path} has the chat templates "
                f"{', '.join(template)} and none called default; keep the one to use in its chat_template.jinja."
            )
        return str(template.get("default") or next(iter(template.values())))

    def layout(self, roles: tuple[str, ...], *, generate: bool) -> Layout:
        """What the template writes around messages of these roles; the same for all texts, so it is kept.

        Args:
            roles: of the messages.
            generate: end with the beginning of an answer.

        Raises:
            InputError: the template refuses even a question and its answer.
            SkippedRowError: it refuses turns that only some conversations have.
        """
        key = (*roles, "generate" if generate else "")
        if key not in self._layouts:
            if len(self._layouts) >= _MOST_LAYOUTS:  # a server's clients choose the roles
                self._layouts.clear()
            try:
                self._layouts[key] = self._find_layout(roles, generate)
            except (InputError, SkippedRowError) as error:
                self._layouts[key] = error
        layout = self._layouts[key]
        if isinstance(layout, Exception):
            raise layout
        return layout

    def takes(self, *roles: str) -> bool:
        """Whether the chat template writes turns of these roles, each apart."""
        try:
            self.layout(roles, generate=False)
        except (InputError, SkippedRowError):
            return False
        return True

    def written(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None = None, *, generate: bool = False
    ) -> str | None:
        """What the chat template makes of messages; None if it refuses them.

        Raises:
            InputError: see `write`.
        """
        try:
            return self._written(messages, tools, generate)
        except TemplateError:
            return None

    @cached_property
    def thinking_field(self) -> str | None:
        """The name by which the chat template takes a message's reasoning, if it writes it before the answer."""
        question, answer = {"role": "user", "content": "q"}, {"role": "assistant", "content": marker(1)}
        texts = {name: self.written([question, {**answer, name: marker(0)}]) for name in _THINKING_FIELDS}
        return next((name for name, text in texts.items() if text is not None and numbers_of(text) == [0, 1]), None)

    def without_thinking(self, answer: str) -> str:
        """What the chat template keeps of an earlier answer: most leave out what was thought before it."""
        for begin, end in THINKING:
            if end not in answer:
                continue
            if end not in self._left_out:
                self._left_out[end] = self._leaves_out(begin, end)
            is_left_out, is_trimmed = self._left_out[end]
            if is_left_out:
                answer = answer.rpartition(end)[2]
                answer = answer.lstrip("\n") if is_trimmed else answer
        return answer

    def _leaves_out(self, begin: str, end: str) -> tuple[bool, bool]:
        """Whether the chat template leaves out thinking between these marks, and the line breaks behind it.

        gpt-oss's refuses them in a text: they are of its own writing.
        """
        roles = ("user", "assistant", "user")
        texts = (marker(0), f"{begin}\n{marker(3)}\n{end}\n\n{marker(1)}", marker(2))
        messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]
        text = self.written(messages, generate=True)
        if text is None:
            return True, True
        is_left_out = numbers_of(text) == [0, 1, 2]
        return is_left_out, tuple(MARKER.split(text)[::2]) == self.layout(roles, generate=True).pieces

    @cached_property
    def end_of_turn(self) -> re.Pattern[str]:
        """Finds the first control token."""
        special = {token.content for token in self._tokenizer.added_tokens_decoder.values() if token.special}
        special.add(self._tokenizer.eos_token)
        return _any_of(sorted(filter(None, special), key=len, reverse=True))

    @property
    def stop(self) -> str | None:
        """The control token that ends a turn (of a base model, this need not be its end-of-text token)."""
        end = self.end_of_turn.search(self.layout(("user", "assistant"), generate=False).pieces[-1])
        return end[0] if end else None

    @cached_property
    def ends_a_call(self) -> re.Pattern[str]:
        """Finds a token that ends a turn; control tokens inside a call do not."""
        return _any_of(filter(None, (self.stop, self._tokenizer.eos_token, *_CALL_ENDS)))

    def _find_layout(self, roles: tuple[str, ...], generate: bool) -> Layout:
        try:
            pieces = self._pieces(roles, generate)
            trimmed = self._trimmed(roles, generate, pieces)
        except (TemplateError, _LostMessageError) as error:
            if roles[:2] == ("system", "user"):  # some templates know no system message: it goes to the user's
                return self._find_layout(roles[1:], generate)._replace(folds_system=True)
            if roles != ("user", "assistant")[: len(roles)]:
                raise SkippedRowError("conversation whose turns the chat template refuses or leaves out") from None
            raise InputError(
                f"--template {self._name}: the tokenizer's chat template refuses the turns {', '.join(roles)}: {error}"
            ) from None
        return Layout(pieces, trimmed)

    def _trimmed(self, roles: tuple[str, ...], generate: bool, pieces: tuple[str, ...]) -> tuple[bool, ...]:
        """Of each message, whether spaces around its text are removed; most templates remove all or none."""
        last = len(roles)
        padded = self._pieces(roles, generate, padded=range(last))
        if padded == tuple(" " * (i > 0) + piece + " " * (i < last) for i, piece in enumerate(pieces)):
            return (False,) * last
        return tuple(padded == pieces or self._pieces(roles, generate, padded=(i,)) == pieces for i in range(last))

    def _pieces(self, roles: tuple[str, ...], generate: bool, padded: Container[int] = ()) -> tuple[str, ...]:
        """What stands before, between and after the messages' texts.

        Args:
            roles: of the messages.
            generate: end with the beginning of an answer.
            padded: the texts of these messages have spaces around them (they are in the pieces unless the template
                trims).
        """
        marks = [f" {marker(index)} " if index in padded else marker(index) for index in range(len(roles))]
        messages = [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)]
        text = self._written(messages, None, generate)
        found = numbers_of(text)
        if found != [*range(len(roles))]:
            lost = next((roles[index] for index in range(len(roles)) if found.count(index) != 1), "its order")
            raise _LostMessageError(f"it does not keep {lost}")
        return tuple(MARKER.split(text)[::2])

    def _written(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None, generate: bool) -> str:
        """The same with a fixed date in it (a function is no argument of a template)."""
        source = (STRFTIME_NOW if "strftime_now" in self.source else "") + self.source
        try:
            return write(self._tokenizer, source, messages, tools, generate)
        except OverrunError as error:
            raise InputError(
                f"--template {self._name}: the tokenizer's chat template is not followed to its end: {error}; choose "
                "another template, or correct the tokenizer's chat_template.jinja."
            ) from None


def write(
    tokenizer: Any, source: str, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None, generate: bool
) -> str:
    """What a chat template makes of messages, as `apply_chat_template` of `transformers` has it.

    Args:
        tokenizer: of `transformers`; the template may name its special tokens.
        source: Jinja.
        messages: with their roles and contents.
        tools: that may be called.
        generate: end with the beginning of an answer.

    Raises:
        TemplateError: the template fails, or refuses the messages.
        OverrunError: it takes, or writes, too much.
    """
    given = {"messages": messages, "tools": tools, "documents": None, "add_generation_prompt": generate}
    return rendered(source, {**tokenizer.special_tokens_map, "date_string": DATE, **given})
