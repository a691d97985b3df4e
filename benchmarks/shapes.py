"""The models that the benchmarks measure, by their sizes."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Shape:
    """A decoder-only model by its sizes, and how many rows of the data it is measured on."""

    name: str
    family: str
    """"llama" or "qwen2" (which has biases on q, k and v)."""
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocab: int
    tied: bool
    rows: int
    quick_rows: int

    @property
    def title(self) -> str:
        """Name, family, parameters and vocabulary."""
        millions = self.num_parameters / 1e6
        return f"{self.name} ({self.family} {millions:,.{0 if millions >= 10 else 2}f}M, vocabulary {self.vocab:,})"

    def config(self, dtype: str) -> dict[str, Any]:
        """config.json."""
        return {
            "architectures": ["LlamaForCausalLM" if self.family == "llama" else "Qwen2ForCausalLM"],
            "model_type": self.family,
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "intermediate_size": self.intermediate,
            "vocab_size": self.vocab,
            "tie_word_embeddings": self.tied,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0 if self.family == "llama" else 1000000.0,
            "max_position_embeddings": 4096,
            "hidden_act": "silu",
            "attention_dropout": 0.0,
            "use_sliding_window": False,
            "torch_dtype": dtype,
            "bos_token_id": 0,
            "eos_token_id": 1,
        }

    def block_linears(self) -> dict[str, tuple[int, int]]:
        """(outputs, inputs) of each linear layer of a block."""
        kv = self.hidden // self.heads * self.kv_heads
        return {
            "self_attn.q_proj": (self.hidden, self.hidden),
            "self_attn.k_proj": (kv, self.hidden),
            "self_attn.v_proj": (kv, self.hidden),
            "self_attn.o_proj": (self.hidden, self.hidden),
            "mlp.gate_proj": (self.intermediate, self.hidden),
            "mlp.up_proj": (self.intermediate, self.hidden),
            "mlp.down_proj": (self.hidden, self.intermediate),
        }

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Name and shape of every tensor of the checkpoint."""
        yield "model.embed_tokens.weight", (self.vocab, self.hidden)
        for i in range(self.layers):
            prefix = f"model.layers.{i}."
            for name, shape in self.block_linears().items():
                yield f"{prefix}{name}.weight", shape
                if self.family == "qwen2" and name[10:] in ("q_proj", "k_proj", "v_proj"):
                    yield f"{prefix}{name}.bias", shape[:1]
            yield f"{prefix}input_layernorm.weight", (self.hidden,)
            yield f"{prefix}post_attention_layernorm.weight", (self.hidden,)
        yield "model.norm.weight", (self.hidden,)
        if not self.tied:
            yield "lm_head.weight", (self.vocab, self.hidden)

    @property
    def num_parameters(self) -> int:
        """Parameters in all."""
        return sum(math.prod(shape) for _, shape in self.tensors())

    def flops_per_token(self, targets_per_token: float) -> float:
        """Matrix-product FLOPs of training one token with frozen weights.

        2 a weight forward and 2 a weight for the gradient of its input; the head only where there is a target.
        Attention scores, adapters and everything element-wise are left out, so a fraction of the ceiling is never
        flattered.
        """
        blocks = self.layers * sum(map(math.prod, self.block_linears().values()))
        return 4 * (blocks + targets_per_token * self.vocab * self.hidden)


_QWEN = {"family": "qwen2", "kv_heads": 2, "tied": True, "vocab": 151_936}
SHAPES = {
    shape.name: shape
    for shape in (
        Shape("tiny", "llama", 64, 2, 4, 2, 160, 2_000, False, 16, 16),
        Shape("small", "llama", 512, 8, 8, 8, 1408, 32_000, False, 64, 16),
        Shape("135m", "llama", 576, 30, 9, 3, 1536, 49_152, True, 64, 16),
        Shape("0.5b", hidden=896, layers=24, heads=14, intermediate=4864, rows=24, quick_rows=8, **_QWEN),
        Shape("1.5b", hidden=1536, layers=28, heads=12, intermediate=8960, rows=16, quick_rows=8, **_QWEN),
        Shape("7b", "qwen2", 3584, 28, 28, 4, 18944, 152_064, False, 16, 8),
    )
}
"""`small` and `0.5b` are what `bench_train.py` measures; `135m` has SmolLM2's sizes, `0.5b`, `1.5b` and `7b`
Qwen2.5's."""
