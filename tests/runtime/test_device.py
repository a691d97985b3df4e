"""One contract for every backend; those that this machine lacks are skipped with their own words."""

import subprocess
import sys
from typing import Any

import pytest

from mlxmath.config.schema import RuntimeConfig
from mlxmath.errors import InputError
from mlxmath.runtime.device import BACKENDS, Backend, CpuBackend, choose, opened_backend


@pytest.fixture(params=list(BACKENDS))
def backend(request: pytest.FixtureRequest) -> Backend:
    found = BACKENDS[request.param]()
    if reason := found.unavailable():
        pytest.skip(reason)
    return found


def test_contract(backend: Backend) -> None:
    import mlx.core as mx

    info = backend.open(seed=3)
    assert info.backend == backend.name
    assert info.memory_bytes > 1e9 and info.dtype_reason and info.device
    assert hasattr(mx, info.compute_dtype)
    first = mx.random.uniform(shape=(4,)).tolist()
    backend.open(seed=3)
    assert mx.random.uniform(shape=(4,)).tolist() == first

    backend.reset_peak()
    before = backend.memory()
    big = mx.ones((1024, 1024), mx.float32)
    mx.eval(big)
    during = backend.memory()
    assert during.active_bytes - before.active_bytes >= 4 << 20
    assert during.peak_bytes >= during.active_bytes
    del big
    assert backend.memory().active_bytes < during.active_bytes

    x = mx.random.normal((64, 64)).astype(getattr(mx, info.compute_dtype))
    product = (x @ x).astype(mx.float32)
    exact = x.astype(mx.float32) @ x.astype(mx.float32)
    assert mx.allclose(product, exact, rtol=2e-2, atol=2e-1)
    assert backend.bucket_multiple % 16 == 0


def test_a_run_leaves_a_library_s_caller_what_was_before(backend: Backend) -> None:
    import mlx.core as mx
    from threadpoolctl import threadpool_info

    def state() -> tuple[Any, ...]:
        cache = mx.set_cache_limit(0)
        mx.set_cache_limit(cache)
        blas = [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
        return mx.default_device(), mx.get_memory_limit(), cache, blas

    before = state()
    config = RuntimeConfig(backend=backend.name, memory_limit_gb=0.5)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="in the run"), opened_backend(config, 0, 2) as (_, info):
        assert mx.get_memory_limit() == info.memory_bytes == 500_000_000 and state()[2] < before[2]
        raise RuntimeError("in the run")
    assert state() == before
    whole = backend.describe().memory_bytes
    with opened_backend(config.model_copy(update={"memory_limit_gb": None}), 0, 2) as (_, info):
        assert info.memory_bytes == (whole // 2 if backend.is_shared else whole)


def test_an_unavailable_backend_says_why_and_what_to_do() -> None:
    absent = [b for b in (cls() for cls in BACKENDS.values()) if b.unavailable()]
    for backend in absent:
        with pytest.raises(InputError, match=f"--backend {backend.name}: "):
            backend.open(seed=0)


def test_auto_prefers_a_gpu_and_says_why() -> None:
    backend, reason = choose("auto")
    assert reason.startswith("auto: ")
    gpu = [name for name in ("metal", "cuda") if BACKENDS[name]().unavailable() is None]
    assert backend.name == (gpu[0] if gpu else "cpu")


def test_a_mac_that_gives_mlx_no_gpu_computes_nothing_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a virtual machine: there MLX's Metal "is available", and has no device."""
    import mlx.core as mx

    monkeypatch.setenv("AGX_RELAX_CDM_CTXSTORE_TIMEOUT", "1")
    monkeypatch.setattr("mlxmath.runtime.device.blas.preload", lambda: None)
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(mx, "device_count", lambda _: 0)
    for name in ("auto", "metal", "cpu"):
        with pytest.raises(InputError, match="gives MLX no GPU"):
            choose(name)[0].open(seed=0)
    monkeypatch.setattr(mx, "device_count", lambda _: 1)
    assert choose("auto")[0].name == "metal"


def test_without_a_fast_blas_the_cpu_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlxmath.runtime.device.blas.preload", lambda: None)
    monkeypatch.setattr("mlxmath.runtime.device.blas.libraries", list)
    (note,) = CpuBackend().open(seed=0).notes
    assert "libopenblas0-pthread" in note and "pip install scipy-openblas32" in note


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux needs a BLAS to be found")
def test_the_fast_blas_is_loaded_whichever_part_is_imported_first() -> None:
    from mlxmath.runtime.blas import preload

    if preload() is None:
        pytest.skip("no OpenBLAS or MKL on this machine")
    for part in ("models.lora.layers", "models.load", "training.trainer", "generation.engine", "data.batching"):
        code = f"import mlxmath.{part}; print(open('/proc/self/maps').read())"
        maps = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        assert "openblas" in maps or "mkl_rt" in maps, part
