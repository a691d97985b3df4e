"""Types of tensors in GGUF files: which one each gets, and its values as that type's bytes."""

import re
from collections.abc import Sequence

import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import LlamaFileType, quants
from gguf.constants import GGML_QUANT_SIZES

from mlxmath.errors import MlxmathError
from mlxmath.weights.dtypes import Array
from mlxmath.weights.k_quants import quantize_q4_k, quantize_q6_k

FILE_TYPES = {
    "f16": (Type.F16, Type.F16, LlamaFileType.MOSTLY_F16),
    "bf16": (Type.BF16, Type.BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": (Type.Q8_0, Type.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    "q6_k": (Type.Q6_K, Type.Q6_K, LlamaFileType.MOSTLY_Q6_K),
    "q4_k_m": (Type.Q4_K, Type.Q6_K, LlamaFileType.MOSTLY_Q4_K_M),
    "q4_0": (Type.Q4_0, Type.Q6_K, LlamaFileType.MOSTLY_Q4_0),
}
"""Of each --gguf-type: the type of weights, that of the head (of a tied one: of the embedding), the file's."""
_LARGER = {Type.Q4_K: Type.Q5_0, Type.Q6_K: Type.Q8_0}
"""Where rows are no multiple of 256."""
_LARGEST_F16 = 65504.0


def type_of(name: str, shape: Sequence[int], gguf_type: str, *, is_tied: bool, num_blocks: int) -> Type:
    """The type of a tensor, as `llama_tensor_get_type` in llama.cpp's src/llama-quant.cpp chooses it."""
    usual, of_head, _ = FILE_TYPES[gguf_type]
    if len(shape) < 2 or name.endswith("ffn_gate_inp.weight"):
        return Type.F32
    chosen = of_head if name == "output.weight" or (is_tied and name == "token_embd.weight") else usual
    if gguf_type == "q4_k_m" and re.search(r"attn_v|attn_qkv|ffn_down", name):
        number = int(name.split(".")[1])
        eighth = num_blocks // 8
        if number < eighth or number >= 7 * num_blocks // 8 or (number - eighth) % 3 == 2:
            chosen = Type.Q6_K
    if shape[-1] % GGML_QUANT_SIZES[chosen][0]:
        chosen = _LARGER.get(chosen, Type.F16)
    return chosen if shape[-1] % GGML_QUANT_SIZES[chosen][0] == 0 else Type.F16


def quantized(values: Array, type_: Type, name: str) -> Array:
    """Values (…, C) in float32 as the bytes of a type.

    Raises:
        MlxmathError: they are no numbers, or beyond the type's range.
    """
    if not np.isfinite(values).all():
        raise MlxmathError(f"{name} has values that are no finite numbers; the model or its adapter is damaged.")
    if type_ == Type.F32:
        return values
    if type_ == Type.F16:
        if np.abs(values).max(initial=0) > _LARGEST_F16:
            raise MlxmathError(f"{name} has values beyond the range of 16-bit floats; choose --gguf-type bf16.")
        return values.astype(np.float16)
    own = {Type.Q4_K: quantize_q4_k, Type.Q6_K: quantize_q6_k}.get(type_)
    return own(values) if own else quants.quantize(values, type_)
