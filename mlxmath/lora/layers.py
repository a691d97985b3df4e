"""LoRA and DoRA layers.

Shapes: B batch, L length, I inputs, O outputs, R rank.
"""

import math
from typing import TypeAlias

import mlx.core as mx
import mlx.nn as nn

ADAPTER_PARAMETERS = ("lora_a", "lora_b", "m")
"""Names of the trained arrays of an adapter layer (`m` in DoRA only)."""

BaseLinear: TypeAlias = nn.Linear | nn.QuantizedLinear


def linear_shape(linear: BaseLinear) -> tuple[int, int]:
    """(inputs, outputs) of a linear layer, quantized or not."""
    outputs, columns = linear.weight.shape
    if isinstance(linear, nn.QuantizedLinear):
        return columns * 32 // linear.bits, outputs
    return columns, outputs


def dense_weight(linear: BaseLinear) -> mx.array:
    """(O, I): the weight, dequantized if need be."""
    if isinstance(linear, nn.QuantizedLinear):
        return mx.dequantize(
            linear.weight,
            linear.scales,
            linear.get("biases"),
            group_size=linear.group_size,
            bits=linear.bits,
            mode=linear.mode,
        )
    weight_OI: mx.array = linear.weight
    return weight_OI


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
        bound = 1 / math.sqrt(inputs)
        self.linear = linear
        self.lora_a = mx.random.uniform(-bound, bound, (inputs, rank))
        self.lora_b = mx.zeros((rank, outputs))
        self.scale = mx.array(scale, mx.float32)
        self.dropout = nn.Dropout(dropout)
        self.freeze(recurse=True)
        self.unfreeze(keys=list(ADAPTER_PARAMETERS), recurse=False)

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


ADAPTER_LAYERS: dict[str, type[LoRALinear]] = {"lora": LoRALinear, "dora": DoRALinear}
"""Layer by `lora.variant`."""
