"""Chat templates that models bring, rendered here and by transformers."""

from pathlib import Path
from typing import Any

import pytest

from mlxmath.data.chat_format import DATE, STRFTIME_NOW, write
from mlxmath.runtime.foreign import TemplateError
from tests.data.material import BUILDERS

trl = pytest.importorskip("trl", reason="the parity extra is not installed")
TEMPLATES = sorted((Path(trl.__file__).parent / "chat_templates").glob("*[!g].jinja"))  # not those for training
SYSTEM, ASKED = {"role": "system", "content": "s é"}, {"role": "user", "content": " q <b>\n"}
SAID, RESULT = {"role": "assistant", "content": "a"}, {"role": "tool", "name": "add", "content": "3"}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "é": [None, "<"]}}}
CALLED = {"role": "assistant", "content": "", "tool_calls": [CALL]}
PARAMETERS = {"type": "object", "properties": {"a": {"type": "integer", "description": "<é>"}}}
TOOLS = [{"type": "function", "function": {"name": "add", "description": "adds", "parameters": PARAMETERS}}]
CONVERSATIONS: list[tuple[list[dict[str, Any]], list[Any] | None, bool]] = [
    ([ASKED], None, True), ([SYSTEM, ASKED, SAID], None, False), ([ASKED, ASKED], None, True),
    ([ASKED, CALLED, RESULT, SAID], TOOLS, False), ([SYSTEM, ASKED], TOOLS, True),
]  # fmt: skip


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_they_write_what_they_do_in_transformers(path: Path) -> None:
    tokenizer, source = BUILDERS["byte level"](), path.read_text(encoding="utf-8")
    source = (STRFTIME_NOW if "strftime_now" in source else "") + source
    for messages, tools, generate in CONVERSATIONS:
        ours: str | None
        try:
            theirs = tokenizer.apply_chat_template(
                messages, tools=tools, tokenize=False, chat_template=source, add_generation_prompt=generate,
                date_string=DATE,
            )  # fmt: skip
        except Exception:  # a template may fail in any way
            theirs = None
        try:
            ours = write(tokenizer, source, messages, tools, generate)
        except TemplateError:
            ours = None
        assert ours == theirs
