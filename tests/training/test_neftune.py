"""Noise on the embeddings: how much, in every way to the gradients, never where it is measured, again on a resume."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from safetensors.numpy import load_file

import mlxmath
from mlxmath.config.schema import LoraConfig, RunConfig
from mlxmath.data.batch import Shape, make_batch, make_packed
from mlxmath.errors import OtherRunError
from mlxmath.models.kernels.cpu import CpuKernels
from mlxmath.models.kernels.portable import Kernels
from mlxmath.models.lora.inject import inject
from mlxmath.training.gradients import choose_gradients
from mlxmath.training.neftune import NoisyGradients, noisy
from mlxmath.training.placing import cannot_offload
from mlxmath.training.sft import sft_loss
from tests.conftest import FakeRows, make_tiny_llama

ALPHA = 5.0


@pytest.mark.parametrize("kind", ["plain", "packed"])
def test_the_noise_is_that_of_transformers(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    torch = pytest.importorskip("torch", reason="the parity extra is not installed")
    hooks = pytest.importorskip("transformers.integrations.neftune", reason="the parity extra is not installed")
    embedding: Any = nn.Embedding(64, 32)
    if kind == "packed":
        embedding = nn.QuantizedEmbedding.from_embedding(embedding, 32, 8)
    tokens = mx.random.randint(0, 64, (3, 17))
    vectors = np.array(embedding(tokens))
    with noisy(embedding, ALPHA):
        found = np.array(embedding(tokens))
        assert embedding.as_linear(mx.ones((1, 32))).shape == (1, 64) and len(embedding.parameters())
    np.testing.assert_array_equal(np.array(embedding(tokens)), vectors)
    most = ALPHA / math.sqrt(17 * 32)
    shares = (found - vectors) / most  # of the most that there may be
    assert 0.97 < np.abs(shares).max() <= 1 + 1e-5
    assert abs(shares.mean()) < 0.05 and abs(shares.std() - 1 / math.sqrt(3)) < 0.02
    monkeypatch.setattr(torch.Tensor, "uniform_", lambda _, low, high: torch.tensor(shares) * high)
    module = torch.nn.Embedding(64, 32).train()
    module.neftune_noise_alpha = ALPHA
    theirs = hooks.neftune_post_forward_hook(module, None, torch.tensor(vectors))
    np.testing.assert_allclose(found, theirs.numpy(), atol=1e-6)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("make", [make_batch, make_packed])
def test_all_ways_draw_the_same_and_the_measured_loss_has_none(tied: bool, make: Any) -> None:
    rng = np.random.default_rng(2)
    rows = FakeRows(
        tokens := [rng.integers(1, 64, n) for n in (9, 12, 20)], [np.ones(len(t), np.uint8) for t in tokens]
    )
    batch = make(rows, (0, 1, 2), Shape(8))
    model = make_tiny_llama(tie_word_embeddings=tied)
    inject(model, LoraConfig(rank=4, targets=("q_proj", "down_proj")))
    model.train()
    found: dict[str, Any] = {}
    for name, kernels, compiled, every in (
        ("plain", Kernels(), False, 0), ("compiled", Kernels(), True, 0), ("blocks", CpuKernels(), False, 0),
        ("again", CpuKernels(), False, 1), ("none", CpuKernels(), False, 0),
    ):  # fmt: skip
        inner = choose_gradients(model, sft_loss, kernels, compiled=compiled, checkpoint_every=every)
        way = NoisyGradients(model, inner, 0.0 if name == "none" else ALPHA)
        mx.random.seed(11)
        sums, gradients = way.loss_and_gradients(batch)
        found[name] = np.array(sums), {key: np.array(g) for key, g in tree_flatten(gradients)}
        assert way.loss(batch).item() == pytest.approx(inner.loss(batch).item(), abs=1e-5)
    np.testing.assert_allclose(found["none"][0], way.loss(batch).item(), rtol=1e-5)
    assert abs(found["plain"][0] - found["none"][0]) > 1e-3
    for name in ("compiled", "blocks", "again"):
        np.testing.assert_allclose(found[name][0], found["plain"][0], rtol=1e-5)
        for key, gradient in found["plain"][1].items():
            np.testing.assert_allclose(found[name][1][key], gradient, atol=1e-4)
    assert any(np.abs(found["none"][1][key] - g).max() > 1e-3 for key, g in found["plain"][1].items())


def test_the_measured_loss_is_not_smoothed() -> None:
    rng = np.random.default_rng(2)
    rows = FakeRows([tokens := rng.integers(1, 64, 12)], [np.ones(len(tokens), np.uint8)])
    batch = make_batch(rows, (0,), Shape(8))
    model = make_tiny_llama()
    inject(model, LoraConfig(rank=4))
    smoothed = partial(sft_loss, smoothing=0.2)
    for kernels, compiled in ((Kernels(), False), (Kernels(), True), (CpuKernels(), False)):
        plain = choose_gradients(model, sft_loss, kernels, compiled=compiled)
        way = choose_gradients(model, smoothed, kernels, compiled=compiled, measured=sft_loss)
        assert way.loss(batch).item() == pytest.approx(plain.loss(batch).item(), rel=1e-6)
        assert way.loss_and_gradients(batch)[0].item() != pytest.approx(plain.loss(batch).item(), rel=1e-4)


ROWS = [{"problem": f"What is {a} + {b}?", "answer": f"{a + b}"} for a in (3, 4, 5, 6) for b in (1, 2)]
FEW: dict[str, Any] = {
    "model": "demo", "batch_size": 2, "grad_accumulation_steps": 2, "learning_rate": 1e-2, "max_seq_len": 64,
    "save_every": 2, "validation_split": 2, "workers": 2, "batching": "pad",
}  # fmt: skip


def test_a_resumed_run_draws_the_same_and_other_settings_are_another_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    own = {"neftune_noise_alpha": ALPHA, "label_smoothing": 0.1}

    def adapters(**given: Any) -> dict[str, np.ndarray]:
        return load_file(mlxmath.sft(ROWS, **FEW, **given).folder / "adapters.safetensors")

    whole = adapters(max_steps=4, adapter_path="whole", **own)
    quiet = adapters(max_steps=4, adapter_path="quiet", label_smoothing=0.1)
    plain = adapters(max_steps=4, adapter_path="plain")
    adapters(max_steps=2, adapter_path="parts", **own)
    parts = adapters(max_steps=4, adapter_path="parts", resume=True, **own)
    assert all(np.array_equal(parts[name], whole[name]) for name in whole)
    for other in (quiet, plain):
        assert any(np.abs(other[name] - whole[name]).max() > 1e-4 for name in whole)
    with pytest.raises(OtherRunError, match="neftune_noise_alpha was 5.0 and is 1.0"):
        mlxmath.sft(ROWS, **FEW, max_steps=6, adapter_path="parts", resume=True, **own | {"neftune_noise_alpha": 1.0})


def test_the_embedding_must_be_in_memory() -> None:
    assert cannot_offload(RunConfig(), "train") is None
    assert "--neftune-noise-alpha" in (
        cannot_offload(RunConfig.model_validate({"sft": {"neftune_noise_alpha": 1.0}}), "train") or ""
    )
