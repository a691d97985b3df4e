"""What adapter_config.json says of an adapter's arrays, checked, and how two of them differ."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxmath.errors import MlxmathError

_PARAMETERS: Mapping[str, tuple[type, Any, Callable[[Any], bool], str]] = {
    "rank": (int, None, lambda rank: 1 <= rank <= 65_536, "a whole number from 1 to 65,536"),
    "scale": (float, None, lambda scale: abs(scale) <= 1e6, "a number of at most 1,000,000"),
    "dropout": (float, 0.0, lambda dropout: 0 <= dropout < 1, "a number from 0 to below 1"),
}
"""Of lora_parameters: the type, what it is where it is left out, and what is sensible."""


@dataclass(frozen=True)
class Form:
    """What adapter_config.json says of an adapter's arrays."""

    kind: str
    """mlx_lm's fine_tune_type: "lora", "dora" or "full"."""
    num_layers: int
    """The last N blocks; -1 or 0: all."""
    rank: int = 0
    scale: float = 0.0
    dropout: float = 0.0
    keys: tuple[str, ...] | None = None
    """None, as mlx_lm leaves it by default: every layer of the blocks."""

    @classmethod
    def of(cls, record: Any, path: Path) -> "Form":
        """Out of a parsed adapter_config.json.

        Raises:
            MlxmathError: something is missing, of another type or beyond all sense.
        """
        kind = _value(record, "fine_tune_type", path, str, default="lora")
        if kind not in ("lora", "dora", "full"):
            raise MlxmathError(f"{path}: fine_tune_type {kind!r} is not supported; expected lora, dora or full.")
        num_layers = _value(record, "num_layers", path, int, default=-1 if kind == "full" else None)
        if not -1 <= num_layers < 1 << 20:
            raise _senseless(path, "num_layers", "a whole number of blocks, or -1 for all", num_layers)
        if kind == "full":
            return cls(kind, num_layers)
        parameters = _value(record, "lora_parameters", path, dict)
        found: dict[str, Any] = {}
        for name, (type_, default, is_sensible, expected) in _PARAMETERS.items():
            found[name] = _value(parameters, name, path, type_, default)
            if not is_sensible(found[name]):
                raise _senseless(path, name, expected, found[name])
        keys = parameters.get("keys")
        if keys is not None and not (isinstance(keys, list) and all(isinstance(key, str) for key in keys)):
            raise _senseless(path, "keys", "a list of layers' names", keys)
        return cls(kind, num_layers, **found, keys=None if keys is None else tuple(keys))


def _value(table: Any, name: str, path: Path, kind: type, default: Any = None) -> Any:
    """A value of a configuration, its type checked; whole numbers are numbers too."""
    if not isinstance(table, dict):
        raise _senseless(path, "it", "a table", table)
    value = table.get(name, default)
    if kind is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1e30:
        value = float(value)
    is_right = isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool)
    if not is_right or (isinstance(value, float) and not math.isfinite(value)):
        expected = {str: "text", int: "a whole number", float: "a finite number", dict: "a table"}[kind]
        raise _senseless(path, name, expected, value if name in table else "nothing")
    return value


def _senseless(path: Path, name: str, expected: str, found: Any) -> MlxmathError:
    shown = repr(found)
    return MlxmathError(
        f"{path} is not an adapter configuration: {name}: expected {expected}; found "
        f"{shown if len(shown) <= 60 else shown[:60] + '...'}."
    )


def differences(found: Form, wanted: Form, num_blocks: int) -> list[str]:
    """What of two forms is not the same; dropout may differ, and where one lists no keys, the arrays will tell."""

    def comparable(form: Form) -> dict[str, Any]:
        is_all = form.num_layers in (-1, 0) or form.num_layers >= num_blocks
        values = {"fine_tune_type": form.kind, "num_layers": -1 if is_all else form.num_layers}
        if form.kind == "full":
            return values
        parameters: dict[str, Any] = {"rank": form.rank, "scale": form.scale}
        if found.keys is not None and wanted.keys is not None:
            parameters["keys"] = sorted(form.keys or ())
        return values | {"lora_parameters": parameters}

    theirs, ours = comparable(found), comparable(wanted)
    return [
        f"{name} is {theirs.get(name)!r} there and {ours.get(name)!r} here"
        for name in {**theirs, **ours}
        if theirs.get(name) != ours.get(name)
    ]
