"""Models that other programs keep on this machine: Ollama's manifests and blobs, LM Studio's folders.

Neither program is called; their files are read where they lie.
"""

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxmath.errors import InputError, MlxmathError
from mlxmath.runtime.console import size, warn
from mlxmath.runtime.files import read_json
from mlxmath.weights.gguf_choice import chosen_gguf, gguf_models

OLLAMA = "ollama:"
LM_STUDIO = "lmstudio:"
_NAME = re.compile(r"\w[\w.-]*")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_REGISTRY, _LIBRARY = "registry.ollama.ai", "library"
_LAYER = "application/vnd.ollama.image."
_MAX_TEXT = 1 << 20


@dataclass(frozen=True)
class OllamaModel:
    """What a manifest of Ollama's names.

    Attributes:
        name: with host, owner and tag where they are not the usual ones.
        gguf: the blob with the model.
        template: in the language of Go's text/template; "" where there is none.
        stop: texts that end an answer.
    """

    name: str
    gguf: Path
    template: str
    stop: tuple[str, ...]


def ollama_name(model: str) -> str:
    """`ollama:NAME` with its tag."""
    rest = model.removeprefix(OLLAMA)
    return f"{OLLAMA}{rest}" if ":" in rest else f"{OLLAMA}{rest}:latest"


def ollama_model(model: str) -> OllamaModel:
    """The model that `ollama:NAME[:TAG]` means, which Ollama has pulled already.

    Raises:
        InputError: there is none of that name, or the name cannot be one.
        MlxmathError: its manifest or a blob is damaged or missing; it is not in GGUF form.
    """
    name, _, tag = ollama_name(model).removeprefix(OLLAMA).partition(":")
    parts = name.split("/")
    if len(parts) > 3 or not all(_NAME.fullmatch(part) for part in (*parts, tag)):
        raise InputError(f"--model {model}: expected {OLLAMA}NAME or {OLLAMA}NAME:TAG, as `ollama list` shows them.")
    host, owner = parts[:2] if len(parts) == 3 else (_REGISTRY, parts[0] if len(parts) == 2 else _LIBRARY)
    roots = [root for root in _ollama_roots() if root.is_dir()]
    found = [root for root in roots if (root / "manifests" / host / owner / parts[-1] / tag).is_file()]
    if not found:
        there = sorted(each for root in roots for each in _pulled(root))
        known = f"It has: {', '.join(there[:20])}." if there else "No model of Ollama's was found."
        looked = ", ".join(map(str, _ollama_roots()))
        raise InputError(
            f"--model {model}: Ollama has no such model here. {known} Looked in {looked}; get it with `ollama pull "
            f"{name}:{tag}`, or set OLLAMA_MODELS to the folder with its models."
        )
    root = found[0]
    path = root / "manifests" / host / owner / parts[-1] / tag
    layers = _layers(path)
    models = [layer for layer in layers if layer[0] == "model"]
    if len(models) != 1:
        raise MlxmathError(
            f"{path}: {model} has {len(models)} GGUF files, expected one. Models that Ollama keeps in another form "
            "are not read; give the original model as --model."
        )
    if any(kind == "adapter" for kind, _, _ in layers):
        warn(f"{model} has an adapter beside the model, which is not read: it is taken without.")
    if any(kind == "projector" for kind, _, _ in layers):
        warn(f"{model} sees images too; only its language model is taken.")
    template = next((_text(root, layer) for layer in layers if layer[0] == "template"), "")
    params = next((layer for layer in layers if layer[0] == "params"), None)
    found_stop: Any = read_json(_blob(root, params)).get("stop") if params else None
    stop = tuple(text for text in found_stop if isinstance(text, str)) if isinstance(found_stop, list) else ()
    return OllamaModel(ollama_name(model), _blob(root, models[0]), template, stop)


def _ollama_roots() -> list[Path]:
    given = os.environ.get("OLLAMA_MODELS")
    if given:
        return [Path(given).expanduser()]
    shared = [Path("/usr/share/ollama/.ollama/models")] if sys.platform == "linux" else []
    return [Path.home() / ".ollama" / "models", *shared]


