"""Adapters of experts, between mlx_lm's form and PEFT's.

transformers 5 holds a mixture's experts as two parameters: `experts.gate_up_proj` (E, 2 O, I), gates above ups, and
`experts.down_proj` (E, O, I). PEFT adapts each as a whole (`target_parameters`): s B_e A_e with A (E R, I), expert
after expert, and B (O, R E), rank after rank. Where both are adapted, the wrapper of the second holds that of the
first, so the first's tensors are called `experts.base_layer.lora_A`. Our gate and up have adapters of their own,
which together are one of rank 2 R: A_e = [A_gate; A_up], B_e = [[B_gate, 0], [0, B_up]].

Shapes: I inputs, O outputs, E experts, R rank; as ours lie, A (E, R, I) and B (E, O, R).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import mlx.core as mx

GATE, UP, DOWN = "gate_proj", "up_proj", "down_proj"
GATE_UP = "gate_up_proj"
TYPES = frozenset({"mixtral", "olmoe", "qwen2_moe", "qwen3_moe"})
"""Types of models whose experts are compared with PEFT's in the tests."""
_HOMES = ("mlp", "block_sparse_moe")
"""Of `switch_mlp` in mlx_lm's models; in transformers 5 all are `mlp.experts`."""


class Pair(NamedTuple):
    """The matrices of an adapter."""

    a_ERI: mx.array
    b_EOR: mx.array


def home_in_peft(path: str) -> str | None:
    """`model.layers.0.mlp.switch_mlp.up_proj` -> `model.layers.0.mlp.experts`; None for what is not such a path."""
    home, _, last = path.rpartition(".")
    for name in _HOMES:
        if home.endswith(f".{name}.switch_mlp") and last in (GATE, UP, DOWN):
            return f"{home.removesuffix(f'.{name}.switch_mlp')}.mlp.experts"
    return None


@dataclass
class Written:
    """What PEFT needs of experts' adapters."""

    tensors: dict[str, mx.array] = field(default_factory=dict)
    """By name, without what stands before a model's."""
    parameters: set[str] = field(default_factory=set)
    ranks: dict[str, int] = field(default_factory=dict)
    alphas: dict[str, float] = field(default_factory=dict)
    """Of parameters whose rank is not that of all; by pattern."""


def written(adapters: Mapping[str, Pair], rank: int, scale: float, *, is_rslora: bool) -> Written:
    """The adapters of experts as PEFT has them.

    Args:
        adapters: by their paths, for all of which there is a `home_in_peft`.
        rank: of each.
        scale: of each.
        is_rslora: whether PEFT divides alpha by √R.
    """
    found = Written()
    homes: dict[str, dict[str, Pair]] = {}
    for path, pair in adapters.items():
        homes.setdefault(str(home_in_peft(path)), {})[path.rpartition(".")[2]] = pair
    for home, parts in homes.items():
        whole = {GATE_UP: _joined(parts)} if {GATE, UP} & parts.keys() else {}
        whole |= {DOWN: parts[DOWN]} if DOWN in parts else {}
        for name, (a_ERI, b_EOR) in whole.items():
            inner = f"{home}.base_layer" if name == GATE_UP and DOWN in parts else home
            found.tensors[f"{inner}.lora_A.weight"] = a_ERI.reshape(-1, a_ERI.shape[-1])
            found.tensors[f"{inner}.lora_B.weight"] = mx.contiguous(b_EOR.transpose(1, 2, 0)).reshape(
                b_EOR.shape[1], -1
            )
            found.parameters.add(f"{home}.{name}")
            own_rank = a_ERI.shape[1]
            if own_rank != rank:
                key = f"{home}.{name}"
                found.ranks[key] = own_rank
                found.alphas[key] = alpha_of(scale, own_rank, is_rslora=is_rslora)
    return found


def _joined(parts: Mapping[str, Pair]) -> Pair:
    """Gate and up as one adapter; where one of them has none, its rows are zero."""
    gate, up = parts.get(GATE), parts.get(UP)
    if gate is not None and up is not None:
        b_gate = mx.concatenate([gate.b_EOR, mx.zeros_like(gate.b_EOR)], axis=1)
        b_up = mx.concatenate([mx.zeros_like(up.b_EOR), up.b_EOR], axis=1)
        return Pair(mx.concatenate([gate.a_ERI, up.a_ERI], axis=1), mx.concatenate([b_gate, b_up], axis=2))
    one = gate or up
    assert one is not None
    both = [one.b_EOR, mx.zeros_like(one.b_EOR)]
    return Pair(one.a_ERI, mx.concatenate(both if gate is not None else both[::-1], axis=1))


def alpha_of(scale: float, rank: int, *, is_rslora: bool) -> float:
    """The alpha of which PEFT makes a scale; the product may miss it by the last bits, so its neighbours are tried.

    Not every scale is such a quotient; one that is not is missed by its last bit, which float32 does not have.
    """
    divisor = math.sqrt(rank) if is_rslora else rank
    up = down = scale * divisor
    for _ in range(4):
        for alpha in (up, down):
            if alpha / divisor == scale:
                return alpha
        up, down = math.nextafter(up, math.inf), math.nextafter(down, -math.inf)
    return scale * divisor


def apart(name: str, a_XI: mx.array, b_OX: mx.array, num_experts: int) -> dict[str, Pair]:
    """PEFT's adapter of a parameter as ours, by the names of our layers.

    Args:
        name: `gate_up_proj` or `down_proj`.
        a_XI: (E R, I).
        b_OX: (O, R E); of gates and ups (2 O, R E).
        num_experts: E.
    """
    a_ERI = a_XI.reshape(num_experts, -1, a_XI.shape[-1])
    b_EOR = mx.contiguous(b_OX.reshape(b_OX.shape[0], -1, num_experts).transpose(2, 0, 1))
    if name == DOWN:
        return {DOWN: Pair(a_ERI, b_EOR)}
    b_gate, b_up = map(mx.contiguous, mx.split(b_EOR, 2, axis=1))
    half = a_ERI.shape[1] // 2
    if a_ERI.shape[1] % 2 == 0 and not _any(b_gate[..., half:]) and not _any(b_up[..., :half]):
        pairs = {GATE: Pair(a_ERI[:, :half], b_gate[..., :half]), UP: Pair(a_ERI[:, half:], b_up[..., half:])}
        if all(_any(pair.b_EOR) for pair in pairs.values()):
            return {key: Pair(*map(mx.contiguous, pair)) for key, pair in pairs.items()}
    found = {key: Pair(a_ERI, b) for key, b in ((GATE, b_gate), (UP, b_up)) if _any(b)}
    return found or {GATE: Pair(a_ERI, b_gate)}


def _any(array: mx.array) -> Any:
    return mx.any(array != 0).item()
