"""Optimizers against slow references in NumPy: one element or one block at a time, in float64."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_unflatten

from mlxmath.config.schema import LoraConfig
from mlxmath.config.training import TrainingConfig
from mlxmath.models.lora.inject import adapter_arrays, inject, open_blocks
from mlxmath.training.optimizers import dequantize_blocks, dynamic_map, make_optimizer, quantize_blocks
from tests.conftest import make_tiny_llama

NAMES = ("adamw", "adamw8bit", "adafactor", "lion", "muon")


class Arrays(nn.Module):
    """A model that is nothing but its arrays."""

    def __init__(self, **arrays: np.ndarray) -> None:
        super().__init__()
        for name, array in arrays.items():
            self[name] = mx.array(array)


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def config(name: str = "adamw", **settings: Any) -> TrainingConfig:
    return TrainingConfig(**{"optimizer": name, "learning_rate": 1e-2} | settings)


def step(optimizer: optim.Optimizer, model: nn.Module, rate: float = 1e-2, **gradients: np.ndarray) -> None:
    """A step as the loop takes it."""
    optimizer.learning_rate = mx.array(rate, mx.float32)
    optimizer.update(model, {name: mx.array(g) for name, g in gradients.items()})
    mx.eval(model.parameters(), optimizer.state)


def published_map(signed: bool) -> list[float]:
    """bitsandbytes' construction: for each exponent the midpoints of equal parts of [0.1, 1]; then 0 and 1."""
    values = []
    for exponent in range(7):
        fraction_items = 2**exponent + 1 if signed else 2 ** (exponent + 1) + 1
        boundaries = [0.1 + 0.9 * k / (fraction_items - 1) for k in range(fraction_items)]
        for low, high in pairwise(boundaries):
            value = 10.0 ** (-6 + exponent) * (low + high) / 2
            values += [value, -value] if signed else [value]
    return sorted([*values, 0.0, 1.0])


def reference_quantize(values: np.ndarray, signed: bool) -> np.ndarray:
    """Each block of 256 over its largest magnitude, each value replaced by the nearest of the map, by trying all."""
    table = np.array(published_map(signed))
    flat = values.astype(np.float64).ravel()
    result = np.zeros_like(flat)
    for start in range(0, flat.size, 256):
        block = flat[start : start + 256]
        absmax = np.abs(block).max()
        if absmax > 0:
            for i, value in enumerate(block):
                result[start + i] = absmax * table[np.abs(table - value / absmax).argmin()]
    return result.reshape(values.shape)


@pytest.mark.parametrize("signed", [True, False])
def test_the_map_is_bitsandbytes(signed: bool) -> None:
    found = dynamic_map(signed=signed)
    assert found.shape == (256,) and found.dtype == np.float32
    np.testing.assert_allclose(found, published_map(signed), rtol=1e-6)
    assert (np.diff(found) > 0).all() and found[-1] == 1 and 0 in found
    assert found[0] == (pytest.approx(-0.99296875) if signed else 0)
    assert found[found > 0][0] == pytest.approx(5.5e-7 if signed else 3.25e-7)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("size", [256, 700, 5000])
