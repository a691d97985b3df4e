"""Which of the GGUF files in a folder or a repository is the model."""

import re
from collections.abc import Iterable

from mlxmath.errors import InputError

_OF_A_SET = re.compile(r"(.+)-\d{5}-of-(\d{5})(\.gguf)", re.IGNORECASE)
_NO_MODELS = re.compile(r"mmproj|imatrix", re.IGNORECASE)
"""Parts for images, and measurements for quantizing, which lie beside models."""


def is_gguf(name: str) -> bool:
    """Whether a file may be a model in GGUF form, by its name."""
    return name.lower().endswith(".gguf") and not _NO_MODELS.search(name.rpartition("/")[2])


def chosen_gguf(names: Iterable[str], wanted: str | None, where: str) -> list[str]:
    """The files of the one model among `names`, in order.

    Args:
        names: of files, with folders.
        wanted: a part of the name, as "Q4_K_M", or all of it; None: there must be only one model.
        where: what to call the place in an error.

    Raises:
        InputError: there is no such model, or there are several.
    """
    names = list(names)
    models, fitting = gguf_models(names), gguf_models(names, wanted)
    if len(fitting) == 1:
        return next(iter(fitting.values()))
    kinds = ", ".join(sorted({_kind(stem) for stem in fitting or models})) or "none"
    if not fitting:
        raise InputError(f"--model {where}: there is no GGUF file {wanted or ''} there; it has: {kinds}.")
    raise InputError(
        f"--model {where} holds {len(fitting)} models in GGUF form; say which by a part of its name after a colon, as "
        f"in {where}:{_kind(next(iter(fitting)))}. There are: {kinds}."
    )


def gguf_models(names: Iterable[str], wanted: str | None = None) -> dict[str, list[str]]:
    """The files of each model among `names`, in order, by its name; of those that are `wanted`."""
    models: dict[str, list[str]] = {}
    for name in sorted(filter(is_gguf, names)):
        found = _OF_A_SET.fullmatch(name)
        models.setdefault(f"{found[1]}{found[3]}" if found else name, []).append(name)
    return {stem: files for stem, files in models.items() if wanted is None or _is_meant(stem, files, wanted)}


def _is_meant(stem: str, files: list[str], wanted: str) -> bool:
    name = stem.rpartition("/")[2].removesuffix(".gguf")
    if wanted in (*files, stem, name):
        return True
    if wanted.lower() == _kind(stem).lower():
        return True
    return re.search(rf"(^|[-./]){re.escape(wanted)}([-./]|$)", stem.removesuffix(".gguf"), re.IGNORECASE) is not None


def _kind(stem: str) -> str:
    """The part of a name that says how the weights are stored; all of it if there is none."""
    name = stem.rpartition("/")[2].removesuffix(".gguf")
    found = re.search(r"(?:^|[-_.])((?:UD-)?I?Q\d\w*|F16|F32|BF16|MXFP4\w*)$", name, re.IGNORECASE)
    return found[1] if found else name