def _pulled(root: Path) -> list[str]:
    """Names of the models there, as Ollama lists them."""
    names = []
    for path in (root / "manifests").glob("*/*/*/*"):
        host, owner, name, tag = path.relative_to(root / "manifests").parts
        before = [] if (host, owner) == (_REGISTRY, _LIBRARY) else [owner] if host == _REGISTRY else [host, owner]
        names.append("/".join((*before, f"{name}:{tag}")))
    return names


def _layers(path: Path) -> list[tuple[str, str, int]]:
    """Kind, digest and size of each layer of a manifest."""
    if path.stat().st_size > _MAX_TEXT:
        raise MlxmathError(f"{path} is no manifest of Ollama's: it is too large. Pull the model again.")
    content = read_json(path)
    found = content.get("layers") if isinstance(content, dict) else None
    layers = []
    for layer in found if isinstance(found, list) else ():
        kind, digest, num_bytes = (
            (layer.get("mediaType"), layer.get("digest"), layer.get("size")) if isinstance(layer, dict) else ("", "", 0)
        )
        if not isinstance(kind, str) or not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
            raise MlxmathError(f"{path} is damaged: a layer has no digest. Pull the model again.")
        layers.append((kind.removeprefix(_LAYER), digest, num_bytes if type(num_bytes) is int else -1))
    if not layers:
        raise MlxmathError(f"{path} is damaged: it names no layers. Pull the model again.")
    return layers


def _blob(root: Path, layer: tuple[str, str, int]) -> Path:
    """The file of a layer."""
    kind, digest, num_bytes = layer
    path = root / "blobs" / digest.replace(":", "-")
    if not path.is_file():
        raise MlxmathError(f"{path} is missing, Ollama's file with the {kind} of the model; pull the model again.")
    if path.stat().st_size != num_bytes:
        raise MlxmathError(
            f"{path} has {size(path.stat().st_size)} instead of the {size(max(num_bytes, 0))} that Ollama's manifest "
            "says; pull the model again."
        )
    return path


def _text(root: Path, layer: tuple[str, str, int]) -> str:
    path = _blob(root, layer)
    if path.stat().st_size > _MAX_TEXT:
        raise MlxmathError(f"{path} is no template: it is too large. Pull the model again.")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MlxmathError(f"cannot read {path}: {error}; pull the model again.") from None


def lm_studio_model(repo: str, wanted: str | None, *, required: bool) -> Path | None:
    """The GGUF file of owner/name in LM Studio's folders; None where there is none, or not the one that is wanted.

    Args:
        repo: owner/name.
        wanted: which of its files.
        required: raise where it is not there.

    Raises:
        InputError: the name cannot be one; it is `required` and absent; several files may be meant.
    """
    parts = repo.split("/")
    if len(parts) != 2 or not all(_NAME.fullmatch(part) for part in parts):
        if required:
            raise InputError(f"--model {LM_STUDIO}{repo}: expected {LM_STUDIO}owner/name, as LM Studio shows it.")
        return None
    roots = _lm_studio_roots()
    for root in roots:
        folder = root.joinpath(*parts)
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        if gguf_models(names, wanted) or (required and gguf_models(names)):
            return folder / chosen_gguf(names, wanted, f"{LM_STUDIO}{repo}" if required else repo)[0]
    if required:
        raise InputError(
            f"--model {LM_STUDIO}{repo}: LM Studio has no such model in GGUF form; looked in "
            f"{', '.join(map(str, roots))}."
        )
    return None


def _lm_studio_roots() -> list[Path]:
    home = Path.home()
    pointer = home / ".lmstudio-home-pointer"
    roots = [home / ".lmstudio" / "models", home / ".cache" / "lm-studio" / "models"]
    if pointer.is_file() and pointer.stat().st_size < 1 << 12:
        roots.insert(0, Path(pointer.read_text(encoding="utf-8", errors="replace").strip()) / "models")
    return list(dict.fromkeys(roots))
