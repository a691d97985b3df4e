"""How many sequences fit: by hand for a known shape."""

from dataclasses import replace

from mlxmath.backends.base import DeviceInfo
from mlxmath.generation.slots import cache_bytes_per_token, choose_slots
from mlxmath.models.memory import ModelShape

QWEN_1_5B = {
    "num_hidden_layers": 28, "hidden_size": 1536, "intermediate_size": 8960, "num_attention_heads": 12,
    "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True,
}  # fmt: skip
DEVICE = DeviceInfo("metal", "a Mac", 16 * 10**9, "bfloat16", "")


def test_a_token_of_a_known_model() -> None:
    assert cache_bytes_per_token(ModelShape.from_config(QWEN_1_5B), 2) == 28_672  # 28.7 kB


def test_memory_limits_the_slots() -> None:
    longest = 4096
    each = 2 * 28_672 * longest + 12 * 151936
    held = 3 * 10**9
    assert choose_slots(QWEN_1_5B, DEVICE, held_bytes=held, longest=longest)[0] == int(0.6 * 13e9 / each) == 32
    few, reason = choose_slots(QWEN_1_5B, DEVICE, held_bytes=16 * 10**9, longest=longest)
    assert few == 1 and "fit" in reason
    assert choose_slots(QWEN_1_5B, DEVICE, held_bytes=held, longest=256)[0] == 64
    assert choose_slots(QWEN_1_5B, replace(DEVICE, backend="cpu"), held_bytes=held, longest=256)[0] == 32
    assert choose_slots({}, DEVICE, held_bytes=0, longest=256)[0] == 16
