"""Training with the base on the disk: the same adapters, few weights in memory, each block read twice a step."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlxmath.config.schema import LoraConfig, RunConfig
from mlxmath.config.training import TrainingConfig
from mlxmath.data.batch import Shape
from mlxmath.data.batching import BatchSampler
from mlxmath.errors import MlxmathError
from mlxmath.models.kernels.cpu import CpuKernels
from mlxmath.models.kernels.portable import Kernels
from mlxmath.models.load import load_model
from mlxmath.models.lora.inject import adapter_arrays, inject
from mlxmath.models.offload import HEAD, Offloaded
from mlxmath.runtime.device import DeviceInfo
from mlxmath.training.accumulate import Workers, accumulate
from mlxmath.training.gradients import choose_gradients
from mlxmath.training.held_out import mean_loss
from mlxmath.training.offloaded import OffloadedGradients
from mlxmath.training.optimizers import apply_gradients, make_optimizer
from mlxmath.training.placing import OFFLOAD, offloading, settled
from mlxmath.training.plan import planned, remedies
from mlxmath.training.sft import sft_loss
from tests.conftest import FakeRows
from tests.helpers import adapters, run, succeed
from tests.models import architectures
from tests.models.folders import LLAMA, deep, folder_of

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "qwen2, tied": LLAMA | {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3_moe": LLAMA | {
        "model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2, "decoder_sparse_step": 2,
        "mlp_only_layers": [], "moe_intermediate_size": 32, "norm_topk_prob": True, "head_dim": 16, "rope_theta": 1e4,
        "max_position_embeddings": 256,
    },
}  # fmt: skip
CONFIG = TrainingConfig(batch_size=8, grad_accumulation_steps=1)
TARGETS = ("q_proj", "v_proj", "down_proj")


class Training:
    """A few steps of adapters on a model, in memory or not."""

    def __init__(self, folder: Path, rows: FakeRows, *, offload: bool, workers: int = 2, num_layers: int = -1) -> None:
        self.offloaded = Offloaded(folder, "float32") if offload else None
        self.model = self.offloaded.model if self.offloaded else load_model(folder, "float32").model
        mx.random.seed(3)
        inject(self.model, LoraConfig(rank=4, dropout=0.2, targets=TARGETS, num_layers=num_layers))
        self.model.train()
        self.workers = Workers(self.model, self._gradients, workers)
        self.optimizer = make_optimizer(CONFIG, self.model)
        self.sampler = BatchSampler(rows, CONFIG, 128, Shape(16), workers)
        mx.random.seed(4)

    def _gradients(self, model: nn.Module) -> Any:
        if self.offloaded:
            return OffloadedGradients(model, sft_loss, CpuKernels(1), self.offloaded)
        return choose_gradients(model, sft_loss, CpuKernels(1), compiled=False, checkpoint_every=1)

    def steps(self, count: int, each: Callable[[], None] = lambda: None) -> list[float]:
        """The losses; `each` is called after each."""
        losses = []
        for _, step in zip(range(count), self.sampler.steps(), strict=False):
            sums = accumulate(self.workers, step)
            assert sums is not None
            losses.append(sums.loss_sum)
            apply_gradients(self.model, self.optimizer, sums, 1e-2, 1.0)
            each()
        return losses

    @property
    def adapters(self) -> dict[str, bytes]:
        return {name: np.array(array).tobytes() for name, array in adapter_arrays(self.model).items()}

    def close(self) -> None:
        self.workers.close()
        if self.offloaded:
            self.offloaded.close()


def both(folder: Path, rows: FakeRows, **settings: Any) -> list[tuple[list[float], dict[str, bytes], Any]]:
    """Losses, adapters and held-out loss of five steps in memory and on the disk."""
    found = []
    for offload in (False, True):
        training = Training(folder, rows, offload=offload, **settings)
        losses = training.steps(5)
        held_out = mean_loss(training.workers, [training.sampler.step(np.arange(37), 0, 0)])
        found.append((losses, training.adapters, held_out))
        training.close()
    return found


@pytest.mark.parametrize(
    ("name", "bits", "dtype", "workers"),
    [
        ("llama", None, mx.float32, 2), ("llama", 4, mx.float32, 2), ("llama", None, mx.bfloat16, 1),
        ("qwen2, tied", None, mx.float32, 3), ("qwen2, tied", 8, mx.bfloat16, 2), ("qwen3_moe", None, mx.float32, 2),
    ],
)  # fmt: skip
def test_adapters_are_those_of_a_run_in_memory(
    tmp_path: Path, uneven_rows: FakeRows, name: str, bits: int | None, dtype: mx.Dtype, workers: int
) -> None:
    inside, outside = both(folder_of(tmp_path / "model", CONFIGS[name], bits, dtype), uneven_rows, workers=workers)
    assert inside == outside
    assert inside[0][-1] < inside[0][0]


@pytest.mark.parametrize(("name", "precision"), [("mixtral", 0), ("gemma2", 0), ("qwen3_5", 0), ("gemma3_text", 1e-5)])
def test_blocks_that_are_not_taken_apart_are_gone_through_as_they_are(
    tmp_path: Path, uneven_rows: FakeRows, name: str, precision: float
) -> None:
    """Experts, norms around attention, layers with a state, windows."""
    folder = folder_of(tmp_path / "model", architectures.config_of(name))
    inside, outside = both(folder, uneven_rows)
    assert inside[1].keys() == outside[1].keys()
    for losses in zip([*inside[0], *inside[2:]], [*outside[0], *outside[2:]], strict=True):
        np.testing.assert_allclose(*losses, rtol=precision)
    for key, theirs in inside[1].items():
        arrays = [np.frombuffer(each, np.float32) for each in (outside[1][key], theirs)]
        np.testing.assert_allclose(*arrays, atol=precision)
    assert inside[0][-1] < inside[0][0]


def test_a_model_whose_blocks_give_more_than_an_array_is_refused(tmp_path: Path, uneven_rows: FakeRows) -> None:
    folder = folder_of(tmp_path / "model", architectures.config_of("gemma4_text"))
    with pytest.raises(MlxmathError, match="--offload on: this model cannot be trained .* need more than the last one"):
        Training(folder, uneven_rows, offload=True)


def test_only_the_blocks_that_train_are_gone_back_through(tmp_path: Path, uneven_rows: FakeRows) -> None:
    folder = folder_of(tmp_path / "model", LLAMA)
    inside, outside = both(folder, uneven_rows, num_layers=2)
    assert inside == outside
    training = Training(folder, uneven_rows, offload=True, num_layers=2)
    assert training.workers._gradients[0].order(backward=True) == [0, 1, 2, 3, HEAD, 3, 2]
    training.close()


def test_it_needs_no_kernels_of_a_cpu(tmp_path: Path, uneven_rows: FakeRows) -> None:
    training = Training(folder_of(tmp_path / "model", LLAMA), uneven_rows, offload=True, workers=1)
    assert training.offloaded
    losses = []
    for kernels in (CpuKernels(1), Kernels()):
        workers = Workers(training.model, lambda m, k=kernels: OffloadedGradients(m, sft_loss, k, training.offloaded))
        mx.random.seed(4)
        sums = accumulate(workers, training.sampler.step(np.arange(8), 0, 0))
        assert sums is not None
        losses.append(sums.loss_sum)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    training.close()


def test_a_step_reads_each_block_twice_at_most_and_holds_two_units(tmp_path: Path, uneven_rows: FakeRows) -> None:
    training = Training(folder_of(tmp_path / "model", LLAMA), uneven_rows, offload=True)
    store: Any = training.offloaded
    counts: Counter[int] = Counter()
    read, held = store._read, []

    def counted(unit: int, spare: Any) -> list[mx.array]:
        counts[unit] += 1
        return read(unit, spare)

    store._read = counted
    per_step = []

    def each() -> None:
        per_step.append(dict(counts))
        held.append(set(store._held))
        counts.clear()

    training.steps(3, each)
    assert len(training.sampler.step(np.arange(8), 0, 0).micro_batches) > 2
    # from the second step on block 0 is there from the one before, and the last one waits while the head is at hand
    assert per_step[1:] == [{1: 2, 2: 2, 3: 1, HEAD: 1, 0: 1}] * 2
    assert held[-1] == {0}
    blocks = [array for name, array in tree_flatten(training.model.parameters()) if ".layers.1." in name]
    assert sum(array.size for array in blocks if array.ndim == 2 and array.shape[0] > 4 < array.shape[1]) > 10_000
    training.close()


def test_what_waits_for_a_block_holds_its_own_borders_alone(tmp_path: Path) -> None:
    length, inside = 64, 2048
    rows = FakeRows([np.arange(1, length + 1) % 64] * 40, [np.ones(length, np.uint8)] * 40)
    folder = folder_of(tmp_path / "model", LLAMA | {"intermediate_size": inside})
    training = Training(folder, rows, offload=True, workers=1)
    peaks = []
    for num_rows in (8, 8, 40):  # the first one warms up
        step = training.sampler.step(np.arange(num_rows), 0, 0)
        assert len(step.micro_batches) == num_rows // 2
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        assert accumulate(training.workers, step) is not None
        peaks.append(mx.get_peak_memory() - before)
    training.close()
    of_one_array_in_an_mlp = 2 * length * inside * 4
    assert (peaks[2] - peaks[1]) / 16 < 0.5 * of_one_array_in_an_mlp


@pytest.mark.parametrize("after", [0, 3, 6])
def test_a_step_that_is_stopped_between_blocks_can_be_taken_again(
    tmp_path: Path, uneven_rows: FakeRows, after: int
) -> None:
    training = Training(folder_of(tmp_path / "model", LLAMA), uneven_rows, offload=True)
    step = training.sampler.step(np.arange(8), 0, 0)
    asked = iter(range(100))
    assert accumulate(training.workers, step, lambda: next(asked) == after) is None
    assert next(asked) == after + 1
    found = []
    for _ in range(2):
        mx.random.seed(4)
        sums = accumulate(training.workers, step)
        assert sums is not None
        found.append((sums.loss_sum, [np.array(a).tobytes() for _, a in tree_flatten(sums.grad_sum)]))
    assert found[0] == found[1]
    training.close()


def test_a_worker_that_fails_ends_the_others_too(tmp_path: Path, uneven_rows: FakeRows) -> None:
    training = Training(folder_of(tmp_path / "model", LLAMA), uneven_rows, offload=True)
    gradients: Any = training.workers._gradients[1]

    def passes(batch: Any) -> Any:
        yield 0
        raise ValueError("planted")

    gradients.passes = passes
    with pytest.raises(ValueError, match="planted"):
        accumulate(training.workers, training.sampler.step(np.arange(8), 0, 0))
    training.close()


TRAIN = (
    "train", "--debug", "--model", "deep", "--mlx-path", "deep_mlx", "--max-steps", "2", "--max-seq-len", "64",
    "--grad-accumulation-steps", "2", "--max-batch-tokens", "64", "--workers", "1",
)  # fmt: skip


@pytest.mark.slow
def test_a_model_four_times_the_memory_trains_within_it(prepared: Path) -> None:
    limit = deep(prepared, 80) / 4
    limited = [*TRAIN, "--memory-limit-gb", str(limit / 1e9)]
    refused = run(prepared, *limited, "--offload", "off")
    assert refused.returncode == 2 and "--quantize 4" in refused.stderr
    succeed(prepared, *limited, "--offload", "on")
    record = json.loads((prepared / "adapters" / "run.json").read_text())
    assert record["peak_bytes"] <= limit and record["planned_bytes"] <= limit
    found = adapters(prepared)
    succeed(prepared, *TRAIN, "--overwrite", "--grad-checkpoint", "1")
    assert adapters(prepared) == found


@pytest.mark.parametrize(
    ("command", "options", "said"),
    [
        ("dpo", (), "mlxmath train"), ("grpo", (), "mlxmath train"), ("reward-model", (), "mlxmath train"),
        ("train", ("--full",), "--full"), ("train", ("--lora-variant", "dora"), "--lora-variant lora"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(tmp_path: Path, command: str, options: tuple[str, ...], said: str) -> None:
    refused = run(tmp_path, command, "--model", "demo", "--dataset", "rows.jsonl", "--offload", "on", *options)
    error = refused.stderr.splitlines()[-1]
    assert refused.returncode == 2 and "--offload (option)" in error and said in error


@pytest.mark.parametrize(
    ("memory_bytes", "objective", "chosen"),
    [(1e9, "train", "auto"), (95e6, "train", "on"), (95e6, "dpo", "auto"), (1e6, "train", "auto")],
)
def test_it_is_chosen_where_nothing_else_fits(memory_bytes: float, objective: Any, chosen: str) -> None:
    model_config = LLAMA | {
        "num_hidden_layers": 64, "hidden_size": 256, "intermediate_size": 1024,
        "quantization": {"group_size": 64, "bits": 8},
    }  # fmt: skip
    config = RunConfig(training={"max_batch_tokens": 256}, runtime={"workers": 1}, data={"max_seq_len": 128})
    device = DeviceInfo("cpu", "D", int(memory_bytes), "float32", "")
    found = settled(config, model_config, device, 128, objective)
    assert found.runtime.offload == chosen
    assert (found.training.grad_checkpoint == 1) == (chosen == "on")
    if chosen == "on":
        off = found.model_copy(update={"runtime": config.runtime.model_copy(update={"offload": "off"})})
        plans = [planned(each, model_config, device, 128)[0] for each in (found, off)]
        assert plans[0].weights < 0.1 * plans[1].weights and plans[0].activations > plans[1].activations


def test_it_is_neither_chosen_nor_advised_for_a_model_whose_blocks_are_not_taken_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    larger = {"num_hidden_layers": 32, "hidden_size": 512, "intermediate_size": 4096, "head_dim": 64}
    model_config = architectures.config_of("gemma2") | larger | {"quantization": {"group_size": 64, "bits": 8}}
    one_row = {"batch_size": 1, "grad_accumulation_steps": 1, "max_batch_tokens": 16}
    config = RunConfig(training=one_row, runtime={"workers": 1}, data={"max_seq_len": 16})
    device = DeviceInfo("cpu", "D", 1 << 40, "float32", "")
    needed = planned(offloading(config), model_config, device, 16)[0].total
    device = DeviceInfo("cpu", "D", int(1.01 * needed), "float32", "")

    def outcome() -> tuple[str, bool]:
        changes = remedies(config, model_config, device, 16)
        return settled(config, model_config, device, 16, "train").runtime.offload, OFFLOAD in str(changes)

    assert outcome() == ("auto", False)
    for home in ("placing", "plan"):
        monkeypatch.setattr(f"mlxmath.training.{home}.goes_by_block", lambda *_: True)
    assert outcome() == ("on", True), "as it would fit"
