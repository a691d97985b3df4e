"""How many sequences fit: by hand for a known shape."""

from dataclasses import replace

from mlxmath.generation.slots import choose_slots
from mlxmath.models.memory import ModelShape, slot_bytes
from mlxmath.runtime.device import DeviceInfo

QWEN_1_5B = {
    "num_hidden_layers": 28, "hidden_size": 1536, "intermediate_size": 8960, "num_attention_heads": 12,
    "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True,
}  # fmt: skip
DEVICE = DeviceInfo("metal", "a Mac", 16 * 10**9, "bfloat16", "")


def test_a_token_of_a_known_model() -> None:
    shape = ModelShape.from_config(QWEN_1_5B)
    assert 2 * shape.cached_per_token == 28_672  # 28.7 kB
    logits = 3 * 4 * 151936
    assert slot_bytes(shape, 2, prompt=0, own=100) == int(100 * 28_672 * 30 / 28) + logits
    shared = slot_bytes(shape, 2, prompt=800, own=100, group_size=8)
    assert shared == int(200 * 28_672 * 30 / 28) + logits


def test_memory_limits_the_slots() -> None:
    longest, held = 4096, 11 * 10**9
    each = int(28_672 * longest * 30 / 28) + 12 * 151936
    assert choose_slots(QWEN_1_5B, DEVICE, held_bytes=held, longest=longest)[0] == int(0.8 * 5e9 / each) == 31
    few, reason = choose_slots(QWEN_1_5B, DEVICE, held_bytes=16 * 10**9, longest=longest)
    assert few == 1 and "fit" in reason
    assert choose_slots(QWEN_1_5B, DEVICE, held_bytes=held, longest=256)[0] == 64
    assert choose_slots(QWEN_1_5B, replace(DEVICE, backend="cpu"), held_bytes=held, longest=256)[0] == 128
    assert choose_slots({}, DEVICE, held_bytes=0, longest=256)[0] == 16
    assert choose_slots(QWEN_1_5B, DEVICE, held_bytes=held, longest=longest, asked=3) == (3, "asked for")


def test_a_group_shares_its_prompt() -> None:
    held = 11 * 10**9
    alone = choose_slots(QWEN_1_5B, DEVICE, held_bytes=held, longest=8192)[0]
    shared = choose_slots(QWEN_1_5B, DEVICE, held_bytes=held, longest=8192, prompt=5120, group_size=8)[0]
    assert alone == 15 and shared == 34  # of 8,192 tokens 3,712 are its own, or its share of the prompt


def test_more_than_half_of_what_pays_off_is_taken_only_where_it_needs_no_more_memory() -> None:
    each = slot_bytes(ModelShape.from_config(QWEN_1_5B), 2, prompt=0, own=512)

    def slots(needed: int) -> tuple[int, str]:
        return choose_slots(QWEN_1_5B, DEVICE, held_bytes=10**9, longest=512, needed_bytes=10**9 + needed)

    assert slots(10 * each)[0] == 32
    assert slots(40 * each)[0] == 40 and "learning" in slots(40 * each)[1]
    assert slots(100 * each)[0] == 64
