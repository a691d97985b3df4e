"""Which layers of a model get adapters. Looks at names, kinds and shapes only: a lazily built model will do.

Shapes: I inputs, O outputs, E experts, R rank.
"""

import difflib
import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import mlx.nn as nn

from mlxmath.config.schema import LoraConfig
from mlxmath.errors import InputError
from mlxmath.models.lora.layers import EXPERTS, LINEARS, linear_shape

QUERY = ("q_proj", "q_b_proj", "c_q", "attn_query", "r_proj")
VALUE = ("v_proj", "kv_b_proj", "kv_a_proj_with_mqa", "kv_proj", "c_v", "attn_value", "k_proj")
FUSED = (
    "qkv_proj", "query_key_value", "q_k_v_proj", "qkvg_proj", "c_attn", "Wqkv", "wqkv", "W_pack", "att_proj",
    "in_proj_qkv", "in_proj_qkvz",
)  # fmt: skip
INPUTS = ("in_proj", "linear_x")
"""Names that architectures give to the layer of the queries, to that of the values, to one that makes both, and to the
input of a state-space, convolution or recurrent mixer; in order of preference where a mixer has several. Values come
of `kv_a_proj_with_mqa` where no plain layer follows it in latent attention, of `k_proj` where they are the keys.
"""

_UNLOADABLE_DORA_BITS = (3, 5, 6)
"""mlx_lm takes the inputs of a packed layer to be columns · (32 // bits), which is wrong for these."""


@dataclass(frozen=True)
class Layer:
    """A layer that can have an adapter."""

    path: str
    """In the model: `model.layers.0.self_attn.q_proj`."""
    key: str
    """In its block: `self_attn.q_proj`; its path if it is in none."""
    block: int | None
    inputs: int
    outputs: int
    num_experts: int | None
    """E of a layer that holds a matrix for each expert; None for a plain one."""
    bits: int | None
    """Of a packed weight."""
    is_loadable: bool = True
    """False where mlx_lm puts an adapter of the architecture's own on the layer (`to_lora`), which it cannot load."""

    def num_parameters(self, config: LoraConfig) -> int:
        """Of its adapter: R (I + O), for each expert; DoRA has O more."""
        magnitudes = self.outputs if config.variant == "dora" else 0
        return (self.num_experts or 1) * config.rank * (self.inputs + self.outputs) + magnitudes


@dataclass(frozen=True)
class Targets:
    """The layers that get adapters, in the model's order."""

    layers: tuple[Layer, ...]
    keys: tuple[str, ...]
    """As mlx_lm's adapter_config.json names them: in their block, or by their path where not all blocks' have one."""
    notes: tuple[str, ...] = ()
    """What people should know of the choice, a line each."""

    def num_parameters(self, config: LoraConfig) -> int:
        """Of all the adapters."""
        return sum(layer.num_parameters(config) for layer in self.layers)


def resolve_targets(model: nn.Module, config: LoraConfig) -> Targets:
    """The layers that `config.targets` and `config.num_layers` choose. The model is not changed and nothing computed.

    A target is a layer's name (`q_proj`), the end of its path (`self_attn.q_proj`), its full path (`lm_head`) or a glob
    over any of these (`*_proj`, `mlp.*`). A glob means layers of blocks, and passes over those that an adapter of this
    kind and rank cannot be put on; a name insists. Without targets: see `QUERY`.

    Raises:
        InputError: a target matches nothing, or only layers that an adapter cannot be put on.
    """
    layers = linear_layers(model)
    first = first_block(model, config.num_layers)
    notes: list[str] = []
    if config.targets is None:
        chosen = _query_and_value(layers, first)
        keys = _unique(layer.key for layer in chosen)
        notes.append(f"no --lora-targets are given: {', '.join(keys)} ({_why(keys)})")
        left_out = {obstacle(layer, config) for layer in _in_reach(layers, first) if not layer.is_loadable}
        if reasons := [reason for layer in chosen if (reason := obstacle(layer, config))]:
            raise InputError(f"{reasons[0]}.")
    else:
        chosen, left_out = _named(config.targets, layers, first, config)
    notes += [f"left out: {reason}" for reason in sorted(filter(None, left_out))]
    notes += _about_experts(_in_reach(layers, first), chosen, config)
    wanted = set(chosen)
    return Targets(tuple(each for each in layers if each in wanted), _keys(model, chosen, first), tuple(notes))


