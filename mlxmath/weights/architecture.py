"""The model that a config.json describes, built by mlx_lm without reading a weight.

`load_model` of mlx_lm decides much: which class, which layers are packed and how, how names and arrays are rearranged
(`sanitize`). So it is asked, with a stand-in of the folder: files of the right names, types and shapes, made of holes,
which take no room on the disk and are never read, since MLX is lazy.
"""

import importlib
import importlib.util
import inspect
import json
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache, cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

from mlxmath.errors import MlxmathError, library_errors
from mlxmath.runtime.blas import preload
from mlxmath.weights.dtypes import readable
from mlxmath.weights.safetensor import Declared, write_hollow

_SHARED = (
    "activations", "base", "cache", "gated_delta", "rope_utils", "ssm", "switch_layers", "mla", "pipeline",
)  # fmt: skip
"""Modules of mlx_lm.models that are no models."""


@contextmanager
def mlx_lm_alone() -> Iterator[None]:
    """Import parts of mlx_lm without what they do not need for building a model: 5 MB and no time instead of 230 MB and
    some seconds, most of it for transformers. Afterwards mlx_lm is as if it had not been imported."""
    preload()
    if "mlx_lm" in sys.modules:
        yield
        return
    spec = importlib.util.find_spec("mlx_lm")
    package = ModuleType("mlx_lm")
    package.__spec__, package.__path__ = spec, list(spec.submodule_search_locations or ()) if spec is not None else []
    unused = {"mlx_lm.tokenizer_utils": ("TokenizerWrapper", "load"), "huggingface_hub": ("snapshot_download",)}
    added = [package.__name__]
    sys.modules[package.__name__] = package
    for name, attributes in unused.items():
        if name not in sys.modules:
            module = ModuleType(name)
            for attribute in attributes:
                setattr(module, attribute, object)
            sys.modules[name] = module
            added.append(name)
    try:
        yield
    finally:
        for name in list(sys.modules):
            if name in added or name.startswith("mlx_lm."):
                del sys.modules[name]


@cache
def module_name(model_type: str, architecture: str = "") -> str | None:
    """The module of mlx_lm with the model of that type; None where there is none."""
    with mlx_lm_alone():
        from mlx_lm.utils import MODEL_ARCHITECTURE_REMAPPING, MODEL_REMAPPING

        usual = MODEL_REMAPPING.get(model_type, model_type)
        name = MODEL_ARCHITECTURE_REMAPPING.get((model_type, architecture)) or usual
    return str(name) if _source_path(name) is not None else None


def _source_path(name: str) -> Path | None:
    spec = importlib.util.find_spec("mlx_lm")
    for root in spec.submodule_search_locations or () if spec is not None else ():
        path = Path(root) / "models" / f"{name}.py"
        if re.fullmatch(r"[\w-]{1,100}", name) and path.is_file():
            return path
    return None


@dataclass(frozen=True)
class Architecture:
    """mlx_lm's model of a type, as far as its configuration goes.

    Attributes:
        name: of the module.
        fields: what it declares of config.json -> whether that must be there.
        source: text of the module, and of the models which it is made of.
        defaults: what it takes for settings that are not there, as far as these are declared.
    """

    name: str
    fields: Mapping[str, bool]
    source: str
    defaults: Mapping[str, Any]

    def reads(self, *names: str) -> bool:
        """Whether it reads one of these settings; one that is declared and mentioned nowhere else is not."""
        return any(name in self.fields and name in self._mentioned for name in names)

    @cached_property
    def _mentioned(self) -> frozenset[str]:
        lines = [line for line in self.source.splitlines() if not re.match(r"\s*(#|\w+: )", line)]
        return frozenset(re.findall(r"\w+", "\n".join(lines)))


@cache
def architecture(model_type: str, outer: str | None = None) -> Architecture | None:
    """What mlx_lm's model of that type reads; None where it has none.

    Args:
        model_type: of config.json, or of a part of it (`text_config`).
        outer: the type of the model that it is a part of: such parts need no module of their own.
    """
    name = module_name(model_type) or (outer and module_name(outer))
    path = _source_path(name) if name else None
    if not name or path is None:
        return None
    texts = _sources(name)
    with mlx_lm_alone():
        if module_name(model_type):
            found = [import_model(name).ModelArgs]
        else:
            values = [value for each in texts for value in vars(import_model(each)).values()]
            found = [value for value in values if inspect.isclass(value) and is_dataclass(value)]
        known: dict[str, bool] = {}
        defaults: dict[str, Any] = {}
        for field in (field for value in found for field in fields(value)):
            is_needed = field.default is MISSING and field.default_factory is MISSING
            known[field.name] = is_needed and known.get(field.name, True)  # of several classes: by each that has it
            if field.default is not MISSING:
                defaults[field.name] = field.default
    return Architecture(name, known, "".join(texts.values()), defaults)


def _sources(name: str) -> dict[str, str]:
    """The texts of a model's module and of those of the models which it is made of, by name."""
    texts: dict[str, str] = {}
    names = [name]
    while names:
        path = _source_path(each := names.pop(0))
        if path is None or each in texts or each in _SHARED:
            continue
        texts[each] = path.read_text(encoding="utf-8")
        names += re.findall(r"^from \.(\w+) import", texts[each], re.M)
        for found in re.findall(r"^from \. import ([\w, ]+)", texts[each], re.M):
            names += [part.strip() for part in found.split(",")]
    return texts


def import_model(name: str) -> ModuleType:
    """A model module of mlx_lm.

    Raises:
        MlxmathError: it needs something that is not installed.
    """
    try:
        with redirect_stdout(sys.stderr):
            return importlib.import_module(f"mlx_lm.models.{name}")
    except (ImportError, SystemExit) as error:  # olmo ends the process where its package is missing
        which = f" ({error})" if isinstance(error, ImportError) else ""
        raise MlxmathError(
            f"mlx_lm's model {name!r} cannot be imported; it needs a package that is not installed{which}."
        ) from None


