"""The whole training step against torch and peft: loss, LoRA gradients, and 20 AdamW steps over uneven rows."""

from itertools import islice
from pathlib import Path
from typing import Any

import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlxmath.config.training import TrainingConfig
from mlxmath.data.batch import Shape
from mlxmath.data.batching import BatchSampler, StepBatch
from mlxmath.models.kernels.cpu import CpuKernels
from mlxmath.models.kernels.portable import Kernels
from mlxmath.models.lora.inject import adapter_arrays
from mlxmath.training.accumulate import Workers, accumulate
from mlxmath.training.deadline import Deadline, StopRequest
from mlxmath.training.gradients import choose_gradients
from mlxmath.training.sft import sft_loss
from tests.conftest import FakeRows
from tests.loop import fit
from tests.parity.both_models import both_models, our_name, torch

LR, DECAY, CLIP = 5e-3, 0.05, 0.5


def torch_loss_sum(model: Any, rows: FakeRows, ids: tuple[int, ...]) -> Any:
    """Cross-entropy summed over target tokens, a row at a time: no padding at all."""
    total = 0.0
    for index in ids:
        tokens, mask = (torch.tensor(np.asarray(a).astype(np.int64)) for a in rows.row(index))
        logits = model(tokens[None, :-1]).logits[0]
        losses = torch.nn.functional.cross_entropy(logits, tokens[1:], reduction="none")
        total = total + (losses * mask[1:]).sum()
    return total


def num_targets(rows: FakeRows, ids: tuple[int, ...]) -> int:
    return sum(int(rows.row(i)[1][1:].sum()) for i in ids)


def windows(rows: FakeRows, epochs: int) -> list[StepBatch]:
    config = TrainingConfig(batch_size=2, grad_accumulation_steps=4, num_epochs=epochs)
    sampler = BatchSampler(rows, config, 100, Shape(16))
    return list(islice(sampler.steps(), config.num_epochs * sampler.steps_per_epoch))


@pytest.fixture(params=[CpuKernels, Kernels], ids=lambda form: form.__name__)
def kernels(request: pytest.FixtureRequest) -> Any:
    return request.param()


def workers_of(model: Any, kernels: Any) -> Workers:
    return Workers(model, lambda m: choose_gradients(m, sft_loss, kernels, compiled=False))


@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), ("q_proj", "k_proj", "o_proj", "gate_proj", "down_proj")])
def test_loss_and_gradients(tmp_path: Path, uneven_rows: FakeRows, kernels: Any, targets: tuple[str, ...]) -> None:
    ours, theirs = both_models(tmp_path, targets)
    window = windows(uneven_rows, 1)[0]
    sums = accumulate(workers_of(ours, kernels), window)
    assert sums is not None
    expected = torch_loss_sum(theirs, uneven_rows, window.row_ids)
    expected.backward()
    assert sums.num_targets == num_targets(uneven_rows, window.row_ids)
    assert sums.loss_sum / sums.num_targets == pytest.approx(expected.item() / sums.num_targets, rel=1e-5)
    gradients = dict(tree_flatten(sums.grad_sum))
    compared = 0
    for name, parameter in theirs.named_parameters():
        if parameter.grad is not None:
            reference = parameter.grad.numpy().T
            error = np.abs(np.array(gradients[our_name(name)]) - reference).max() / np.abs(reference).max()
            assert error < 1e-4, name
            compared += 1
    assert compared == len(gradients) == 2 * 2 * len(targets)


def test_twenty_steps(tmp_path: Path, uneven_rows: FakeRows, kernels: Any) -> None:
    ours, theirs = both_models(tmp_path, ("q_proj", "v_proj"))
    schedule = windows(uneven_rows, 4)
    assert len(schedule) == 20 and sorted({len(w.row_ids) for w in schedule}) == [5, 8]  # tails are trained
    losses: list[float] = []
    optimizer = optim.AdamW(LR, weight_decay=DECAY, bias_correction=True)
    fit(workers_of(ours, kernels), schedule, optimizer, lambda _: LR, max_grad_norm=CLIP, deadline=Deadline(1e9),
        stop=StopRequest(), hooks=[lambda report: losses.append(report.loss)])  # fmt: skip

    parameters = [p for p in theirs.parameters() if p.requires_grad]
    reference_optimizer = torch.optim.AdamW(parameters, lr=LR, weight_decay=DECAY)
    for loss, window in zip(losses, schedule, strict=True):
        reference_optimizer.zero_grad()
        reference = torch_loss_sum(theirs, uneven_rows, window.row_ids) / num_targets(uneven_rows, window.row_ids)
        reference.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        assert norm > 0
        reference_optimizer.step()
        assert loss == pytest.approx(reference.item(), rel=1e-4)
    arrays = adapter_arrays(ours)
    for name, parameter in theirs.named_parameters():
        if parameter.requires_grad:
            expected = parameter.detach().numpy().T
            error = np.linalg.norm(np.array(arrays[our_name(name)]) - expected) / np.linalg.norm(expected)
            assert error < 1e-3, (name, error)
