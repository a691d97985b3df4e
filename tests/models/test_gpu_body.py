"""The GPU kernel's text, compiled for the CPU with a thread for each of its lanes: what it computes, without a GPU."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlxmath.models.kernels.gpu import BODY
from mlxmath.models.kernels.portable import PortableKernels

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
def test_losses_and_gradients(library: ctypes.CDLL, vocabulary: int, soft_cap: float | None) -> None:
    rng = np.random.default_rng(0)
    logits = (rng.normal(size=(4, vocabulary)) * 20).astype(np.float32)
    logits[1, 0] = -np.inf  # a token that is ruled out
    logits[2] += 1000
    targets = np.array([0, vocabulary - 1, 1, 2], np.int32)
    weights = np.array([1.0, 0.5, 2.0, 0.0], np.float32)
    expected = PortableKernels().softmax_gradient(mx.array(logits), mx.array(targets), mx.array(weights), soft_cap)
    losses, gradient = np.empty(4, np.float32), np.empty_like(logits)
    arrays = [
        logits, targets, weights, np.array([soft_cap or 0.0], np.float32), np.array([vocabulary], np.int32), losses,
        gradient,
    ]  # fmt: skip
    library.run(4, *(ctypes.c_void_p(array.ctypes.data) for array in arrays))
    np.testing.assert_allclose(losses, np.array(expected[0]), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(gradient, np.array(expected[1]), rtol=1e-3, atol=1e-5)
