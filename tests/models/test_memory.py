"""What a step takes of what is counted and measured, the batches that are chosen by it, and FLOPs by hand."""

from dataclasses import replace
from typing import Any

import pytest

from mlxmath.config.load import resolve
from mlxmath.config.losses import SftConfig
from mlxmath.config.schema import RunConfig
from mlxmath.errors import MlxmathError
from mlxmath.models.measured import Counted, Growth, Measured, Parabola
from mlxmath.models.memory import Batching, ModelShape, choose_batching, plan_memory
from mlxmath.models.speed import flops_per_token
from mlxmath.runtime.device import DeviceInfo


def growth(fixed: float, token: float, pair: float) -> Growth:
    lengths = (16, 32, 64)
    return Growth(lengths, tuple(fixed + token * length + pair * length**2 for length in lengths))


MEASURED = Measured(
    kept=growth(0, 6e6, 0), working=growth(1e6, 4e5, 100), vocab_size=102400, head_width=4096, head_is_packed=False,
    num_layers=30, packed=False, by_block=True, unpacked_bytes=0,
)  # fmt: skip
COUNTED = Counted(weights=14_000_000_000, trained=4_000_000, measured=MEASURED)


def config_of(**values: object) -> RunConfig:
    return resolve([("t", {name.replace("__", "."): value for name, value in values.items()})]).config


def test_a_parabola_through_three_points_and_nothing_that_shrinks() -> None:
    found = Parabola.through([16, 32, 64], [7 + 3 * n + 2 * n * n for n in (16, 32, 64)])
    assert (found.fixed, found.token, found.pair) == pytest.approx((7, 3, 2))
    flat = Parabola.through([16, 32, 64], [100, 180, 300])
    assert flat.pair == 0 and flat.at(64) == pytest.approx(300)
    assert Parabola.through([16, 32, 64], [9, 8, 7]).token == 0


def test_rows_take_what_one_does_and_chunks_end_the_pairs() -> None:
    assert growth(7, 3, 2).at(100, 10) == pytest.approx(7 + 300 + 2000), "pairs are those of a row"
    lengths = (16, 32, 64, 128, 256)
    chunked = Growth(lengths, tuple(3 * n + 2 * n * min(n, 64) for n in lengths))
    for length in (24, 64, 256, 1024):
        expected = 2 * (3 * length + 2 * length * min(length, 64))
        assert chunked.at(2 * length, length) == pytest.approx(expected)


def test_attention_by_blocks_ends_the_pairs_too() -> None:
    def row(length: int) -> float:
        return 3 * length + 2 * length**2 if length <= 64 else 5000 + 4 * length

    for lengths in ((16, 32, 64), (16, 32, 64, 128, 256)):
        found = Growth(lengths, tuple(map(row, lengths)), bound=64)
        assert found.at(40, 40) == pytest.approx(row(40)) and found.at(64, 64) == pytest.approx(row(64))
        seen = len(lengths) > 3
        for length in (100, 1000):
            assert found.at(length, length) == pytest.approx(row(length) if seen else row(64) + 3 * (length - 64))


def test_a_step_by_hand() -> None:
    batching, config = Batching(2, 512), config_of(training__batch_size=8, training__grad_accumulation_steps=1)
    plan = plan_memory(COUNTED, config, itemsize=4, batching=batching, longest=256)
    assert plan.weights == COUNTED.weights
    assert plan.adapters == 4 * 4_000_000 * 3, "two workers sum the gradients of two micro-batches each"
    assert plan.optimizer == 8 * 4_000_000
    assert plan.activations == pytest.approx(2 * 512 * 6e6)
    assert plan.working == pytest.approx(2 * (1e6 + 512 * 4e5 + 100 * 512 * 256))
    alone = config_of(training__batch_size=1, training__grad_accumulation_steps=1)
    one = plan_memory(COUNTED, alone, itemsize=4, batching=Batching(1, 512), longest=256)
    assert one.activations == pytest.approx(256 * 6e6), "there is no second row"
    pair = plan_memory(COUNTED, alone, itemsize=4, batching=Batching(1, 256), longest=256, rows_each=2)
    assert pair.activations == pytest.approx(2 * 256 * 6e6), "both rows of a pair are in a micro-batch"
    padded = config_of(training__batch_size=8, training__batching="pad")
    rows = plan_memory(COUNTED, padded, itemsize=4, batching=Batching(1, 512), longest=256)
    assert rows.activations == pytest.approx(8 * 256 * 6e6), "whatever --max-batch-tokens is"
    packed = replace(COUNTED, measured=replace(MEASURED, packed=True))
    row = plan_memory(packed, config, itemsize=4, batching=Batching(1, 512), longest=256)
    assert row.working == pytest.approx(1e6 + 512 * 4e5 + 100 * 512 * 512)
    large = replace(COUNTED, trained=2_000_000_000)
    assert plan_memory(large, alone, itemsize=4, batching=Batching(1, 512), longest=256).activations == 8e9


