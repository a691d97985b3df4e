"""Optimizers by name, with parameter groups, float32 arithmetic, and AdamW with 8-bit state.

The loop sets `optimizer.learning_rate` before each step. All state is a tree of arrays, so a checkpoint has all of it.
"""

import math
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten, tree_map
from numpy.typing import NDArray

from mlxmath.config.training import TrainingConfig
from mlxmath.training.accumulate import StepSums

State = dict[str, Any]

BLOCK = 256
"""Values that share one scale in 8-bit state."""
MIN_8BIT_SIZE = 4096
"""Smaller arrays keep float32 state, as in bitsandbytes (`min_8bit_size`)."""


def make_optimizer(config: TrainingConfig, model: nn.Module, plus_ratio: float = 1.0) -> optim.Optimizer:
    """The optimizer that `config.optimizer` names, initialised for the model's trainable parameters.

    Vectors (norms, biases, DoRA's m) are not decayed. Muon's update is an orthogonal matrix, so vectors get AdamW then.

    Args:
        config: optimizer, learning rate, weight decay.
        model: what trains is what is not frozen.
        plus_ratio: learning rate of LoRA's B matrices over that of everything else (LoRA+: Hayou et al. 2024,
            arXiv:2402.12354). Their decay grows with it, since it is a fraction of the learning rate. (PEFT's
            `create_loraplus_optimizer` raises DoRA's m too.)
    """
    parameters = tree_flatten(model.trainable_parameters())
    groups: list[tuple[str, float, Callable[[str, mx.array], bool]]] = []
    if plus_ratio != 1:
        groups.append((config.optimizer, plus_ratio, lambda path, _: path.rsplit(".", 1)[-1] == "lora_b"))
    if config.optimizer == "muon":
        groups.append(("adamw", 1.0, lambda _, array: array.ndim < 2))
    groups.append((config.optimizer, 1.0, lambda *_: True))

    chosen: list[tuple[str, float, Callable[[str, mx.array], bool]]] = []
    for group in groups:  # groups without parameters are left out
        taken = [(p, a) for p, a in parameters if group[2](p, a)]
        parameters = [(p, a) for p, a in parameters if not group[2](p, a)]
        if taken:
            chosen.append(group)
    made = [_make(name, config) for name, _, _ in chosen]
    if len(made) == 1 and chosen[0][1] == 1:
        optimizer = made[0]
    else:
        optimizer = ParameterGroups(made, [belongs for *_, belongs in chosen[:-1]], [rate for _, rate, _ in chosen])
        optimizer.learning_rate = mx.array(config.learning_rate, mx.float32)
    optimizer.init(model.trainable_parameters())
    return optimizer


def _make(name: str, config: TrainingConfig) -> optim.Optimizer:
    optimizer = _MAKERS[name](config.learning_rate)
    optimizer.decay = config.weight_decay
    return optimizer


def global_norm(tree: Any) -> mx.array:
    """√Σ g² over all arrays of a tree."""
    return mx.sqrt(sum(mx.square(array.astype(mx.float32)).sum() for _, array in tree_flatten(tree)))


def apply_gradients(
    model: nn.Module, optimizer: optim.Optimizer, sums: StepSums, learning_rate: float, max_grad_norm: float
) -> float:
    """Divide by the step's targets, clip to `max_grad_norm` (as torch's clip_grad_norm_ does) and step.

    Returns:
        The gradient's norm before clipping. If it is not finite, nothing was changed.
    """
    norm = global_norm(sums.grad_sum) / sums.num_targets
    norm_value: float = norm.item()
    if not math.isfinite(norm_value):
        return norm_value
    factor = min(1.0, max_grad_norm / (norm_value + 1e-6)) / sums.num_targets
    optimizer.learning_rate = mx.array(learning_rate, mx.float32)
    optimizer.update(model, tree_map(lambda g: g * factor, sums.grad_sum))
    mx.eval(model.trainable_parameters(), optimizer.state)
    return norm_value