def another_model(arch: Architecture, what: str) -> MlxmathError:
    return MlxmathError(
        f"mlx_lm's model {arch.name!r} {what}, so it would be another model than the one that was trained. "
        "Choose a model that mlx_lm can build."
    )


@dataclass(frozen=True)
class Built:
    """A model that mlx_lm built for the tensors of a folder.

    Attributes:
        model: without weights; quantized layers are in place.
        config: config.json as mlx_lm completes it.
        origins: name in the model -> name of the stored tensor that it is, unchanged.
        arrays: name in the model -> the array that mlx_lm made for it, not yet evaluated.
        problems: what does not fit, as sentences; empty if everything does.
        unknown: names that are none of the model's.
        num_misnamed: how many names are missing or unknown.
    """

    model: Any
    config: dict[str, Any]
    origins: Mapping[str, str]
    arrays: Mapping[str, Any]
    problems: tuple[str, ...]
    unknown: tuple[str, ...]
    num_misnamed: int


def build(config: Mapping[str, Any], tensors: Sequence[Declared]) -> Built:
    """Build the model for tensors that are not read; the arrays must not be evaluated.

    Args:
        config: content of config.json.
        tensors: (name, dtype, shape) of each.

    Raises:
        MlxmathError: mlx_lm cannot build it; the error says what config.json lacks or has wrong.
    """
    with tempfile.TemporaryDirectory(prefix="mlxmath-") as name:
        folder = Path(name)
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        write_hollow(folder / "model.safetensors", [(key, readable(dtype), shape) for key, dtype, shape in tensors])
        return probe(folder)


def probe(folder: Path, names: Mapping[str, str] | None = None) -> Built:
    """Let mlx_lm build the model in a folder, lazily, and see how the arrays there fit it.

    Args:
        folder: config.json and model*.safetensors.
        names: what the stored tensors are called -> what they are to be called; others are left out.

    Raises:
        MlxmathError: mlx_lm cannot build it.
    """
    loaded: dict[str, Any] = {}
    final: dict[str, Any] = {}

    def model_classes(config: dict[str, Any]) -> tuple[Any, Any]:
        architectures = config.get("architectures") or [""]
        name = module_name(config["model_type"], str(architectures[0]))
        module = import_model(name or config["model_type"])
        base = module.Model

        class Probe(base):  # type: ignore[misc, valid-type]
            def sanitize(self, weights: dict[str, Any]) -> dict[str, Any]:
                if names is not None:
                    weights = {names[key]: array for key, array in weights.items() if key in names}
                loaded.update(weights)
                return super().sanitize(weights) if hasattr(base, "sanitize") else weights

            def load_weights(self, weights: Any, strict: bool = True) -> Any:  # noqa: ARG002
                final.update(weights)
                return self

        return Probe, module.ModelArgs

    with mlx_lm_alone():
        from mlx.utils import tree_flatten
        from mlx_lm.utils import load_model

        with library_errors(explained), redirect_stdout(sys.stderr):
            model, config = load_model(folder, lazy=True, get_model_classes=model_classes)
        expected: dict[str, Any] = dict(tree_flatten(model.parameters()))
    stored = {id(array): key for key, array in loaded.items()}
    origins = {key: stored[id(array)] for key, array in final.items() if id(array) in stored}
    arrays = dict(final)
    for held in (loaded, final):  # by a class, which lives until Python looks for cycles, and all weights with it
        held.clear()
    return Built(model, config, origins, arrays, *compare(expected, arrays))


@contextmanager
def nothing_kept(model: Any) -> Iterator[None]:
    """A model is tried whose weights are not all there; afterwards its modules hold what they did before.

    Kimi K3 keeps products of weights when it first answers, and never makes them anew.
    """
    before = [(module, dict(module), dict(vars(module))) for module in model.modules()]
    try:
        yield
    finally:
        for module, items, attributes in before:
            for held, kept in ((module, items), (vars(module), attributes)):
                dict.clear(held)
                dict.update(held, kept)


def compare(expected: Mapping[str, Any], found: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...], int]:
    """What keeps arrays from being a model's parameters, in words; what is unknown; how many misnamed."""
    missing = [key for key in expected if key not in found]
    unknown = [key for key in found if key not in expected]
    misshapen = [
        f"{key} {tuple(found[key].shape)} instead of {tuple(array.shape)}"
        for key, array in expected.items()
        if key in found and tuple(found[key].shape) != tuple(array.shape)
    ]
    parts = (("missing", missing), ("unknown to the model", unknown), ("of another shape", misshapen))
    return (
        tuple(f"{what} ({len(keys)}): {shortened(keys)}" for what, keys in parts if keys),
        tuple(unknown),
        len(missing) + len(unknown),
    )


def text_part(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a config.json that describes the language model; empty where all of it does."""
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else {}


def shortened(names: Sequence[str], limit: int = 12) -> str:
    """The names, the last of very many left out."""
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")


def explained(error: BaseException) -> str:
    """What mlx_lm's error says about a configuration, as a sentence without its end."""
    text = " ".join(str(error).split())
    if absent := re.search(r"missing \d+ required positional arguments?: (.*)", text):
        names = re.findall("'(.+?)'", absent[1])
        return f"config.json lacks {', '.join(names)}"
    if isinstance(error, KeyError):
        return f"{text} is missing"
    if isinstance(error, TypeError):
        return f"a setting in config.json is of the wrong type ({text.split(':')[0]})"
    return text.rstrip(".") or type(error).__name__
