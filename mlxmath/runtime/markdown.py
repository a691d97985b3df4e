"""Text of others in Markdown: it is shown as it is, links to nothing and fetches nothing."""

import re

from mlxmath.runtime.console import harmless, printable

_MARKUP = re.compile(r"[\\`\[\]|]")


def cell(value: object) -> str:
    """A value on one line, in a table or outside: no markup of links, images, HTML or tables is left in it."""
    text = " ".join(printable(str(value)).split())
    return _MARKUP.sub(r"\\\g<0>", text).replace("<", "&lt;")


def code(value: object) -> str:
    """A value on one line, as code."""
    return f"`{' '.join(printable(str(value)).split()).replace('`', '')}`"


def block(value: object) -> str:
    """A text of several lines, as a block of code."""
    return "\n".join(f"    {line}" for line in harmless(str(value)).splitlines())