class ParameterGroups(optim.MultiOptimizer):
    """Optimizers that share out the parameters; each one's learning rate is a fixed multiple of the common one.

    Args:
        optimizers: one a group.
        filters: whether (path, array) belongs to a group; the last group takes the rest.
        rates: multiple of the learning rate, by group.
    """

    def __init__(
        self,
        optimizers: list[optim.Optimizer],
        filters: list[Callable[[str, mx.array], bool]],
        rates: list[float],
    ) -> None:
        super().__init__(optimizers, filters)
        self.rates = rates

    @property
    def learning_rate(self) -> mx.array:
        """The common learning rate."""
        return self.optimizers[0].learning_rate / self.rates[0]

    @learning_rate.setter
    def learning_rate(self, learning_rate: float | mx.array) -> None:
        for optimizer, rate in zip(self.optimizers, self.rates, strict=True):
            optimizer.learning_rate = learning_rate * rate


class _Decoupled(optim.Optimizer):
    """Mixin before an MLX optimizer: w ← (1 − learning rate · decay) w first, for matrices only; all in float32.

    (Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2.) A parameter of a 16-bit type (full fine-tuning) has a
    float32 master copy in the state, since steps much smaller than the parameter would be rounded away; also one that
    had 32 bits when the state was saved, on another device.
    """

    decay = 0.0

    def init_single(self, parameter: mx.array, state: State) -> None:
        if parameter.dtype != mx.float32:
            state["master"] = parameter.astype(mx.float32)
        super().init_single(state.get("master", parameter), state)

    def apply_single(self, gradient: mx.array, parameter: mx.array, state: State) -> mx.array:
        weight = state.get("master", parameter.astype(mx.float32))
        if self.decay and weight.ndim >= 2:
            weight = weight * (1 - self.learning_rate * self.decay)
        weight = super().apply_single(gradient.astype(mx.float32), weight, state)
        if "master" in state or parameter.dtype != mx.float32:
            state["master"] = weight
        return weight.astype(parameter.dtype)


class AdamW(_Decoupled, optim.Adam):
    """AdamW as PyTorch has it; give it `bias_correction=True`."""


class Adafactor(_Decoupled, optim.Adafactor):
    """Adafactor (Shazeer and Stern 2018, arXiv:1804.04235) at a given learning rate, without first moment."""


class Lion(_Decoupled, optim.Lion):
    """Lion (Chen et al. 2023, arXiv:2302.06675)."""


class Muon(_Decoupled, optim.Muon):
    """Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon), with decoupled decay.

    A stack of matrices (E, ., .), one for each expert, is orthogonalised matrix by matrix; mlx's own takes it for one
    matrix of E rows, which is right for the kernels of a depthwise convolution, (channels, width, 1).
    """

    _shape: tuple[int, ...] = ()
    """Of the parameter at hand."""

    def apply_single(self, gradient: mx.array, parameter: mx.array, state: State) -> mx.array:
        self._shape = parameter.shape
        return super().apply_single(gradient, parameter, state)

    def _zeropower_via_newtonschulz5(self, X: mx.array, steps: int) -> mx.array:
        one = super()._zeropower_via_newtonschulz5
        if len(self._shape) != 3 or self._shape[-1] == 1:
            return one(X, steps)
        return mx.vmap(lambda matrix: one(matrix, steps))(X.reshape(self._shape)).reshape(X.shape)


class _Adam8bit(optim.Adam):
    """Adam whose moments rest as 8-bit codes, block-wise (Dettmers et al. 2022, arXiv:2110.02861, sections 2 and 3).

    A block of 256 values is kept as value / max|value|, rounded to one of 256 values of the dynamic map: the first
    moment signed, the second unsigned. 2.03 bytes a parameter instead of 8. The step uses the moments before
    they are rounded.
    """

    _last: list[mx.array]
    """What must be computed before the next array's moments may be unpacked, so that only one array's are at a time."""

    def init_single(self, parameter: mx.array, state: State) -> None:
        super().init_single(parameter, state)
        if parameter.size >= MIN_8BIT_SIZE:
            self._pack(state)

    def apply_gradients(self, gradients: Any, parameters: Any) -> Any:
        self._last = []
        updated = super().apply_gradients(gradients, parameters)
        self._last = []
        return updated

    def apply_single(self, gradient: mx.array, parameter: mx.array, state: State) -> mx.array:
        if "m" in state:
            return super().apply_single(gradient, parameter, state)
        if self._last:
            (gradient,) = mx.depends([gradient], self._last)
            packed = ("m_codes", "v_codes")
            state |= dict(zip(packed, mx.depends([state[name] for name in packed], self._last), strict=True))
        state |= {
            name: dequantize_blocks(
                state.pop(f"{name}_codes"), state.pop(f"{name}_absmax"), parameter.shape, signed=name == "m"
            )
            for name in ("m", "v")
        }
        updated = super().apply_single(gradient, parameter, state)
        self._pack(state)
        (updated,) = mx.depends([updated], [state["m_codes"], state["v_codes"]])
        self._last = [updated]
        return updated

    @staticmethod
    def _pack(state: State) -> None:
        for name in ("m", "v"):
            codes, absmax = quantize_blocks(state.pop(name), signed=name == "m")
            state |= {f"{name}_codes": codes, f"{name}_absmax": absmax}


