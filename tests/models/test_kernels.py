"""Every form of every kernel against torch-free references: autodiff of plain formulas in float32, NumPy in float64."""

import ctypes
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlxmath.models.kernels.cpu import CpuKernels, product
from mlxmath.models.kernels.gpu import BODY, FastKernels, GpuKernels
from mlxmath.models.kernels.portable import Kernels, log_sum_exp
from mlxmath.models.layouts import SharedPrompts
from mlxmath.models.masks import Mask
from mlxmath.runtime.device import BACKENDS

FORMS = ["portable", "cpu", "fast", "metal", "cuda"]


@pytest.fixture(params=FORMS)
def kernels(request: pytest.FixtureRequest) -> Iterator[Any]:
    if form := {"portable": Kernels, "cpu": CpuKernels, "fast": FastKernels}.get(request.param):
        yield form()
        return
    if reason := BACKENDS[request.param]().unavailable():
        pytest.skip(reason)
    before = mx.default_device()
    mx.set_default_device(mx.gpu)
    yield GpuKernels(request.param)
    mx.set_default_device(before)


def close(found: mx.array, expected: mx.array, tolerance: float = 2e-6) -> None:
    found_, expected_ = np.array(found, np.float64), np.array(expected, np.float64)
    assert found_.shape == expected_.shape
    assert np.abs(found_ - expected_).max() <= tolerance * max(1.0, np.abs(expected_).max())


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 5), (3, 257, 301)])
def test_swiglu(kernels: Any, shape: tuple[int, ...]) -> None:
    mx.random.seed(0)
    gate, up, cotangent = (mx.random.normal(shape) * 4 for _ in range(3))
    gate[0, 0, 0] = -120.0  # exp overflows there; the result must not
    close(kernels.swiglu(gate, up), gate * mx.sigmoid(gate) * up)
    found = kernels.swiglu_backward(gate, up, cotangent)
    sigmoid = mx.sigmoid(gate)
    close(found[0], cotangent * up * sigmoid * (1 + gate * (1 - sigmoid)))
    close(found[1], cotangent * gate * sigmoid)


def plain_attention(q: mx.array, k: mx.array, v: mx.array, scale: float, mask: Mask | None) -> mx.array:
    groups, length = q.shape[1] // k.shape[1], q.shape[2]
    k, v = (mx.repeat(a, groups, axis=1) for a in (k, v))
    allowed = mx.tril(mx.ones((length, length))) > 0 if mask is None else mask.array
    return mx.softmax(mx.where(allowed, scale * q @ k.swapaxes(-1, -2), -mx.inf), axis=-1) @ v