def resolve_keys(model: nn.Module, keys: Sequence[str] | None, num_layers: int) -> Targets:
    """The layers that an adapter_config.json names, as mlx_lm finds them.

    Args:
        model: a base model.
        keys: paths in a block or in the model; None: every layer of the blocks that can have an adapter.
        num_layers: the last N blocks (-1 or 0: all).
    """
    first = first_block(model, num_layers)
    layers = [layer for layer in linear_layers(model) if layer.is_loadable]
    wanted = {layer.key for layer in layers if layer.block is not None} if keys is None else set(keys)
    chosen = [
        layer for layer in layers
        if layer.path in wanted or (layer.key in wanted and layer.block is not None and layer.block >= first)
    ]  # fmt: skip
    return Targets(tuple(chosen), tuple(sorted(wanted)))


def linear_layers(model: nn.Module) -> list[Layer]:
    """All linear layers, those of experts among them, in the model's order."""
    paths = {id(module): path for path, module in model.named_modules()}
    blocks = {f"{paths[id(block)]}.": number for number, block in enumerate(model.layers) if id(block) in paths}
    found = []
    for path, module in model.named_modules():
        if not isinstance(module, LINEARS + EXPERTS):
            continue
        home = max((name for name in blocks if path.startswith(name)), key=len, default="")
        inputs, outputs = linear_shape(module)
        found.append(
            Layer(
                path=path,
                key=path.removeprefix(home),
                block=blocks.get(home),
                inputs=inputs,
                outputs=outputs,
                num_experts=module.num_experts if isinstance(module, EXPERTS) else None,
                bits=getattr(module, "bits", None),
                is_loadable=not hasattr(module, "to_lora"),
            )
        )
    return sorted(found, key=lambda layer: natural(layer.path))


def first_block(model: nn.Module, num_layers: int) -> int:
    """The first of the last `num_layers` blocks; of all if that is 0 or negative, as mlx_lm has it."""
    return 0 if num_layers <= 0 else max(0, len(model.layers) - num_layers)


