"""LoRA and DoRA layers, and LoRA layers of a mixture's experts.

Shapes: B batch, L length, I inputs, O outputs, R rank, E experts, K experts chosen for a token.
"""

import math
from typing import TypeAlias

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear

from mlxmath.models.linear import dequantized, packed_of

ADAPTER_PARAMETERS = ("lora_a", "lora_b", "m")
"""Names of the trained arrays of an adapter layer (`m` in DoRA only)."""

BaseLinear: TypeAlias = nn.Linear | nn.QuantizedLinear
ExpertLinear: TypeAlias = SwitchLinear | QuantizedSwitchLinear

LINEARS = (nn.Linear, nn.QuantizedLinear)
"""Kinds of layers that have one matrix."""
EXPERTS = (SwitchLinear, QuantizedSwitchLinear)
"""Kinds of layers that have a matrix for each expert."""


def linear_shape(linear: BaseLinear | ExpertLinear) -> tuple[int, int]:
    """(inputs, outputs) of a linear layer or of an expert's, quantized or not."""
    *_, outputs, columns = linear.weight.shape
    if isinstance(linear, nn.QuantizedLinear | QuantizedSwitchLinear):
        return columns * 32 // linear.bits, outputs
    return columns, outputs


def dense_weight(linear: BaseLinear) -> mx.array:
    """(O, I): the weight, dequantized if need be."""
    if isinstance(linear, nn.QuantizedLinear):
        return dequantized(packed_of(linear), linear.group_size, linear.bits, linear.mode)
    weight_OI: mx.array = linear.weight
    return weight_OI


def _begin(
    layer: nn.Module,
    linear: nn.Module,
    shape_a: tuple[int, ...],
    shape_b: tuple[int, ...],
    scale: float,
    dropout: float,
) -> None:
    """Give an adapter layer its base and its own arrays, which alone train."""
    bound = 1 / math.sqrt(linear_shape(linear)[0])
    layer.linear = linear
    layer.lora_a = mx.random.uniform(-bound, bound, shape_a)
    layer.lora_b = mx.zeros(shape_b)
    layer.scale = mx.array(scale, mx.float32)
    layer.dropout = nn.Dropout(dropout)
    layer.freeze(recurse=True)
    layer.unfreeze(keys=list(ADAPTER_PARAMETERS), recurse=False)


class LoRALinear(nn.Module):
    """y = W x + scale · B A x, with W frozen (Hu et al. 2021, arXiv:2106.09685, equation 3; scale = alpha / rank).

    Rank-stabilised LoRA is the same layer with scale = alpha / √rank (Kalajdzievski 2023, arXiv:2312.03732).

    `lora_a` (I, R) starts uniform in ±1/√I, `lora_b` (R, O) starts at zero, so the layer starts as its base. Both are
    float32 whatever the base's type; they are cast to the input's type where they meet it. `scale` is an array, so a
    compiled step sees it change: 0 turns the adapter off exactly.
    """

    def __init__(self, linear: BaseLinear, rank: int, scale: float, dropout: float = 0.0) -> None:
        super().__init__()
        inputs, outputs = linear_shape(linear)
        _begin(self, linear, (inputs, rank), (rank, outputs), scale, dropout)

    def __call__(self, x_BLI: mx.array) -> mx.array:
        """Apply the layer; the result (B, L, O) has the base's type.

        The scale goes into B, which is small, so the wide arrays are passed over once: by the matmul that adds.
        """
        y_BLO = self.linear(x_BLI)
        a_IR = self.lora_a.astype(x_BLI.dtype)
        b_RO = (self.scale * self.lora_b).astype(x_BLI.dtype)
        return mx.addmm(y_BLO, self.dropout(x_BLI) @ a_IR, b_RO)


