"""Templates and regular expressions of strangers: right ones give what they did, the others end within their bounds."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from mlxmath.data.codec import codec_of, load_tokenizer
from mlxmath.data.templates import get_template
from mlxmath.errors import InputError, MlxmathError
from mlxmath.runtime.bounded import OverrunError, Pool
from mlxmath.runtime.foreign import Pattern, TemplateError, rendered, try_cuts
from tests.data.material import BUILDERS

LOOP = "{% for i in range(99999) %}" * 3 + "{% endfor %}" * 3
DOUBLED = "{% set ns = namespace(x='aa') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}"


def workers() -> Pool:
    return Pool("mlxmath.runtime.foreign", 2, 0.5, 512 << 20)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a second of a processor is enough for what is right here."""
    monkeypatch.setattr("mlxmath.runtime.foreign.LIMIT_S", 0.5)
    monkeypatch.setattr("mlxmath.runtime.foreign._make", workers)


@pytest.mark.parametrize(
    "source",
    [LOOP, DOUBLED, "{{ 'a' * 10**10 }}", "{{ '%9999999999d' | format(1) }}", "{{ 'a'.center(10**10) }}",
     "{% for i in range(9999) %}{{ 'abcdefghij' * 100 }}{% endfor %}", "{{ 7 ** (10**8) }}", " " * 4_000_001],
)  # fmt: skip
def test_a_template_without_end_or_measure_is_ended(source: str) -> None:
    start = time.monotonic()
    with pytest.raises(OverrunError, match="it (takes|writes|has) more than"):
        rendered(source, {})
    assert time.monotonic() - start < 20
    assert rendered("{{ 1 + 1 }}", {}) == "2"  # the next one is not harmed


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ raise_exception('not today') }}", "^not today$"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "RecursionError"),
        (f"{{{{ {'(' * 5000}1{')' * 5000} }}}}", "RecursionError"),
        ("{% if x %}" * 5000 + "{% endif %}" * 5000, "RecursionError"),
        ("{% if", "TemplateSyntaxError"),
        ("{{ x.y.z }}", "UndefinedError"),
        ("{{ range(10**9) | list }}", "OverflowError"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),
        ("{{ cycler.__init__.__globals__ }}", "SecurityError"),
        ("{{ [].append(1) }}", "SecurityError"),
        ("{{ namespace(__class__=1) }}", "SecurityError"),
        ("{% set ns = namespace() %}{% set ns._x = 1 %}", "SecurityError"),
        ("{% include '/etc/passwd' %}", "TypeError"),
    ],
)
def test_a_template_that_fails_says_so(source: str, said: str) -> None:
    with pytest.raises(TemplateError, match=said):
        rendered(source, {})


def test_many_threads_render_at_once() -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as threads:
        found = threads.map(lambda number: rendered("{{ n }}" + "x" * (number % 3), {"n": number}), range(100))
        assert list(found) == [f"{number}{'x' * (number % 3)}" for number in range(100)]


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (LOOP, "it takes more than 0.5 s of a processor.*choose another template"),
        (DOUBLED, "it takes more than .*512 MB"),  # both are named where the half second ends first
        ("{{ messages | length // 0 }}", "refuses the turns user: ZeroDivisionError"),
        ("{{ messages[0].content }}{{ 1 // 0 if messages[0].content[0] == ' ' }}", "refuses the turns user: ZeroDiv"),
        ("\ue000{{ '9' * 5000 }}\ue001", "refuses the turns user: it does not keep user"),
    ],
)
def test_a_model_s_template_that_is_bad_is_one_clear_error(template: str, said: str) -> None:
    tokenizer = BUILDERS["byte level"]()
    tokenizer.chat_template = template
    with pytest.raises(InputError, match=f"--template chat: the tokenizer's chat template .*{said}"):
        get_template("chat").for_tokenizer(tokenizer).prompt("q")


@pytest.mark.parametrize("pattern", [r"(a+)+\x02", r"(\w+\s?)+$", "(" * 4_000_001])
def test_a_tokenizer_s_expression_that_takes_for_ever_is_found(pattern: str) -> None:
    with pytest.raises(OverrunError):
        try_cuts((pattern,))


def test_expressions_of_tokenizers_in_use_pass() -> None:
    from mlxmath.weights.gguf_cuts import PRE_TOKENIZERS

    try_cuts(tuple({pattern for cuts in PRE_TOKENIZERS.values() for pattern in cuts.patterns}))
    try_cuts((r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+", "\\s+", " {2,}"))


def with_cut(folder: Path, pattern: str) -> Path:
    """A folder with a tokenizer that cuts text by an expression."""
    BUILDERS["byte level"]().save_pretrained(folder)
    path = folder / "tokenizer.json"
    written: dict[str, Any] = json.loads(path.read_text())
    cut = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    written["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [cut, written["pre_tokenizer"]]}
    path.write_text(json.dumps(written))
    return folder


def test_a_tokenizer_with_such_an_expression_is_refused(tmp_path: Path) -> None:
    load_tokenizer(with_cut(tmp_path / "good", r"\d+|[^\d]+"))
    with pytest.raises(MlxmathError, match=r"tokenizer\.json: a regular expression .* cannot be used: '\(a\+\)\+b'"):
        load_tokenizer(with_cut(tmp_path / "bad", "(a+)+b"))


def test_a_text_on_which_the_tokenizer_gives_up_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """An expression that is slow on none of the texts that are tried."""
    codec = codec_of(load_tokenizer(with_cut(tmp_path, "q(a+)+b")))
    for encode in (codec.encode, lambda text: codec.encode_pairs([(text, "x", False)])):  # type: ignore[list-item]
        with pytest.raises(MlxmathError, match="the tokenizer gives up on a text"):
            encode(f"q{'a' * 40}c b")


def test_a_pattern_is_searched_within_a_time() -> None:
    assert Pattern("a.b").is_in("xa\nbx") and not Pattern("a.b").is_in("xa\nbx", whole=True)
    assert not Pattern("(a+)+b").is_in("a" * 200)
    with pytest.raises(OverrunError, match=r"it takes more than 0\.5 s for a text of 60 characters"):
        Pattern(r"(a|aa|a\b|.a)+$").is_in("a" * 59 + "!")
    for wrong in ("(", "a" * 2001, "(?P<n>", "[z-a]", "a{5,3}"):
        with pytest.raises(ValueError, match="."):
            Pattern(wrong)
