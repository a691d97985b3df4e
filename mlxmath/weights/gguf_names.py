"""What GGUF files call the tensors of a model, and which of them they store otherwise than Hugging Face does.

Names and conventions are those of llama.cpp's `convert_hf_to_gguf.py`. A tensor of the name `blk.3.attn_q.weight` has a
stem (`blk.3.attn_q`) and an end (`weight`, `bias`); the table pairs stems, `{i}` is the block and `{e}` the expert. All
experts of a block are one tensor (E, out, in) of a GGUF file, and E tensors of Hugging Face's.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from mlxmath.weights.dtypes import Array

_WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_ATTENTION = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
}  # fmt: skip
_QK_NORM = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_MLP = {
    "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}  # fmt: skip
_EXPERTS = {
    "ffn_gate_inp": "mlp.gate", "ffn_gate_exps": "mlp.experts.{e}.gate_proj",
    "ffn_up_exps": "mlp.experts.{e}.up_proj", "ffn_down_exps": "mlp.experts.{e}.down_proj",
}  # fmt: skip
_SHARED_EXPERT = {
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate", "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj", "ffn_down_shexp": "mlp.shared_expert.down_proj",
}  # fmt: skip
_MIXTRAL = {
    "ffn_norm": _MLP["ffn_norm"],
    "ffn_gate_inp": "block_sparse_moe.gate", "ffn_gate_exps": "block_sparse_moe.experts.{e}.w1",
    "ffn_up_exps": "block_sparse_moe.experts.{e}.w3", "ffn_down_exps": "block_sparse_moe.experts.{e}.w2",
}  # fmt: skip
_SANDWICH = {
    "post_attention_norm": "post_attention_layernorm", "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}  # fmt: skip
_DENSE = {**_ATTENTION, **_MLP}
_SPARSE = {**_ATTENTION, "ffn_norm": _MLP["ffn_norm"], **_EXPERTS}
_PHI3 = {
    "attn_norm": _ATTENTION["attn_norm"], "attn_qkv": "self_attn.qkv_proj", "attn_output": "self_attn.o_proj",
    "ffn_norm": _MLP["ffn_norm"], "ffn_up": "mlp.gate_up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
_OLMO2 = {
    **{ours: theirs for ours, theirs in _DENSE.items() if not ours.endswith("_norm")}, **_QK_NORM,
    "post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm",
}  # fmt: skip
_STARCODER2 = {**_ATTENTION, "ffn_norm": _MLP["ffn_norm"], "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"}


@dataclass(frozen=True)
class Family:
    """Models of one architecture.

    Attributes:
        architecture: `general.architecture` of a GGUF file.
        model_type: of config.json.
        blocks: stem inside a block in a GGUF file (after `blk.{i}.`) -> in Hugging Face's (after `model.layers.{i}.`).
        permuted: the rows of q and k are stored with the two halves of each head interleaved.
        norm_offset: 1 for Gemma, whose norms are stored with 1 added; else 0.
    """

    architecture: str
    model_type: str
    blocks: Mapping[str, str] = field(repr=False)
    permuted: bool = False
    norm_offset: int = 0

    @cached_property
    def _reversed(self) -> dict[str, str]:
        return {theirs: ours for ours, theirs in (*_WHOLE.items(), *self.blocks.items())}

    def to_hf(self, name: str) -> str | None:
        """Hugging Face's name of a GGUF file's tensor, with `{e}` in that of all experts; None for one without."""
        stem, _, end = name.rpartition(".")
        if stem in _WHOLE:
            return f"{_WHOLE[stem]}.{end}"
        found = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)
        if found is None or found[2] not in self.blocks:
            return None
        return f"model.layers.{int(found[1])}.{self.blocks[found[2]]}.{end}"

    def to_gguf(self, name: str) -> str | None:
        """A GGUF file's name of Hugging Face's tensor; that of one expert is its block's of all. None: it has none."""
        stem, _, end = name.rpartition(".")
        found = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", stem)
        if found is None:
            return f"{self._reversed[stem]}.{end}" if stem in _WHOLE.values() else None
        inner = self._reversed.get(re.sub(r"\.experts\.\d+\.", ".experts.{e}.", found[2]))
        return f"blk.{int(found[1])}.{inner}.{end}" if inner is not None else None

    def is_permuted(self, name: str) -> bool:
        """Whether the rows of a tensor, by its name in a GGUF file, are permuted (`rows_to_gguf`)."""
        return self.permuted and re.fullmatch(r"blk\.\d+\.attn_[qk]\.(weight|bias)", name) is not None

    def added(self, name: str) -> int:
        """What is added to a tensor, by its name in a GGUF file."""
        return self.norm_offset if name.endswith("_norm.weight") else 0


FAMILIES = (
    Family("llama", "llama", _DENSE, permuted=True),
    Family("llama", "mistral", _DENSE, permuted=True),
    Family("llama", "mixtral", {**_ATTENTION, **_MIXTRAL}, permuted=True),
    Family("qwen2", "qwen2", _DENSE),
    Family("qwen2moe", "qwen2_moe", {**_SPARSE, **_SHARED_EXPERT}),
    Family("qwen3", "qwen3", {**_DENSE, **_QK_NORM}),
    Family("qwen3moe", "qwen3_moe", {**_SPARSE, **_QK_NORM}),
    Family("gemma", "gemma", _DENSE, norm_offset=1),
    Family("gemma2", "gemma2", {**_DENSE, **_SANDWICH}, norm_offset=1),
    Family("gemma3", "gemma3_text", {**_DENSE, **_SANDWICH, **_QK_NORM}, norm_offset=1),
    Family("phi3", "phi3", _PHI3),
    Family("granite", "granite", _DENSE, permuted=True),
    Family("smollm3", "smollm3", _DENSE, permuted=True),
    Family("olmo2", "olmo2", _OLMO2),
    Family("starcoder2", "starcoder2", _STARCODER2),
)


def family_of_architecture(architecture: str, *, num_experts: int = 0) -> Family | None:
    """The family of a GGUF file; None where it is not among `FAMILIES`."""
    found = [family for family in FAMILIES if family.architecture == architecture]
    if architecture == "llama" and num_experts:
        found = [family for family in found if family.model_type == "mixtral"]
    return found[0] if found else None


def family_of_model_type(model_type: str) -> Family | None:
    """The family of a config.json; None where it is not among `FAMILIES`."""
    return next((family for family in FAMILIES if family.model_type == model_type), None)


def rows_to_gguf(num_rows: int, num_heads: int) -> Array:
    """For each row of a GGUF file's q or k, the row of Hugging Face's that it is.

    Hugging Face rotates element j of a head together with element j + d/2, llama.cpp 2j with 2j + 1.

    Args:
        num_rows: of the tensor: heads x d.
        num_heads: its heads (of k: the key heads).
    """
    return np.arange(num_rows).reshape(num_heads, 2, -1).swapaxes(1, 2).reshape(-1)


def rows_to_hf(num_rows: int, num_heads: int) -> Array:
    """For each row of Hugging Face's q or k, the row of the GGUF file's that it is; the inverse of `rows_to_gguf`."""
    return np.arange(num_rows).reshape(num_heads, -1, 2).swapaxes(1, 2).reshape(-1)