def test_the_head_counts_where_it_takes_more_than_a_block() -> None:
    small = replace(MEASURED, working=growth(0, 0, 0))
    config = config_of(training__batch_size=1, training__grad_accumulation_steps=1)

    def working(measured: Measured, config: RunConfig = config) -> int:
        of = replace(COUNTED, measured=measured)
        return plan_memory(of, config, itemsize=4, batching=Batching(1, 64), longest=64).working

    logits = 4 * 64 * 102400
    assert working(small) == logits + 4 * 64 * 4096 * 4
    smoothed = config.model_copy(update={"sft": SftConfig(label_smoothing=0.1)})
    assert working(small, smoothed) == 2 * logits + 4 * 64 * 4096 * 4
    assert working(replace(small, head_is_packed=True)) == 2 * logits + 4 * 64 * 4096 * 4 + 16 * 4096 * 4096
    assert working(replace(small, head_width=None)) == 5 * logits


def test_auto_takes_less_where_memory_is_short_or_nothing_is_known() -> None:
    config = config_of(training__batch_size=64)

    def tokens(memory: float, of: Counted | None = COUNTED) -> int:
        device = DeviceInfo("metal", "M", int(memory), "bfloat16", "")
        return choose_batching(config, device, 512, of).tokens

    assert tokens(200e9) == 4096
    assert 256 <= tokens(24e9) < 4096
    assert tokens(15e9) == 256
    assert tokens(200e9, None) == tokens(200e9, replace(COUNTED, measured="it cannot be tried")) == 256


def test_a_config_without_sizes_is_named() -> None:
    with pytest.raises(MlxmathError, match="hidden_size"):
        ModelShape.from_config({"num_attention_heads": 4})


def test_workers_are_as_many_as_have_something_to_do_and_fit() -> None:
    def chosen(workers: int, memory: float = 500e9, **settings: Any) -> Batching:
        device = DeviceInfo("cpu", "C", int(memory), "float32", "", num_workers=workers)
        return choose_batching(config_of(**settings), device, 256, COUNTED)

    assert chosen(1) == Batching(1, 512)
    assert chosen(8) == Batching(8, 256)
    assert chosen(8, training__grad_accumulation_steps=5) == Batching(5, 256)
    assert chosen(8, training__grad_accumulation_steps=4) == Batching(1, 512)  # half of the cores would be idle
    padded = {"training__batching": "pad", "training__batch_size": 8, "training__grad_accumulation_steps": 1}
    assert chosen(8, **padded).num_workers == 1
    assert chosen(8, runtime__workers=2) == Batching(2, 256)
    assert chosen(8, training__max_batch_tokens=1000) == Batching(8, 1000)
    assert chosen(8, memory=25e9) == Batching(1, 512)


SHAPE = ModelShape(layers=3, hidden=4, feed_forward=6, heads=2, kv_heads=1, head_width=2, vocab=10, tied=True)
BLOCK = 4 * 4 + 2 * 4 * 2 + 4 * 4 + 3 * 4 * 6
HEAD = 4 * 10 * 4


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, (2 + 2) * 3 * BLOCK + HEAD),
        ({"lora.num_layers": 1}, (2 * 3 + 2) * BLOCK + HEAD),
        ({"training.full": True}, (2 + 4) * 3 * BLOCK + HEAD),
        ({"training.grad_checkpoint": 1}, (2 + 2 + 2) * 3 * BLOCK + HEAD),
        ({"training.grad_checkpoint": 2}, ((2 + 2) * 3 + 2 * 2) * BLOCK + HEAD),
    ],
)
def test_flops_of_a_token_by_hand(settings: dict[str, Any], expected: float) -> None:
    assert flops_per_token(SHAPE, resolve([("test", settings)]).config) == expected
