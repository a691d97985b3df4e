"""How much a model's answers would change if the weights of a layer were packed, for each layer and form.

Packing a layer's weight W (O, I) as Q adds the error E = Q - W. To second order the answers then differ from the
model's own by the Kullback-Leibler divergence ½ eᵀ F e, with e = vec(E) and F the Fisher matrix of W (Amari 1998,
equation 7; Martens 2020, arXiv:1412.1193, section 5): the covariance of the gradient of log p of tokens that are drawn
from the model itself. So

    ½ eᵀ F e = ½ E[(Σ_t g_tᵀ E x_t)²] ≈ ½ E[Σ_t (g_tᵀ E x_t)²]

with x_t what goes into the layer at position t and g_t (O,) the gradient of what comes out. What the gradients of
different positions have in common is left out; what elements of a weight have in common is not, as it is in the usual
diagonal of F. `benchmarks/bench_quantize.py` compares the two, and both with measured divergences.

g_tᵀ E x_t needs no gradient of W: in the backward pass, where g comes by, the layer is applied to its inputs once more
with E in place of W. So this costs a forward pass more, and one E is in memory at a time. It is done with the error of
one form; another form's divergence is that times the ratio of their squared errors, since rounding errors of different
forms are alike but for their size.

Shapes: B rows, L positions, V vocabulary, I inputs, O outputs.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlxmath.models.attention import TrainingAttention
from mlxmath.models.calls import without_dropout
from mlxmath.weights.packing import Packing
from mlxmath.weights.quantize import packable

_MEASURED = 3
"""Bits of the form whose error is applied: coarse enough that little is lost in 16 bits."""
_PROBE = "probe"
"""The parameter of a layer whose gradient is what is measured."""


def sensitivities(
    model: nn.Module, batches: Iterable[tuple[mx.array, mx.array]], forms: Mapping[str, Sequence[Packing]],
    stored: mx.Dtype, seed: int = 0,
) -> dict[str, list[float]]:  # fmt: skip
    """For each layer and each of its forms the divergence that it costs, in nats a target token.

    Args:
        model: not quantized; it is left as it was.
        batches: tokens (B, L) and loss masks (B, L), true where a token is a target.
        forms: path of a layer -> forms of its weight, the group sizes of all of which divide its rows.
        stored: type in which the weights are stored, and packed.
        seed: of what is drawn.
    """
    layers = dict(packable(model))
    measured = {path: min(own, key=lambda form: abs(form.bits - _MEASURED)) for path, own in forms.items()}
    sums = dict.fromkeys(forms, 0.0)
    num_targets = 0
    probed = _probed({path: layers[path] for path in forms}, measured, model, stored)
    attention = TrainingAttention(model, looks=True)
    with probed, without_dropout(model), attention.in_place():
        gradient = nn.value_and_grad(model, _drawn)
        for number, (tokens_BL, mask_BL) in enumerate(batches):
            _, found = gradient(model, tokens_BL, mask_BL, mx.random.key(seed + number))
            probes = {name: array for name, array in tree_flatten(found) if name.endswith(f".{_PROBE}")}
            mx.eval(probes)
            for path in sums:
                sums[path] += probes[f"{path}.{_PROBE}"].item()
            num_targets += int(mask_BL[:, 1:].sum().item())
            mx.clear_cache()
    costs = {}
    for path, own in forms.items():
        errors = {form: _square(error_of(layers[path].weight, form, stored)) for form in {*own, measured[path]}}
        of_square = sums[path] / 2 / max(num_targets, 1) / max(errors[measured[path]], 1e-30)
        costs[path] = [of_square * errors[form] for form in own]
        mx.clear_cache()
    return costs


def _square(error: mx.array) -> float:
    found: float = mx.square(error).sum().item()
    return found


def _drawn(model: nn.Module, tokens_BL: mx.array, mask_BL: mx.array, key: mx.array) -> mx.array:
    """Σ vᵀ logits over the targets, with v drawn anew for each: its gradients' covariance is the Fisher matrix.

    That of the logits is diag(p) - p pᵀ, the covariance of v = √p ∘ (ε - √p (√pᵀ ε)) with ε of random
    signs. Tokens drawn from p would do as well on average; but where a model is sure, it would take many to see the
    others at all.
    """
    logits_BLV = model(tokens_BL[:, :-1]).astype(mx.float32)
    p_BLV = mx.softmax(mx.stop_gradient(logits_BLV), axis=-1)
    root_BLV = mx.sqrt(p_BLV)
    signed_BLV = mx.where(mx.random.bernoulli(0.5, root_BLV.shape, key=key), root_BLV, -root_BLV)
    v_BLV = signed_BLV - p_BLV * signed_BLV.sum(axis=-1, keepdims=True)
    return (v_BLV * logits_BLV * mask_BL[:, 1:, None]).sum()


@contextmanager
def _probed(
    layers: Mapping[str, nn.Module], forms: Mapping[str, Packing], model: nn.Module, stored: mx.Dtype
) -> Iterator[None]:
    """Meanwhile these layers have a parameter that alone trains, and whose gradient is Σ_t (g_tᵀ E x_t)².

    The model is in training mode: what mlx_lm computes answers with on Metal has no gradient.
    """
    trained = [(module, list(module.trainable_parameters())) for module in model.modules()]
    kinds: dict[str, Any] = {path: type(layer) for path, layer in layers.items()}
    modes = [(module, module.training) for module in model.modules()]
    model.freeze()
    model.train()
    try:
        for path, layer in layers.items():
            layer.__class__ = _probing(kinds[path])
            layer[_PROBE] = mx.zeros(())
            layer._form, layer._stored = forms[path], stored
            layer.unfreeze(keys=[_PROBE], recurse=False)
        yield
    finally:
        for path, layer in layers.items():
            layer.__class__ = kinds[path]
            del layer[_PROBE], layer._form, layer._stored
        for module, mode in modes:
            module._training = mode
        for module, keys in trained:
            module.unfreeze(keys=keys, recurse=False)


@cache
def _probing(kind: Any) -> type[nn.Module]:
    """A layer's class with its calls looked at."""

    def method(name: str) -> Callable[..., mx.array]:
        original = getattr(kind, name)

        def call(self: Any, *inputs: Any, **others: Any) -> mx.array:
            return _through(self, lambda: original(self, *inputs, **others))

        return call

    names = [name for name in ("__call__", "as_linear") if hasattr(kind, name)]
    return type(f"Probing{kind.__name__}", (kind,), {name: method(name) for name in names})


