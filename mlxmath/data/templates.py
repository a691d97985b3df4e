"""How a problem and its solution become text: one object for training, for inference and for chat servers.

A template is a small TOML file in `templates/`, or the user's own (`--template-file`):

    prompt = "Problem: {question}\\nSolution:\\n" # {question}: the problem
    completion = "{solution}"                   # {solution} and {answer}: what the model learns to write
    chat = false                                # true: `prompt` is the user's turn in the tokenizer's chat template
    system = "..."                              # with chat = true: the system message, if the row has none
    stop = ["\\n\\n", "Problem:"]               # an answer ends before the first of these texts

Values are put into the places as they are: braces, quotes and control tokens in a problem stay text.
"""

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

from pydantic import field_validator

from mlxmath.config.load import TEMPLATES
from mlxmath.config.section import Section, check_section, no_such, read_toml
from mlxmath.data.gold import gold
from mlxmath.data.problem import Message, Problem, SkippedRowError
from mlxmath.errors import InputError

TEMPLATE_FOLDER = Path(__file__).parent / "prompt_templates"
PLACES = ("question", "solution", "answer")

_PLACE = re.compile(r"\{(question|solution|answer)\}")
_MAYBE_PLACE = re.compile(r"\{([A-Za-z_]+)\}")
_OPENED = re.compile(r"<think>\s*\Z")
_OPENS = re.compile(r"\s*<think>\n?")


class Segment(NamedTuple):
    """A part of a text."""

    text: str
    is_target: bool
    """Whether the model learns to write it."""
    is_control: bool = False
    """Whether the spelling of a control token in it is that control token (text of a chat template), not plain text.

    A text with such a segment is whole: it has its own beginning- and end-of-text tokens. Any other text gets the
    beginning that the tokenizer gives to texts, and after a solution the end-of-text token.
    """


Text = tuple[Segment, ...]


class Definition(Section):
    """The contents of a template's file."""

    description: str = ""
    prompt: str
    completion: str = "{solution}"
    chat: bool = False
    system: str | None = None
    stop: tuple[str, ...] | None = None

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


def joined(text: Text) -> str:
    """The segments as one string."""
    return "".join(segment.text for segment in text)


@dataclass(frozen=True)
class Template:
    """How problems become text: a prompt with a place for the problem, followed by a completion."""

    name: str
    spec: Definition

    keeps_system: ClassVar[bool] = False
    """Whether a conversation's system message becomes part of its text (here an instruction is part of the prompt)."""

    @property
    def definition(self) -> dict[str, Any]:
        """Everything that the texts depend on; goes into adapter_config.json and into the cache's name."""
        return self.spec.model_dump(mode="json", exclude={"description"}, exclude_none=True)

    @property
    def stop(self) -> str | None:
        """A control token that ends an answer, besides the tokenizer's end-of-text token."""
        return None

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """Texts that end an answer: it is cut before the first one."""
        return self.spec.stop or ()

    def for_tokenizer(self, tokenizer: Any) -> "Template":  # noqa: ARG002
        """The template that renders for this tokenizer; only a chat template is another one."""
        return self

    def verbatim(self) -> Self:
        """The template with the same prompts that writes solutions word for word."""
        return replace(self, spec=self.spec.model_copy(update={"completion": "{solution}"}))

    def prompt(self, question: str) -> Text:
        """What the model is given: the text up to the place where it is to write."""
        return (Segment(fill(self.spec.prompt, {"question": question}), False),)

    def conversation(self, messages: Sequence[Message]) -> tuple[Text, ...]:
        """What the model is given after several turns, of which the last one is a user's; see `chat_template`.

        Returns:
            Earlier problems with their solutions, each to be closed by the end-of-text token, then the last problem.
            (In a chat template one text holds everything.)
        """
        texts: list[list[Segment]] = []
        is_answered = True
        for message in messages:
            if message.role != "system":
                if is_answered:
                    texts.append([])
                is_answered = message.role == "assistant"
                texts[-1] += (Segment(message.content, True),) if is_answered else self.prompt(message.content)
        return tuple(map(tuple, texts))

    def render(self, problem: Problem) -> Text:
        """A training text. It begins with `prompt(problem.question)` if the problem is one question and its solution.

        Raises:
            SkippedRowError: the problem lacks what the template needs.
        """
        if problem.is_text:
            return (Segment(problem.question, True),)
        if problem.tools or sum(message.role == "assistant" for message in problem.messages) > 1:
            raise SkippedRowError("conversation of several turns (these need the chat template)")
        (prompt,) = self.prompt(problem.question)
        return prompt, Segment(completion(self.spec.completion, problem, after=prompt.text), True)

    def chat_template(self, *, bos: bool) -> str:
        """A Jinja chat template that gives these texts.

        The last user message becomes exactly `prompt(content)`; earlier turns become earlier problems with their
        solutions, each solution closed by the end-of-text token; an assistant message at the end gives the training
        text. System messages are left out: the model was tuned on one fixed instruction, which is part of the prompt.

        Args:
            bos: begin with the tokenizer's `bos_token`; give `mlxmath.data.render.adds_bos(tokenizer)`. (Tokenizers add
                none to a text that comes from a chat template.)
        """
        return (
            ("{{ bos_token }}" if bos else "")
            + "{% for m in messages %}"
            + f"{{% if m['role'] == 'user' %}}{{{{ {jinja_fill(self.spec.prompt)} }}}}"
            + f"{{% elif m['role'] == 'assistant' %}}{{{{ {JINJA_CONTENT} + eos_token }}}}{{% endif %}}"
            + "{% endfor %}"
        )