def test_quantization_takes_the_nearest_value(signed: bool, size: int) -> None:
    rng = np.random.default_rng(size)
    values = (rng.standard_normal(size) * 10 ** rng.uniform(-9, 3, size)).astype(np.float32)  # all decades
    values[:256:7] = 0
    values = values if signed else np.abs(values)
    codes, absmax = quantize_blocks(mx.array(values), signed=signed)
    assert codes.dtype == mx.uint8 and codes.shape == (-(-size // 256), 256) and absmax.shape == (-(-size // 256), 1)
    found = np.array(dequantize_blocks(codes, absmax, (size,), signed=signed))
    np.testing.assert_allclose(found, reference_quantize(values, signed), rtol=1e-5, atol=0)


def test_a_block_of_zeros_stays_zero() -> None:
    codes, absmax = quantize_blocks(mx.zeros((3, 100)), signed=True)
    assert not np.array(dequantize_blocks(codes, absmax, (3, 100), signed=True)).any()
    assert not np.array(absmax).any()


def test_adamw8bit_against_a_slow_reference() -> None:
    weight = start = normal(70, 61)  # 4,270 values: 16 blocks and a rest
    model = Arrays(w=start)
    optimizer = make_optimizer(config("adamw8bit", weight_decay=0.1), model)
    m, v = np.zeros(start.shape), np.zeros(start.shape)
    for t in range(1, 4):
        gradient, rate = normal(70, 61, seed=t, scale=0.1), 1e-2 / t
        step(optimizer, model, rate, w=gradient)
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient.astype(np.float64) ** 2
        weight = weight * (1 - rate * 0.1)
        weight = weight - rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        m, v = reference_quantize(m, signed=True), reference_quantize(v, signed=False)
        moved = np.array(model.w, np.float64) - weight
        assert (np.abs(moved) < 1e-5).mean() > 0.999  # all but values on the edge between two codes
        assert np.abs(moved).max() < 1e-2
    assert {k: a.dtype for k, a in optimizer.state["w"].items()} == {
        "m_codes": mx.uint8, "m_absmax": mx.float32, "v_codes": mx.uint8, "v_absmax": mx.float32,
    }  # fmt: skip


def test_small_arrays_keep_float32_state_and_large_ones_a_quarter() -> None:
    arrays = {"small": normal(63, 65), "large": normal(256, 256)}
    models = {name: Arrays(**arrays) for name in ("adamw", "adamw8bit")}
    optimizers = {name: make_optimizer(config(name), model) for name, model in models.items()}
    for name, model in models.items():
        for t in range(3):
            step(optimizers[name], model, small=normal(63, 65, seed=t), large=normal(256, 256, seed=9 + t))
    assert mx.array_equal(models["adamw"].small, models["adamw8bit"].small)
    assert not mx.array_equal(models["adamw"].large, models["adamw8bit"].large)
    sizes = {
        name: sum(a.nbytes for _, a in tree_flatten(optimizer.state["large"])) for name, optimizer in optimizers.items()
    }
    assert sizes == {"adamw": 8 * 65536, "adamw8bit": 2 * 65536 + 2 * 4 * 256}


def test_a_step_unpacks_the_moments_of_one_array_at_a_time() -> None:
    model = Arrays(**{f"w{i}": normal(256, 256, seed=i) for i in range(16)})
    optimizer = make_optimizer(config("adamw8bit"), model)
    gradients = {f"w{i}": mx.array(normal(256, 256, seed=i)) for i in range(16)}
    mx.eval(model.parameters(), optimizer.state, gradients)
    for _ in range(2):
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        optimizer.update(model, gradients)
        mx.eval(model.parameters(), optimizer.state)
        new = 16 * 65536 * 4 + 16 * (2 * 65536 + 2 * 4 * 256)  # the next parameters and their state
        assert mx.get_peak_memory() - before < new + 12 * 65536 * 4


def test_lion_by_hand() -> None:
    weight, m = normal(5, 4), np.zeros((5, 4))
    model = Arrays(w=weight)
    optimizer = make_optimizer(config("lion", weight_decay=0.1), model)
    for t in range(3):
        gradient = normal(5, 4, seed=t + 1)
        step(optimizer, model, w=gradient)
        weight = weight * (1 - 1e-2 * 0.1) - 1e-2 * np.sign(0.9 * m + 0.1 * gradient)
        m = 0.99 * m + 0.01 * gradient
    np.testing.assert_allclose(np.array(model.w), weight, rtol=1e-5, atol=1e-6)


def test_adafactor_by_hand() -> None:
    """Factored second moment for matrices, its decay 1 − t^−0.8, updates clipped to RMS 1."""
    weights = {"w": normal(5, 4).astype(np.float64), "b": normal(6, seed=5).astype(np.float64)}
    model = Arrays(**{k: v.astype(np.float32) for k, v in weights.items()})
    optimizer = make_optimizer(config("adafactor", weight_decay=0.1), model)
    row, column, full = np.zeros(5), np.zeros(4), np.zeros(6)
    for t in range(1, 4):
        g = {"w": normal(5, 4, seed=t), "b": normal(6, seed=t + 9)}
        step(optimizer, model, **g)
        beta = 1 - t**-0.8
        row = beta * row + (1 - beta) * (g["w"] ** 2).mean(axis=1)
        column = beta * column + (1 - beta) * (g["w"] ** 2).mean(axis=0)
        full = beta * full + (1 - beta) * g["b"] ** 2
        updates = {"w": g["w"] / np.sqrt(np.outer(row, column) / row.mean()), "b": g["b"] / np.sqrt(full)}
        for name, update in updates.items():
            update = update / max(1, np.sqrt((update**2).mean()))
            weights[name] = weights[name] * (1 - 1e-2 * 0.1 * (name == "w")) - 1e-2 * update
    for name, weight in weights.items():
        np.testing.assert_allclose(np.array(model[name]), weight, rtol=1e-4, atol=1e-5)


def test_muon_by_hand() -> None:
    """Nesterov momentum, five quintic Newton-Schulz steps, √(rows / columns) for tall matrices; vectors: AdamW."""
    weight, v = normal(8, 3).astype(np.float64), np.zeros((8, 3))
    model = Arrays(w=weight.astype(np.float32), b=np.ones(4, np.float32))
    optimizer = make_optimizer(config("muon", weight_decay=0.1), model)
    for t in range(3):
        gradient = normal(8, 3, seed=t + 1)
        step(optimizer, model, w=gradient, b=np.array([1, -2, 3, -4], np.float32))
        v = 0.95 * v + 0.05 * gradient
        x = 0.05 * gradient + 0.95 * v
        u, s, vh = np.linalg.svd(x / np.linalg.norm(x), full_matrices=False)
        for _ in range(5):
            s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
        weight = weight * (1 - 1e-2 * 0.1) - 1e-2 * np.sqrt(8 / 3) * (u * s) @ vh
    np.testing.assert_allclose(np.array(model.w), weight, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(np.array(model.b), 1 - 3e-2 * np.array([1, -1, 1, -1]), rtol=1e-5)  # Adam, undecayed
    assert optimizer.learning_rate.item() == pytest.approx(1e-2)


@pytest.mark.parametrize("name", NAMES)
def test_only_matrices_decay(name: str) -> None:
    model = Arrays(w=np.ones((3, 2), np.float32), b=np.ones(2, np.float32))
    optimizer = make_optimizer(config(name, weight_decay=0.5), model)
    step(optimizer, model, 0.1, w=np.zeros((3, 2), np.float32), b=np.zeros(2, np.float32))
    np.testing.assert_allclose(np.array(model.w), 0.95, rtol=1e-6)
    assert np.array(model.b).tolist() == [1, 1]


@pytest.mark.parametrize("name", NAMES)
def test_a_16_bit_parameter_has_a_float32_master(name: str) -> None:
    """Fifty steps of which each alone is lost to bfloat16's rounding."""
    start = np.full((64, 64), 4.0, np.float32)
    models = [Arrays(w=start), Arrays(w=start)]
    models[1].set_dtype(mx.bfloat16)
    for model in models:
        optimizer = make_optimizer(config(name), model)
        for _ in range(50):
            step(optimizer, model, 1e-3, w=np.eye(64, dtype=np.float32))
    assert models[1].w.dtype == mx.bfloat16
    assert mx.array_equal(models[0].w.astype(mx.bfloat16), models[1].w)
    assert models[1].w[0, 0].item() < 4.0
    assert all(a.dtype != mx.bfloat16 for _, a in tree_flatten(optimizer.state))


@pytest.mark.parametrize("name", NAMES)
def test_a_state_saved_with_32_bit_parameters_goes_on_with_16(name: str) -> None:
    """As when a run goes on where another type is computed in."""
    before, after = (Arrays(w=np.full((64, 64), 4.0, np.float32)) for _ in range(2))
    first, second = (make_optimizer(config(name), model) for model in (before, after))
    step(first, before, 1e-3, w=np.eye(64, dtype=np.float32))
    after.w = before.w.astype(mx.bfloat16)
    second.state = tree_unflatten([(key, mx.array(value)) for key, value in tree_flatten(first.state)])
    for optimizer, model in ((first, before), (second, after)):
        for _ in range(49):
            step(optimizer, model, 1e-3, w=np.eye(64, dtype=np.float32))
    assert after.w.dtype == mx.bfloat16 and before.w[0, 0].item() < 3.99
    np.testing.assert_allclose(np.array(after.w.astype(mx.float32)), np.array(before.w), atol=0.02)


@pytest.mark.parametrize("name", NAMES)
def test_lora_plus_moves_b_faster(name: str) -> None:
    arrays = {"lora_a": normal(8, 4), "lora_b": normal(4, 8), "m": normal(8)}
    moved = {}
    for ratio in (1.0, 16.0):
        model = Arrays(**arrays)
        optimizer = make_optimizer(config(name), model, ratio)
        step(optimizer, model, 1e-4, **{k: normal(*v.shape, seed=3) for k, v in arrays.items()})
        assert optimizer.learning_rate.item() == pytest.approx(1e-4)
        moved[ratio] = {k: np.array(model[k], np.float64) - v for k, v in arrays.items()}
    np.testing.assert_allclose(moved[16.0]["lora_b"], 16 * moved[1.0]["lora_b"], rtol=1e-2, atol=1e-6)
    assert np.array_equal(moved[16.0]["lora_a"], moved[1.0]["lora_a"])
    assert np.array_equal(moved[16.0]["m"], moved[1.0]["m"])


@pytest.mark.parametrize("kind", ["lora", "dora", "full", "last"])
@pytest.mark.parametrize("name", NAMES)
def test_saved_and_restored_state_goes_on_bit_for_bit(tmp_path: Path, name: str, kind: str) -> None:
    def make() -> tuple[nn.Module, optim.Optimizer]:
        model = make_tiny_llama(hidden_size=64, intermediate_size=128)
        if kind == "full":
            model.set_dtype(mx.bfloat16)
            open_blocks(model, -1)
        else:
            inject(
                model, LoraConfig(variant="dora" if kind == "dora" else "lora", num_layers=1 if kind == "last" else -1)
            )
        return model, make_optimizer(config(name, weight_decay=0.01), model, plus_ratio=4.0)

    def train(model: nn.Module, optimizer: optim.Optimizer, first: int, last: int) -> None:
        for t in range(first, last):
            gradients = [
                (k, mx.array(normal(*a.shape, seed=t), a.dtype)) for k, a in tree_flatten(model.trainable_parameters())
            ]
            optimizer.learning_rate = mx.array(1e-3 * (t + 1), mx.float32)
            optimizer.update(model, tree_unflatten(gradients))
            mx.eval(model.trainable_parameters(), optimizer.state)

    straight, optimizer = make()
    begin = {k: np.array(a.astype(mx.float32)) for k, a in adapter_arrays(straight).items()}
    train(straight, optimizer, 0, 2)
    mx.save_safetensors(str(tmp_path / "optimizer.safetensors"), dict(tree_flatten(optimizer.state)))
    mx.save_safetensors(str(tmp_path / "model.safetensors"), adapter_arrays(straight))
    train(straight, optimizer, 2, 4)

    again, optimizer = make()
    again.load_weights(str(tmp_path / "model.safetensors"), strict=False)
    optimizer.state = tree_unflatten(list(mx.load(str(tmp_path / "optimizer.safetensors")).items()))
    train(again, optimizer, 2, 4)
    for path, array in adapter_arrays(straight).items():
        assert mx.array_equal(array, adapter_arrays(again)[path]), path
        assert not np.array_equal(begin[path], np.array(array.astype(mx.float32))), path


def test_without_groups_it_is_mlxs_adamw_exactly() -> None:
    ours, theirs = Arrays(w=normal(40, 30)), Arrays(w=normal(40, 30))
    optimizer = make_optimizer(config(weight_decay=0.1), ours)
    reference = optim.AdamW(1e-2, weight_decay=0.1, bias_correction=True)
    for t in range(4):
        step(optimizer, ours, w=normal(40, 30, seed=t))
        step(reference, theirs, w=normal(40, 30, seed=t))
    assert mx.array_equal(ours.w, theirs.w)


def test_muon_takes_a_stack_of_experts_matrix_by_matrix() -> None:
    """As if each expert's matrix were a parameter of its own; a depthwise convolution's kernels stay one matrix."""

    def stepped(**arrays: np.ndarray) -> dict[str, np.ndarray]:
        model = Arrays(**arrays)
        slopes = {name: normal(*array.shape, seed=7) for name, array in arrays.items()}
        if "e0" in arrays:
            slopes = {f"e{i}": matrix for i, matrix in enumerate(normal(3, 4, 16, seed=7))}
        step(make_optimizer(config("muon"), model), model, **slopes)
        return {name: np.array(model[name]) for name in arrays}

    stack = normal(3, 4, 16)
    apart = stepped(**{f"e{i}": matrix for i, matrix in enumerate(stack)})
    np.testing.assert_allclose(stepped(w=stack)["w"], [apart[f"e{i}"] for i in range(3)], rtol=1e-5, atol=1e-6)
    assert np.abs(stepped(w=stack.reshape(3, 64))["w"].reshape(stack.shape) - stepped(w=stack)["w"]).max() > 1e-3
    kernels = normal(8, 4, 1)
    one = stepped(w=kernels.reshape(8, 4))["w"].reshape(8, 4, 1) - kernels
    found = stepped(w=kernels)["w"] - kernels
    np.testing.assert_allclose(found, one * np.sqrt(4 / 1) / np.sqrt(8 / 4), rtol=1e-3, atol=1e-6)
