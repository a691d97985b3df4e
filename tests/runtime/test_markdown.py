"""Text of others in Markdown is text."""

import pytest

from mlxmath.runtime.markdown import block, cell, code


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain, 5 % of 3_000", "plain, 5 % of 3_000"),
        ("![x](//evil.test/x.png)", "!\\[x\\](//evil.test/x.png)"),
        ("\\[x](y)", "\\\\\\[x\\](y)"),  # the backslash of others does not eat ours
        ("a`b", "a\\`b"),  # nor does their code begin where ours does
        ("<img src=x>", "&lt;img src=x>"),
        ("a | b\n| c", "a \\| b \\| c"),
        ("a\x1b[2J\u202eb\r\n\x00", "a \\[2J b"),
        (None, "None"),
    ],
)
def test_a_cell(text: str | None, expected: str) -> None:
    assert cell(text) == expected


def test_code_and_blocks() -> None:
    assert code("a`![x](y)`\nb") == "`a![x](y) b`"
    assert block("a\r\nb\x0bc\u2028<d>\x1b") == "    a\n    b c <d> "
