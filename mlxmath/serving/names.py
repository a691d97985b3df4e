"""Under which names models are served."""

import re
from collections.abc import Sequence
from pathlib import Path

from mlxmath.data.templates import Template, get_template
from mlxmath.errors import InputError
from mlxmath.runtime.files import real

BASE, DEFAULT = "base", "default_model"
"""The model without an adapter; what mlx_lm's clients call the one that answers if they name none."""
_NAME = re.compile(r"[\w.:@-][\w.:@/-]{0,99}")


def adapters_by_name(given: Sequence[str], otherwise: Path, *, base_only: bool) -> dict[str, Path | None]:
    """The adapter folders by the names of `--adapter`.

    Args:
        given: NAME=PATH each.
        otherwise: the folder to serve if none is given, under its own name.
        base_only: serve none.

    Raises:
        InputError: a name is missing, taken or not usable, or adapters are given and refused.
    """
    if base_only:
        if given:
            raise InputError("--no-adapter serves the base alone, and --adapter names more; leave one of them out.")
        return {}
    if not given:
        name = real(otherwise).name
        return {name if _NAME.fullmatch(name) and name not in (BASE, DEFAULT) else "tuned": otherwise}
    found: dict[str, Path | None] = {}
    for text in given:
        name, equals, path = text.partition("=")
        name, path = name.strip(), path.strip()
        if not equals or not path or not _NAME.fullmatch(name):
            raise InputError(
                f"--adapter {text!r}: expected NAME=PATH, for example gsm8k=adapters; a name has letters, digits and "
                "._:@/- in it."
            )
        if name in (BASE, DEFAULT) or name in found:
            taken = "means the first model" if name == DEFAULT else "is the base model" if name == BASE else "is there"
            raise InputError(f"--adapter {text!r}: the name {name!r} {taken} already; choose another one.")
        found[name] = Path(path).expanduser()
    return found


def template_of_all(name: str | None, file: str | None) -> Template | None:
    """The template that `--template` or `--template-file` names; None if neither does.

    Raises:
        InputError: there is no such template, or both are given.
    """
    if name and file:
        raise InputError("--template and --template-file exclude each other; give one of them.")
    return get_template(name or "", file) if name or file else None