def natural(name: str) -> list[tuple[int, str]]:
    """A path's parts for sorting, numbers as numbers."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]


def obstacle(layer: Layer, config: LoraConfig) -> str | None:
    """Why an adapter of this kind and rank cannot be put on a layer."""
    if not layer.is_loadable:
        return f"{layer.key} is a layer of the architecture's own kind, and mlx_lm cannot load its adapters"
    if config.variant == "dora":
        if layer.num_experts is not None:
            return f"--lora-variant dora: mlx_lm has no DoRA for experts such as {layer.key}; lora trains them"
        if layer.bits in _UNLOADABLE_DORA_BITS:
            return (
                f"--lora-variant dora: {layer.key} has {layer.bits} bits, and mlx_lm cannot load DoRA on 3, 5 or 6; "
                "use lora, or a base of 4 or 8 bits"
            )
    smaller = min(layer.inputs, layer.outputs)
    if config.rank > smaller:
        return f"--lora-rank {config.rank} exceeds the smaller side of {layer.key} ({smaller})"
    return None


def _named(
    targets: Iterable[str], layers: list[Layer], first: int, config: LoraConfig
) -> tuple[list[Layer], set[str | None]]:
    """The layers that targets name, and why a glob passes over others."""
    chosen: list[Layer] = []
    left_out: set[str | None] = set()
    for target in targets:
        found = _matches(target, layers, first)
        obstacles = [obstacle(layer, config) for layer in found]
        reasons = [reason for reason in obstacles if reason]
        if reasons and (not _is_glob(target) or len(reasons) == len(found)):
            raise InputError(f"{reasons[0]}.")
        chosen += [layer for layer, reason in zip(found, obstacles, strict=True) if reason is None]
        left_out |= {*reasons}
    return chosen, left_out


def _is_glob(target: str) -> bool:
    return any(sign in target for sign in "*?[")


def _matches(target: str, layers: list[Layer], first: int) -> list[Layer]:
    matching = [layer for layer in layers if any(fnmatch.fnmatchcase(end, target) for end in _ends(layer.path))]
    if _is_glob(target):  # a glob means the blocks' layers; the head only where it is named
        matching = [layer for layer in matching if layer.block is not None]
    found = [layer for layer in matching if layer.block is None or layer.block >= first]
    if found:
        return found
    if matching:
        raise InputError(f"--lora-targets: {target!r} matches nothing in the last blocks, those of --lora-num-layers.")
    names = sorted({name for layer in layers for name in (layer.key, _last(layer.key))})
    near = difflib.get_close_matches(target, names, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    known = sorted({_last(layer.key) for layer in layers})
    raise InputError(f"--lora-targets: {target!r} matches no linear layer; {hint}This model has {', '.join(known)}.")


def _query_and_value(layers: list[Layer], first: int) -> list[Layer]:
    """Of each mixer (attention, linear attention, state space, ...) the layers that make queries and values."""
    in_reach = [layer for layer in _in_reach(layers, first) if layer.is_loadable]
    blocks = {layer.path.removesuffix(f".{layer.key}") for layer in in_reach}
    mixers: dict[str, dict[str, Layer]] = {}
    for layer in in_reach:
        if layer.num_experts is None:
            mixers.setdefault(_home(layer.path), {})[_last(layer.path)] = layer
    chosen: list[Layer] = []
    found: list[str] = []
    for path in sorted(mixers, key=len):
        if any(path.startswith(f"{outer}.") for outer in found if outer not in blocks):
            continue  # part of a mixer: an indexer, a compressor
        if names := _first_names(mixers[path]):
            found.append(path)
            chosen += [mixers[path][name] for name in names]
    if not chosen:  # an architecture of its own
        chosen = [layer for layer in in_reach if layer.num_experts is None]
    if not chosen:
        raise InputError("this model has no layer that an adapter can be put on; --full trains its blocks themselves.")
    return chosen


def _first_names(mixer: Iterable[str]) -> list[str]:
    query, value, other = (
        next((name for name in names if name in mixer), None) for names in (QUERY, VALUE, FUSED + INPUTS)
    )
    if query:
        return [name for name in (query, value) if name]
    return [other] if other else []


def _why(keys: Iterable[str]) -> str:
    names = {_last(key) for key in keys}
    if not names <= {*QUERY, *VALUE, *FUSED, *INPUTS}:
        return "all linear layers of the blocks, since none is known to make queries or values"
    if names & {*INPUTS}:
        return "what makes queries and values, or the input of a mixer that has none"
    return "the layers that make queries and values"


def _about_experts(in_reach: list[Layer], chosen: list[Layer], config: LoraConfig) -> list[str]:
    """Whether a mixture's experts train."""
    others = {_home(layer.path) for layer in in_reach if layer.num_experts is None}  # grouped layers of an attention
    experts = [layer for layer in in_reach if layer.num_experts is not None and _home(layer.path) not in others]
    homes = {_home(layer.path) for layer in experts if layer in chosen}
    lines = []
    if homes:
        counts = _unique(str(layer.num_experts) for layer in experts if _home(layer.path) in homes)
        lines.append(f"experts train: each of the {' or '.join(counts)} of a block has adapters of its own")
    if asleep := [layer for layer in experts if _home(layer.path) not in homes]:
        names = ",".join(_unique(f"{_last(_home(layer.key))}.*" for layer in asleep))
        which = "other blocks' experts" if homes else "the experts"
        how = f"add {names} to --lora-targets" if config.variant == "lora" else "--lora-variant lora is needed"
        lines.append(f"{which} stay as they are; {how} to train them")
    return lines


def _in_reach(layers: list[Layer], first: int) -> list[Layer]:
    return [layer for layer in layers if layer.block is not None and layer.block >= first]


def _home(path: str) -> str:
    """The path of the module that holds a layer."""
    return path.rpartition(".")[0]


def _keys(model: nn.Module, chosen: list[Layer], first: int) -> tuple[str, ...]:
    """To mlx_lm a key means the layers of that name in all blocks from the first on; where that is more, the path."""
    keys = {layer.path: layer.key for layer in chosen}
    paths = {id(module): path for path, module in model.named_modules()}
    partial = {
        key
        for block in model.layers[first:]
        for key, module in block.named_modules()
        if paths.get(id(module)) not in keys
    }
    return tuple(_unique(path if key in partial else key for path, key in keys.items()))


def _ends(path: str) -> list[str]:
    """`a.b.c`, `b.c` and `c`."""
    parts = path.split(".")
    return [".".join(parts[i:]) for i in range(len(parts))]


def _last(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def _unique(names: Iterable[str]) -> list[str]:
    return sorted(set(names), key=natural)
