"""A chat template in Jinja, translated to Go's text/template, as Ollama wants it.

Ollama gives a template the messages, neighbours of one role joined, and lets an assistant's message at the end be
continued. Its language has no lists to be changed, no macros, no splitting of texts: Jinja cannot be translated word by
word. So the Jinja template is not read but asked: what does it write before a message of each role, given the role
before it, and at the end? If that is all there is to it, which texts of many kinds decide, the same table is written in
Go's language. Otherwise the template is refused.
"""

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from mlxmath.errors import InputError

Message = Mapping[str, str]
Render = Callable[[Sequence[Message]], str | None]
"""A conversation that ends with a user's message, and the beginning of the answer; None if the template refuses it."""

ROLES = ("system", "user", "assistant")
_START, _END = "", "end"
_SHAPES = ("u", "su", "uau", "suau", "uauau", "suauau")
"""Conversations that the table is made of, by the first letters of their roles."""
_SPACE = " \t\n\r\v\f"
_MARK = re.compile("\ue000([0-9]+)\ue001")
_TEXTS = (
    "Tom has 12 pens & 3 books; how many?",
    "<b>2 < 3</b> {{ x }} {% y %} {# z #}", 'a "quoted" \\frac{1}{2}\nline\n\nend',
    "é中😀 -> \u00bd", "  spaces around \n", "0", "{{ .Content }} `x` '''y'''", "Zebra\tstripes %s %d",
)  # fmt: skip
"""Contents of messages: what templates of both languages might take for something of theirs."""
_THOUGHT = "<think>\n2 + 2 = 4\n</think>\n\n"

_TRIM = """{{- define "trim" }}{{ if . }}
{{- $first := slice . 0 1 }}{{ $last := slice . (len (slice . 1)) }}
{{- if eq $first SPACES }}{{ template "trim" (slice . 1) }}
{{- else if eq $last SPACES }}{{ template "trim" (slice . 0 (len (slice . 1))) }}
{{- else }}{{ . }}{{ end }}
{{- end }}{{ end }}
"""
"""Go's templates know no trimming, but call themselves."""


@dataclass(frozen=True)
class GoTemplate:
    """What stands around the messages of a conversation."""

    between: Mapping[tuple[str, str], str]
    """What stands between two roles, "" being the beginning and "end" where the answer is to begin."""
    trimmed: frozenset[str] = frozenset()
    """Roles whose messages lose the spaces around them."""
    dropped: frozenset[str] = frozenset()
    """Roles whose messages are left out."""
    notes: tuple[str, ...] = field(default=(), compare=False)
    """In what Ollama's conversations differ from the trained template's."""

    def rendered(self, messages: Sequence[Message]) -> str:
        """What `source` makes of messages, computed here."""
        text, before = "", _START
        for message in messages:
            role = message["role"]
            if role in self.dropped or role not in ROLES:
                continue
            content = message["content"].strip(_SPACE) if role in self.trimmed else message["content"]
            text += self.between.get((before, role), self._usual(role)) + content
            before = role
        return text if before == "assistant" else text + self.between.get((before, _END), self._usual(_END))

    def source(self) -> str:
        """The template in Go's language."""
        lines = [_TRIM.replace("SPACES", " ".join(map(quoted, _SPACE)))] if self.trimmed - self.dropped else []
        lines.append('{{- $before := "" }}\n{{- range .Messages }}\n')
        kept = [role for role in ROLES if role not in self.dropped]
        for number, role in enumerate(kept):
            content = '{{ template "trim" .Content }}' if role in self.trimmed else "{{ .Content }}"
            lines.append(f"{{{{- {'else ' * bool(number)}if eq .Role {quoted(role)} }}}}{self._choice(role)}{content}")
            lines.append("{{- $before = .Role }}\n")
        lines.append("{{- end }}\n{{- end }}\n")
        lines.append(f'{{{{- if ne $before "assistant" }}}}{self._choice(_END)}{{{{ end }}}}')
        return "".join(lines)

    def without_start(self, text: str) -> "GoTemplate":
        """The same without a text at the very beginning, which llama.cpp puts there itself."""
        return GoTemplate(
            {key: value.removeprefix(text) if key[0] == _START else value for key, value in self.between.items()},
            self.trimmed, self.dropped, self.notes,
        )  # fmt: skip

    def _usual(self, role: str) -> str:
        """What stands before a role after roles that no conversation has shown: what does so most often."""
        found = [text for (_, to), text in self.between.items() if to == role]
        return max(found, key=found.count, default="")

    def _choice(self, role: str) -> str:
        """Go's conditions that write what stands before a role."""
        usual = self._usual(role)
        others = {before: text for (before, to), text in self.between.items() if to == role and text != usual}
        if not others:
            return _written(usual)
        parts = [
            f"{{{{ {'else ' * bool(number)}if eq $before {quoted(before)} }}}}{_written(text)}"
            for number, (before, text) in enumerate(others.items())
        ]
        return "".join(parts) + (f"{{{{ else }}}}{_written(usual)}" if usual else "") + "{{ end }}"