def packed_mask(rows: int, length: int) -> Mask:
    """Causal within two texts that share a row; another boundary in each row."""
    starts = [(row + 1) * length // (rows + 2) for row in range(rows)]
    return Mask.packed(mx.array([[int(place >= start) for place in range(length)] for start in starts]))


def continued_mask(rows: int, length: int) -> Mask:
    """Of five earlier positions as many as the row's number, and then causal."""
    return SharedPrompts(mx.zeros((rows, 5), mx.int32), mx.arange(rows), mx.arange(rows)).mask(length)


MASKS = {"causal": lambda *_: None, "packed": packed_mask, "continued": continued_mask}


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("value_width", [8, 4])
@pytest.mark.parametrize(("rows", "heads", "kv_heads", "length"), [(1, 1, 1, 1), (2, 4, 4, 7), (3, 6, 2, 33)])
def test_attention(
    kernels: Any, rows: int, heads: int, kv_heads: int, length: int, value_width: int, kind: str
) -> None:
    mx.random.seed(1)
    q = mx.random.normal((rows, length, heads, 8)).swapaxes(1, 2) * 3  # strided, as a model makes them
    mask = MASKS[kind](rows, length)
    keys = length if mask is None else mask.array.shape[-1]
    k, v = (mx.random.normal((rows, keys, kv_heads, width)).swapaxes(1, 2) for width in (8, value_width))
    cotangent = mx.random.normal((*q.shape[:-1], value_width))
    output = kernels.attention(q, k, v, 0.4, mask)
    close(output[0], plain_attention(q, k, v, 0.4, mask), 1e-5)
    found = kernels.attention_backward(q, k, v, 0.4, mask, output, cotangent)
    expected = mx.vjp(lambda *a: plain_attention(*a, 0.4, mask), [q, k, v], [cotangent])[1]
    for one, other in zip(found, expected, strict=True):
        close(one, other, 1e-5)


@pytest.mark.parametrize("soft_cap", [None, 5.0])
@pytest.mark.parametrize(("tokens", "vocabulary"), [(1, 2), (5, 11), (40, 70_000)])
def test_softmax_gradient(kernels: Any, tokens: int, vocabulary: int, soft_cap: float | None) -> None:
    rng = np.random.default_rng(3)
    logits = (rng.normal(size=(tokens, vocabulary)) * 6).astype(np.float32)
    targets = rng.integers(0, vocabulary, tokens)
    weights = rng.uniform(0, 2, tokens).astype(np.float32)
    weights[0] = 0.0
    capped = logits.astype(np.float64)
    if soft_cap:
        capped = soft_cap * np.tanh(capped / soft_cap)
    exps = np.exp(capped - capped.max(1, keepdims=True))
    expected = exps / exps.sum(1, keepdims=True)
    losses = -np.log(expected[np.arange(tokens), targets]) * weights
    expected[np.arange(tokens), targets] -= 1
    expected *= weights[:, None] * (1 - (capped / soft_cap) ** 2 if soft_cap else 1)
    found, gradient = kernels.softmax_gradient(mx.array(logits), mx.array(targets), mx.array(weights), soft_cap)
    np.testing.assert_allclose(np.array(found), losses, rtol=2e-5, atol=1e-5)
    np.testing.assert_allclose(np.array(gradient), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("vocabulary", [3, 512, 1000, 151_936, 262_145])
def test_no_tail_of_a_vocabulary_is_lost(vocabulary: int) -> None:
    logits = (np.random.default_rng(0).normal(size=(4, vocabulary)) * 3).astype(np.float32)
    top = logits.max(1, keepdims=True).astype(np.float64)
    expected = np.log(np.exp(logits - top).sum(1, keepdims=True)) + top
    np.testing.assert_allclose(np.array(log_sum_exp(mx.array(logits), keepdims=True)), expected, rtol=0, atol=4e-6)
    gradient = np.array(mx.grad(lambda x: log_sum_exp(x).sum())(mx.array(logits)))
    np.testing.assert_allclose(gradient, np.exp(logits - expected), rtol=1e-5)
    masked = mx.concatenate([mx.array(logits), mx.full((4, 1024), -mx.inf)], axis=-1)
    np.testing.assert_allclose(np.array(log_sum_exp(masked)), expected[:, 0], rtol=0, atol=4e-6)


def test_products_are_the_same_through_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = mx.random.normal((2, 3, 4)), mx.random.normal((2, 5, 4)).swapaxes(-1, -2)
    expected = a @ b
    for missing in (False, True):
        monkeypatch.setattr("mlxmath.models.kernels.cpu.blas_is_missing", lambda missing=missing: missing)
        close(product(a, b), expected)


def test_attention_through_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlxmath.models.kernels.cpu.blas_is_missing", lambda: True)
    test_attention(CpuKernels(), 3, 6, 2, 33, 8, kind="packed")


SHIM = """
#include <barrier>
#include <cmath>
#include <thread>
#include <vector>
using namespace std;
constexpr int NUM_THREADS = 8;
typedef float T;
#define SHARED static
#define BARRIER meeting.arrive_and_wait()
extern "C" void run(int rows, const T* logits, const int* targets, const float* weights, const float* soft_cap,
                    const int* size, float* losses, T* gradient) {
    for (int row = 0; row < rows; row++) {
        barrier meeting(NUM_THREADS);
        auto lane_of = [&](int lane) { %s };
        vector<thread> threads;
        for (int lane = 0; lane < NUM_THREADS; lane++) threads.emplace_back(lane_of, lane);
        for (auto& t : threads) t.join();
    }
}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ to compile the kernel's text with")
    folder: Path = tmp_path_factory.mktemp("kernel")
    (folder / "kernel.cpp").write_text(SHIM % BODY)
    command = [compiler, "-std=c++20", "-O1", "-shared", "-fPIC", "-pthread", "-o", "kernel.so", "kernel.cpp"]
    subprocess.run(command, cwd=folder, check=True, timeout=120)
    return ctypes.CDLL(str(folder / "kernel.so"))


@pytest.mark.parametrize("soft_cap", [None, 5.0])
@pytest.mark.parametrize("vocabulary", [3, 8, 1001])
def test_the_text_for_gpus(library: ctypes.CDLL, vocabulary: int, soft_cap: float | None) -> None:
    """Compiled for the CPU with a thread for each of its lanes: what it computes, without a GPU."""
    rng = np.random.default_rng(0)
    logits = (rng.normal(size=(4, vocabulary)) * 20).astype(np.float32)
    logits[1, 0] = -np.inf  # a token that is ruled out
    logits[2] += 1000
    targets = np.array([0, vocabulary - 1, 1, 2], np.int32)
    weights = np.array([1.0, 0.5, 2.0, 0.0], np.float32)
    expected = Kernels().softmax_gradient(mx.array(logits), mx.array(targets), mx.array(weights), soft_cap)
    losses, gradient = np.empty(4, np.float32), np.empty_like(logits)
    arrays = [
        logits, targets, weights, np.array([soft_cap or 0.0], np.float32), np.array([vocabulary], np.int32), losses,
        gradient,
    ]  # fmt: skip
    library.run(4, *(ctypes.c_void_p(array.ctypes.data) for array in arrays))
    np.testing.assert_allclose(losses, np.array(expected[0]), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(gradient, np.array(expected[1]), rtol=1e-3, atol=1e-5)