JINJA_CONTENT = (
    "(m['content'] if m['content'] is string else "
    "(m['content'] or []) | selectattr('type', 'equalto', 'text') | map(attribute='text') | join)"
)
"""A message's text, whichever of the two forms it has."""


def jinja_fill(pattern: str) -> str:
    """A Jinja expression for the prompt pattern with the content of message `m` as the question."""
    parts = [json.dumps(part, ensure_ascii=False) for part in pattern.split("{question}")]
    return f" + {JINJA_CONTENT} + ".join(parts)


def fill(pattern: str, values: Mapping[str, str]) -> str:
    """Put values into their places; they are not looked at again."""
    return _PLACE.sub(lambda match: values[match[1]], pattern)


def completion(pattern: str, problem: Problem, *, after: str) -> str:
    """What the model learns to write to a problem.

    A thinking block that the prompt has opened (`after` ends in `<think>`) is not opened once more.

    Raises:
        SkippedRowError: the problem has no solution or answer where the pattern wants one.
    """
    values = {"question": problem.question, "solution": problem.solution}
    if "{answer}" in pattern:
        values["answer"] = gold(problem)
    for place in _PLACE.findall(pattern):
        if values[place] is None:
            raise SkippedRowError(f"no {place}, which the template needs")
    return not_opened_twice(fill(pattern, {place: str(value) for place, value in values.items()}), after)


def not_opened_twice(text: str, after: str) -> str:
    """`text` without its `<think>`, if the text before it ends in one."""
    return _OPENS.sub("", text, count=1) if _OPENED.search(after) and _OPENS.match(text) else text


def get_template(name: str, file: str | None = None, *, where: str = "--template") -> Template:
    """The template of that name, or the one in the user's own file.

    Args:
        name: one of `TEMPLATES`; it does not count if there is a file.
        file: a TOML file.
        where: where the name was given, for errors.

    Raises:
        InputError: there is none (the nearest name is given), or the file is not a template.
    """
    if file:
        return _make(Path(file).stem, read_definition(Path(file).expanduser()))
    if name not in TEMPLATES:
        raise InputError(f"{where}: {no_such('template', name, TEMPLATES)}")
    return _named(name)


def template_of(name_or_file: str, where: str) -> Template:
    """The template of a name, or in a file whose name ends in .toml.

    Raises:
        InputError: see `get_template`.
    """
    if name_or_file.endswith(".toml"):
        path = Path(name_or_file).expanduser()
        return _make(path.stem, read_definition(path, where))
    return get_template(name_or_file, where=where)


def recorded_template(record: Mapping[str, Any], where: Path) -> Template | None:
    """The template that an adapter was trained with, out of its adapter_config.json; None if it names none.

    Raises:
        InputError: the file names a template that does not exist or is none.
    """
    name = record.get("template") or ""
    if not isinstance(name, str) or len(name) > 200:
        raise InputError(f"{where}: template: expected a template's name; found {name!r}")
    if definition := record.get("template_definition"):
        return _make(name, _checked(check_section(Definition, definition, where), where))
    return get_template(name) if name else None


def own_template(tokenizer: Any, recorded: Template | None, otherwise: Template) -> Template:
    """What a model is asked in if nothing else is said.

    Args:
        tokenizer: of the model.
        recorded: what its adapter was trained with; it counts most.
        otherwise: for a model without an adapter's template and without a chat template of its own.
    """
    if recorded is not None:
        return recorded
    return get_template("chat") if getattr(tokenizer, "chat_template", None) else otherwise


def read_definition(path: Path, option: str = "--template-file") -> Definition:
    """Read a template's file.

    Raises:
        InputError: it is absent, is not TOML, or has a wrong key or pattern.
    """
    return _checked(check_section(Definition, read_toml(path, option), path), path)


@cache
def _named(name: str) -> Template:
    return _make(name, read_definition(TEMPLATE_FOLDER / f"{name}.toml"))


def _make(name: str, spec: Definition) -> Template:
    from mlxmath.data.chat import ChatTemplate

    return (ChatTemplate if spec.chat else Template)(name, spec)


def _checked(spec: Definition, where: Path) -> Definition:
    """A definition whose patterns make sense."""
    wanted = {"prompt": ("question",), "completion": PLACES, "system": ()}
    for key, allowed in wanted.items():
        pattern = getattr(spec, key) or ""
        for word in _MAYBE_PLACE.findall(pattern):
            near = difflib.get_close_matches(word, (*PLACES, "problem"), n=1, cutoff=0.8)
            if near and word not in allowed:
                places = " and ".join(f"{{{place}}}" for place in allowed) or "nothing"
                raise InputError(f"{where}: {key}: {{{word}}} cannot stand here; {places} can.")
    if "{question}" not in spec.prompt:
        raise InputError(f"{where}: prompt: {{question}} is missing, the place where the problem goes.")
    if not {"solution", "answer"} & set(_PLACE.findall(spec.completion)):
        raise InputError(f"{where}: completion: {{solution}} or {{answer}} is missing; there is nothing to learn.")
    if "" in (spec.stop or ()):
        raise InputError(f"{where}: stop: expected texts of one character at least, found an empty one.")
    if spec.system is not None and not spec.chat:
        raise InputError(f"{where}: system: needs chat = true; without it, write the instruction into the prompt.")
    return spec