class AdamW8bit(_Decoupled, _Adam8bit):
    """AdamW with 8-bit state."""


_MAKERS: dict[str, Callable[[float], Any]] = {
    "adamw": partial(AdamW, bias_correction=True),
    "adamw8bit": partial(AdamW8bit, bias_correction=True),
    "adafactor": partial(Adafactor, scale_parameter=False, relative_step=False),
    "lion": Lion,
    "muon": partial(Muon, weight_decay=0.0),
}


def dynamic_map(*, signed: bool) -> NDArray[np.float32]:
    """(256,): the values of the 8-bit dynamic data type, ascending, as bitsandbytes' `create_dynamic_map` makes them.

    Decade i = 0 … 6 reaches from 10^(i−7) to 10^(i−6) and is cut into 2^i (unsigned: 2^(i+1)) equal parts, whose
    midpoints (signed: of both signs) are the values; 0 and 1 complete them. (Dettmers 2016,
    arXiv:1511.04561, section 2.)
    """
    values = [0.0, 1.0]
    for i in range(7):
        edges = np.linspace(0.1, 1.0, 2 ** (i + (not signed)) + 1)
        middles = (edges[1:] + edges[:-1]) / 2 * 10.0 ** (i - 6)
        values += [*middles, *-middles] if signed else [*middles]
    return np.sort(np.array(values, np.float32))


@lru_cache
def _tables(signed: bool) -> tuple[mx.array, mx.array, mx.array]:
    """The map (256,); the thresholds between its values (256, the last infinite); the code of each 16-bit prefix.

    A float32's upper 16 bits leave at most one threshold open, so that a look-up and a comparison find the nearest
    value: about 4 times as fast on a CPU as a binary search.
    """
    values = dynamic_map(signed=signed)
    thresholds = ((values[1:].astype(np.float64) + values[:-1]) / 2).astype(np.float32)
    prefixes = np.arange(1 << 16, dtype=np.uint32) << 16
    ends = np.sort(np.stack([prefixes, prefixes | 0xFFFF]).view(np.float32), axis=0)
    codes, last = np.searchsorted(thresholds, ends)
    assert (last - codes <= 1)[np.isfinite(ends).all(axis=0)].all()
    padded = np.append(thresholds, np.float32(np.inf))
    return mx.array(values), mx.array(padded), mx.array(codes.astype(np.uint8))


def quantize_blocks(values: mx.array, *, signed: bool) -> tuple[mx.array, mx.array]:
    """Codes (N, 256), uint8, and max|value| of each block (N, 1), float32, of an array of any shape, padded with zeros.

    The nearest value of the map; the lower one of two that are equally near.
    """
    flat = values.astype(mx.float32).reshape(-1)
    blocks = mx.pad(flat, (0, -flat.size % BLOCK)).reshape(-1, BLOCK)
    absmax = mx.abs(blocks).max(axis=1, keepdims=True)
    scaled = blocks / mx.where(absmax > 0, absmax, 1)
    _, thresholds, prefix_codes = _tables(signed)
    codes = prefix_codes[mx.view(scaled, mx.uint32) >> 16]
    return codes + (scaled > thresholds[codes]).astype(mx.uint8), absmax


def dequantize_blocks(codes: mx.array, absmax: mx.array, shape: tuple[int, ...], *, signed: bool) -> mx.array:
    """The float32 array of `shape` that codes (N, 256) and absmax (N, 1) stand for."""
    values, _, _ = _tables(signed)
    flat = (values[codes] * absmax).reshape(-1)
    return flat[: int(np.prod(shape))].reshape(shape)
