"""LoRA layers.

Shapes: B batch, L length, I inputs, O outputs, R rank.
"""

import math
from typing import TypeAlias

import mlx.core as mx
import mlx.nn as nn

ADAPTER_PARAMETERS = ("lora_a", "lora_b")
"""Names of the trained arrays of an adapter layer."""

BaseLinear: TypeAlias = nn.Linear | nn.QuantizedLinear


def linear_shape(linear: BaseLinear) -> tuple[int, int]:
    """(inputs, outputs) of a linear layer, quantized or not."""
    outputs, columns = linear.weight.shape
    if isinstance(linear, nn.QuantizedLinear):
        return columns * 32 // linear.bits, outputs
    return columns, outputs


class LoRALinear(nn.Module):
    """y = W x + scale · B A x, with W frozen (Hu et al. 2021, arXiv:2106.09685, equation 3; scale = alpha / rank).

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
        """Apply the layer; the result (B, L, O) has the base's type."""
        y_BLO = self.linear(x_BLI)
        a_IR = self.lora_a.astype(x_BLI.dtype)
        b_RO = (self.scale * self.lora_b).astype(x_BLI.dtype)
        return mx.addmm(y_BLO, self.dropout(x_BLI) @ a_IR, b_RO)