def _through(layer: Any, apply: Callable[[], mx.array]) -> mx.array:
    """What the layer gives, unchanged; the probe's gradient is measured where its own comes by."""

    @mx.custom_function
    def passed(y: mx.array, probe: mx.array) -> mx.array:  # noqa: ARG001
        return y

    @passed.vjp
    def passed_vjp(_: Any, cotangent: mx.array, __: mx.array) -> tuple[mx.array, mx.array]:
        with _without_bias(layer) as weight:
            layer["weight"] = error_of(weight, layer._form, layer._stored, after=cotangent)
            changes = (cotangent * apply()).astype(mx.float32).sum(axis=-1)
        return cotangent, mx.square(changes).sum()

    return passed(apply(), layer[_PROBE])


def error_of(weight: mx.array, form: Packing, stored: mx.Dtype, *, after: mx.array | None = None) -> mx.array:
    """E = Q - W, of the weight's shape and type; not before the array `after`, or a graph would hold all at once."""
    kept = weight if after is None else mx.depends([weight], [after])[0]
    packed = mx.quantize(kept.astype(stored), form.group_size, form.bits, mode=form.mode)
    unpacked = mx.dequantize(*packed, group_size=form.group_size, bits=form.bits, mode=form.mode)
    return unpacked.astype(weight.dtype) - kept


@contextmanager
def _without_bias(layer: Any) -> Iterator[mx.array]:
    """Meanwhile a layer is linear in its weight, which may be replaced; the weight that it has."""
    kept = {name: layer[name] for name in ("weight", "bias") if name in layer}
    layer.pop("bias", None)
    try:
        yield kept["weight"]
    finally:
        dict.update(layer, kept)