class DoRALinear(LoRALinear):
    """y = m ∘ (V x) / ‖V‖ + bias with V = W + scale · B A (Liu et al. 2024, arXiv:2402.09353, equation 5).

    The norm is each output row's. `m` (O,), float32, starts as ‖W‖, so the layer starts as its base. The gradient
    treats ‖V‖ as a constant (section 4.3), as mlx_lm and PEFT do. A scale of 0 does NOT restore the base once `m` has
    been trained. Dropout acts on the input of A only.
    """

    def __init__(self, linear: BaseLinear, rank: int, scale: float, dropout: float = 0.0) -> None:
        super().__init__(linear, rank, scale, dropout)
        self._weight_square_O = mx.square(dense_weight(linear).astype(mx.float32)).sum(axis=1)  # not a parameter
        self.m = mx.sqrt(self._weight_square_O)
        mx.eval(self._weight_square_O, self.m)  # now, so that dequantized weights live one at a time

    def __call__(self, x_BLI: mx.array) -> mx.array:
        """Apply the layer; the result (B, L, O) has the base's type."""
        ratio_O = self.m / self._norm(x_BLI.dtype)
        y_BLO = super().__call__(x_BLI)
        if "bias" not in self.linear:
            return ratio_O.astype(y_BLO.dtype) * y_BLO
        shift_O = self.linear.bias * (1 - ratio_O)  # y holds the bias, which the ratio does not scale
        return ratio_O.astype(y_BLO.dtype) * y_BLO + shift_O.astype(y_BLO.dtype)

    def _norm(self, dtype: mx.Dtype) -> mx.array:
        """(O,): ‖W + s B A‖, without making that matrix.

        ‖w_o + s Σ_r b_ro a_r‖² = ‖w_o‖² + 2 s Σ_r b_ro (W a_r)_o + s² b_oᵀ (Aᵀ A) b_o, where W a_r is the base layer
        applied to R more rows.
        """
        a_IR, b_RO = mx.stop_gradient(self.lora_a), mx.stop_gradient(self.scale * self.lora_b)
        product_RO = self.linear(a_IR.T.astype(dtype)).astype(mx.float32)
        if "bias" in self.linear:
            product_RO = product_RO - self.linear.bias.astype(mx.float32)
        square_O = self._weight_square_O + (b_RO * (2 * product_RO + (a_IR.T @ a_IR) @ b_RO)).sum(axis=0)
        return mx.sqrt(mx.maximum(square_O, 1e-30))  # a row of zeros stays one


class ExpertsLoRALinear(nn.Module):
    """y = W_e x + scale · B_e A_e x for each expert e that is chosen for x, with all W_e frozen.

    The formula, names and shapes are those of mlx_lm's `LoRASwitchLinear`: `lora_a` (E, R, I) starts uniform in ±1/√I,
    `lora_b` (E, O, R) at zero. (PEFT's adapters on expert parameters are the same: rank and scale are each expert's.)
    Types, dropout and `scale` are as in `LoRALinear`.
    """

    def __init__(self, linear: ExpertLinear, rank: int, scale: float, dropout: float = 0.0) -> None:
        super().__init__()
        inputs, outputs = linear_shape(linear)
        experts = linear.num_experts
        _begin(self, linear, (experts, rank, inputs), (experts, outputs, rank), scale, dropout)

    def __call__(self, x: mx.array, indices: mx.array, sorted_indices: bool = False) -> mx.array:
        """Apply the layer as a mixture does.

        Args:
            x: (B, L, 1, 1, I) or, once a token's experts differ, (B, L, K, 1, I); (N, 1, I) if sorted by expert.
            indices: the experts, (B, L, K) or (N,).
            sorted_indices: whether they ascend.

        Returns:
            (B, L, K, 1, O) or (N, 1, O), in the base's type.
        """
        y = self.linear(x, indices, sorted_indices=sorted_indices)

        def experts(x: mx.array, weight: mx.array) -> mx.array:
            transposed = weight.astype(x.dtype).swapaxes(-1, -2)
            return mx.gather_mm(x, transposed, rhs_indices=indices, sorted_indices=sorted_indices)

        low = self.scale.astype(x.dtype) * experts(self.dropout(x), self.lora_a)
        return y + experts(low, self.lora_b)


AdapterLayer: TypeAlias = LoRALinear | ExpertsLoRALinear


def adapter_layer(
    linear: BaseLinear | ExpertLinear, variant: str, rank: int, scale: float, dropout: float
) -> AdapterLayer:
    """The adapter layer of `lora.variant` around a layer."""
    if isinstance(linear, EXPERTS):
        return ExpertsLoRALinear(linear, rank, scale, dropout)
    return (DoRALinear if variant == "dora" else LoRALinear)(linear, rank, scale, dropout)
