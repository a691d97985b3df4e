"""What others wrote that computes: chat templates in Jinja, and regular expressions. Each runs within bounds.

Templates, and the trial of a tokenizer's expressions, run in a process of their own (`mlxmath.runtime.bounded`), which
can be ended whatever it does: a sandbox says what a template may touch, not how long it takes or how much it writes.
"""

import json
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from mlxmath.runtime.bounded import OverrunError, Pool, own, serve

LIMIT_S = 2.0
"""Processor time for one text; the longest template in use takes 0.02 s for 500 messages."""
_MEMORY_BYTES = 512 << 20
_MOST_CHARACTERS = 4_000_000
"""Of a template, and of what it writes."""
_MOST_OF_A_PATTERN = 2000
_TRIED_ON = ("a", "A", "1", " ", "\n", "\t", ".", "'", "$", "é", "中", "\u0301", "a1", "a ", "A.", " \n", "'s", "aA")
_TRIED_LENGTH = 600
"""Characters: an expression that takes the square of a text's length is done with these at once, the cube is not."""


class TemplateError(Exception):
    """A chat template fails, or refuses its messages."""


def rendered(source: str, values: Mapping[str, Any]) -> str:
    """What a chat template makes of messages and the other values that `transformers` gives it.

    Args:
        source: Jinja, with what `transformers` adds to the language.
        values: JSON.

    Raises:
        TemplateError: it fails, or refuses the messages.
        OverrunError: it takes, or writes, too much.
    """
    if len(source) > _MOST_CHARACTERS:
        raise OverrunError(f"it has more than {_MOST_CHARACTERS:,} characters")
    key = str(hash(source))  # a long template is sent to a worker once
    found = _asked(["rendered", key, None, dict(values)])
    if "unknown" in found:
        found = _asked(["rendered", key, source, dict(values)])
    if "error" in found:
        raise TemplateError(found["error"])
    return str(found["text"])


@lru_cache(maxsize=64)
def try_cuts(patterns: tuple[str, ...]) -> None:
    """Try the regular expressions of a tokenizer on texts for which a bad one takes for ever.

    Raises:
        OverrunError: that is what it does.
    """
    if any(len(pattern) > _MOST_CHARACTERS for pattern in patterns):
        raise OverrunError(f"one has more than {_MOST_CHARACTERS:,} characters")
    if "error" in (found := _asked(["tried", patterns])):
        raise OverrunError(found["error"])


def _asked(request: Sequence[Any]) -> dict[str, Any]:
    try:
        found: dict[str, Any] = own(_make).reply(request)
    except OverrunError:
        raise OverrunError(
            f"it takes more than {LIMIT_S:g} s of a processor, or more than {_MEMORY_BYTES >> 20} MB of memory"
        ) from None
    if "over" in found:
        raise OverrunError(found["over"])
    return found


def _make() -> Pool:
    return Pool("mlxmath.runtime.foreign", min(4, os.cpu_count() or 1), LIMIT_S, _MEMORY_BYTES)


class Pattern:
    """A regular expression of a user or of a file, in Python's form.

    Args:
        source: the expression.

    Raises:
        ValueError: it is none.
    """

    def __init__(self, source: str) -> None:
        import regex

        if len(source) > _MOST_OF_A_PATTERN:
            raise ValueError(f"it has more than {_MOST_OF_A_PATTERN:,} characters")
        try:
            self._compiled = regex.compile(source, regex.DOTALL)
        except (regex.error, RecursionError, OverflowError) as error:
            raise ValueError(str(error) or type(error).__name__) from None

    def is_in(self, text: str, *, whole: bool = False) -> bool:
        """Whether it fits a part of a text, or the whole.

        Raises:
            OverrunError: that cannot be told in a time.
        """
        find = self._compiled.fullmatch if whole else self._compiled.search
        try:
            return find(text, timeout=LIMIT_S) is not None
        except TimeoutError:
            raise OverrunError(f"it takes more than {LIMIT_S:g} s for a text of {len(text):,} characters") from None


def _work(request: list[Any]) -> dict[str, str]:
    """In the worker: answer `rendered` or `try_cuts`."""
    try:
        return _render(*request[1:]) if request[0] == "rendered" else _try_cuts(*request[1:])
    except MemoryError:
        return {"over": f"it takes more than {_MEMORY_BYTES >> 20} MB of memory"}


_sources: dict[str, str] = {}
"""In the worker: templates by the caller's keys."""


def _render(key: str, source: str | None, values: dict[str, Any]) -> dict[str, str]:
    if source is not None:
        _sources[key] = source
    if key not in _sources:
        return {"unknown": key}
    try:
        pieces, length = [], 0
        for piece in _compiled(_sources[key]).generate(values):
            pieces.append(piece)
            length += len(piece)
            if length > _MOST_CHARACTERS:
                return {"over": f"it writes more than {_MOST_CHARACTERS:,} characters"}
    except MemoryError:
        raise
    except Exception as error:  # whatever a stranger's program may raise
        name = type(error).__name__
        return {"error": (str(error) if name == "TemplateError" else f"{name}: {error}")[:300]}
    return {"text": "".join(pieces)}


@lru_cache(maxsize=16)
def _compiled(source: str) -> Any:
    """A template in the language of `transformers`: Jinja's sandbox, with `break`, `tojson` and a few names more."""
    from jinja2 import TemplateError as Refusal
    from jinja2.exceptions import SecurityError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.nodes import Scope
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    class Generation(Extension):
        """`{% generation %}` marks what an assistant wrote; here it is text like all other."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            return Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)

    class Values(Namespace):
        """A namespace without names that lead into Python."""

        def __init__(*args: Any, **kwargs: Any) -> None:
            self, given = args[0], dict(*args[1:], **kwargs)
            for name in given:
                _check(name)
            Namespace.__init__(self, given)

        def __setitem__(self, name: str, value: Any) -> None:
            _check(name)
            super().__setitem__(name, value)

    def _check(name: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"a namespace may have no {name!r}")

    def raise_exception(message: str) -> None:
        raise Refusal(message)

    def tojson(
        value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals |= {
        "raise_exception": raise_exception, "namespace": Values, "dict": lambda *args, **kwargs: dict(*args, **kwargs),
    }  # fmt: skip
    return environment.from_string(source)


def _try_cuts(patterns: Sequence[str]) -> dict[str, str]:
    from tokenizers import Regex, pre_tokenizers

    texts = [(part * _TRIED_LENGTH)[:_TRIED_LENGTH] + end for part in _TRIED_ON for end in ("", "!", "\x01")]
    for pattern in patterns:
        try:
            cut = pre_tokenizers.Split(Regex(pattern), "isolated")
            for text in texts:
                cut.pre_tokenize_str(text)
        except BaseException as error:  # the library panics where its own bound is passed: no Exception
            return {"error": f"{pattern[:60]!r}: {error}"[:300]}
    return {}


if __name__ == "__main__":
    serve(_work, ["rendered", "", "{{ messages }}", {"messages": []}])
