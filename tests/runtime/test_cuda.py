"""What a machine without a working CUDA is told, with stand-ins for drivers, wheels and GPUs."""

import os
import sys
from typing import Any

import mlx.core as mx
import pytest

from mlxmath.runtime import nvidia
from mlxmath.runtime.device import CudaBackend

MISSING = "{}: cannot open shared object file: No such file or directory"
INFO = {
    "device_name": "NVIDIA H200", "total_memory": 140_000_000_000, "free_memory": 139_000_000_000,
    "compute_capability_major": 9, "compute_capability_minor": 0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("library", "builds", "release", "words"),
    [
        ("libcuda.so.1", ["mlx-cuda-13"], None, ["no NVIDIA driver", ">= 580", "--gpus all", "mlxmath[cpu]"]),
        ("libcuda.so.1", ["mlx-cuda-12"], "550.54.14", ["driver 550.54.14 is loaded", "libcuda.so.1", ">= 550"]),
        ("libcudnn.so.9", ["mlx-cuda-13"], "580.65.06", ["libcudnn.so.9", "'mlxmath[cuda13]'"]),
        ("libnccl.so.2", ["mlx-cuda-12"], "550.54.14", ["libnccl.so.2", "'mlxmath[cuda12]'"]),
        ("libmlx.so", [], None, ["without the part that computes", "'mlxmath[cuda13]'"]),
    ],
)
def test_a_library_is_missing(library: str, builds: list[str], release: str | None, words: list[str]) -> None:
    text = nvidia.why_not_loaded(MISSING.format(library), builds, release)
    assert all(word in text for word in words), text


def test_mlx_without_cuda() -> None:
    old, new = (nvidia.why_no_cuda_build(["mlx-cpu"], release) for release in ("550.54.14", "580.65.06"))
    assert "CPU-only build" in old and "mlxmath[cuda12]" in old and "mlxmath[cuda13]" in new
    both = nvidia.why_no_cuda_build(["mlx-cuda-13", "mlx-cpu"], "580.65.06")
    assert "lies over" in both and "pip uninstall -y mlx-cpu mlx-cuda-13" in both


def test_no_device() -> None:
    old = nvidia.why_no_device(["mlx-cuda-13"], (12, 4), None)
    assert "too old" in old and "CUDA 12.4" in old and ">= 580" in old and "mlxmath[cuda12]" in old
    ancient = nvidia.why_no_device(["mlx-cuda-12"], (11, 8), None)
    assert "too old" in ancient and ">= 550" in ancient and "cuda11" not in ancient
    assert "CUDA_VISIBLE_DEVICES=''" in nvidia.why_no_device(["mlx-cuda-13"], (13, 0), "")
    assert "nvidia-smi" in nvidia.why_no_device(["mlx-cuda-13"], (13, 0), None)


def test_an_old_gpu() -> None:
    assert "7.0" in (nvidia.why_too_old("Tesla V100", (7, 0)) or "")
    assert nvidia.why_too_old("Tesla T4", (7, 5)) is None


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A pretended GPU."""
    info = dict(INFO)
    monkeypatch.setattr(mx.cuda, "is_available", lambda: True)
    monkeypatch.setattr(mx, "device_count", lambda _: 1)
    monkeypatch.setattr(mx, "device_info", lambda *_: info)
    monkeypatch.setattr(mx, "add", lambda a, b, stream: a + b)
    monkeypatch.setattr(mx, "compile", lambda function: function)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(nvidia, "driver_release", lambda: "580.65.06")
    return info


def test_a_gpu_is_described(gpu: dict[str, Any]) -> None:
    backend = CudaBackend()
    assert backend.unavailable() is None
    info = backend.describe()
    assert info.device == "NVIDIA H200 (compute capability 9.0, driver 580.65.06)"
    assert (info.compute_dtype, info.memory_bytes, info.notes) == ("bfloat16", 133_000_000_000, ())
    gpu |= {"free_memory": 60_000_000_000, "compute_capability_major": 7, "compute_capability_minor": 5}
    info = backend.describe()
    assert info.memory_bytes == 60_000_000_000 and "80.0 of the GPU's 140.0 GB" in info.notes[0]
    assert info.compute_dtype == "float32" and "no bfloat16" in info.dtype_reason


def test_a_first_operation_that_fails_is_a_reason(gpu: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("cudaErrorNoKernelImageForDevice\nmore")

    monkeypatch.setattr(mx, "add", fail)
    assert "cudaErrorNoKernelImageForDevice" in (CudaBackend().unavailable() or "")
    monkeypatch.setattr(mx, "device_count", lambda _: 0)
    monkeypatch.setattr(nvidia, "driver_cuda", lambda: (12, 2))
    monkeypatch.setattr(nvidia, "installed_builds", lambda: ("mlx-cuda-13",))
    assert "too old" in (CudaBackend().unavailable() or "")


def test_headers_that_are_not_found_are_a_reason(gpu: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    text = "Can not find locations of CUDA headers, please set environment variable CUDA_HOME or CUDA_PATH."

    def compiled(_: mx.array) -> mx.array:
        raise RuntimeError(text)

    monkeypatch.setattr(mx, "compile", lambda _: compiled)
    monkeypatch.setattr(nvidia, "installed_builds", lambda: ("mlx-cuda-12",))
    found = CudaBackend().unavailable() or ""
    assert "'mlxmath[cuda12]'" in found and "nvidia-cuda-runtime" in found and "CUDA_HOME" in found


def test_caches_that_miss_do_not_end_a_run(gpu: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLX_ENABLE_CACHE_THRASHING_CHECK", raising=False)
    monkeypatch.setenv("MLX_CUDA_SDPA_BACKWARD_CACHE_SIZE", "7")
    CudaBackend().unavailable()
    assert os.environ["MLX_ENABLE_CACHE_THRASHING_CHECK"] == "0"
    assert os.environ["MLX_CUDA_SDPA_BACKWARD_CACHE_SIZE"] == "7"


def test_an_mlx_that_does_not_load_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setitem(sys.modules, "mlx.core", None)  # makes the import fail
    assert "MLX does not load" in (CudaBackend().unavailable() or "")