def quoted(text: str) -> str:
    """A string constant of Go; what Ollama's reader of Modelfiles would drop is escaped."""
    escapes = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "\r": "\\r"}

    def one(char: str) -> str:
        if char in escapes or char.isprintable():
            return escapes.get(char, char)
        return f"\\u{ord(char):04x}" if ord(char) < 0x10000 else f"\\U{ord(char):08x}"

    return '"' + "".join(map(one, text)) + '"'


def _written(text: str) -> str:
    return f"{{{{ {quoted(text)} }}}}" if text else ""


def translate(render: Render) -> GoTemplate:
    """The template that writes around messages what a Jinja template does.

    Args:
        render: the Jinja template.

    Raises:
        InputError: it does more than a table of roles can say.
    """
    between: dict[tuple[str, str], str] = {}
    alone = render(_marked("u"))
    if alone is None or _pieces(render, "u") is None:
        raise _refused("it does not write a user's message once")
    with_system = render(_marked("su"))
    is_refused = with_system is None
    dropped = frozenset({"system"} if with_system == alone.replace(_mark(0), _mark(1)) else ())
    for shape in _SHAPES:
        if "s" in shape and (dropped or is_refused):
            continue
        pieces = _pieces(render, shape)
        if pieces is None:
            raise _refused(f"it leaves out or moves one of the messages {', '.join(_roles(shape))}")
        for key, piece in zip(_steps(shape), pieces, strict=True):
            if between.setdefault(key, piece) != piece:
                raise _refused(
                    f"between {key[0] or 'the beginning'} and {key[1]} it writes {_shown(between[key])} in one place "
                    f"and {_shown(piece)} in another"
                )
    if is_refused:  # as in training: the system message begins the user's
        between |= {(_START, "system"): between[_START, "user"], ("system", "user"): "\n\n"}
    found = GoTemplate(between, dropped=dropped)
    for role in ROLES:
        if role not in dropped and not (is_refused and role == "system"):
            found = _with_trimming(found, render, role)
    _compare(found, render, "uau" if dropped or is_refused else "suau")
    return GoTemplate(found.between, found.trimmed, found.dropped, tuple(_thinking(found, render)))


def _with_trimming(found: GoTemplate, render: Render, role: str) -> GoTemplate:
    """The template that trims messages of a role as Jinja's does."""
    shape = "suau" if role == "system" else "uau"
    padded = [
        {**message, "content": f" \n {message['content']} \n " if message["role"] == role else message["content"]}
        for message in _marked(shape)
    ]
    wanted = render(padded)
    trims = GoTemplate(found.between, found.trimmed | {role}, found.dropped)
    for one in (found, trims):
        if one.rendered(padded) == wanted:
            return one
    raise _refused(f"it changes the spaces in a message of the {role}")


def _compare(found: GoTemplate, render: Render, longest: str) -> None:
    """Hold the translation against the original on conversations of all shapes and contents."""
    rng = random.Random(0)
    shapes = [shape for shape in _SHAPES if "s" not in shape or "s" in longest]
    for number in range(8 * len(shapes)):
        roles = _roles(shapes[number % len(shapes)])
        messages = [{"role": role, "content": rng.choice(_TEXTS)} for role in roles]
        wanted, ours = render(messages), found.rendered(messages)
        if wanted != ours:
            at = next((i for i, (a, b) in enumerate(zip(wanted or "", ours, strict=False)) if a != b), 0)
            raise _refused(
                f"what it writes depends on the text of a message: {_shown((wanted or '')[max(at - 10, 0) :])} where "
                f"{_shown(ours[max(at - 10, 0) :])} was expected"
            )


def _thinking(found: GoTemplate, render: Render) -> list[str]:
    """What becomes of the thinking in earlier answers."""
    thinks = [
        {"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": f"{_THOUGHT}It is 4."},
        {"role": "user", "content": "3 + 3?"},
    ]  # fmt: skip
    if render(thinks) == found.rendered(thinks):
        return []
    return [
        "the trained template drops the thinking of earlier answers (up to </think>), which no template of Ollama can: "
        "in conversations of several turns it stays, unless the client leaves it out"
    ]


def _pieces(render: Render, shape: str) -> list[str] | None:
    """What stands before, between and after the messages; None where they are not all there, once and in order."""
    text = render(_marked(shape)) or ""
    parts = _MARK.split(text)
    return parts[::2] if parts[1::2] == [str(index) for index in range(len(shape))] else None


def _marked(shape: str) -> list[Message]:
    return [{"role": role, "content": _mark(index)} for index, role in enumerate(_roles(shape))]


def _mark(number: int) -> str:
    return f"\ue000{number}\ue001"


def _roles(shape: str) -> list[str]:
    return [next(role for role in ROLES if role.startswith(letter)) for letter in shape]


def _steps(shape: str) -> list[tuple[str, str]]:
    roles = [_START, *_roles(shape), _END]
    return list(pairwise(roles))


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:60] + "…")


def _refused(why: str) -> InputError:
    return InputError(
        f"--to ollama: the chat template cannot be translated to Go's text/template: {why}. Export with --to gguf, "
        "whose file carries the template as it is (llama.cpp's server reads it), or train in another template."
    )
