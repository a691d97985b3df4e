"""One contract for every backend; those that this machine lacks are skipped with their own words."""

import subprocess
import sys

import pytest

from mlxmath.errors import InputError
from mlxmath.runtime.backend import Backend
from mlxmath.runtime.cpu import CpuBackend
from mlxmath.runtime.select import BACKENDS, choose


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
    backend.synchronize()
    during = backend.memory()
    assert during.active_bytes - before.active_bytes >= 4 << 20
    assert during.peak_bytes >= during.active_bytes
    del big
    backend.trim()
    assert backend.memory().cache_bytes == 0
    assert backend.memory().active_bytes < during.active_bytes

    x = mx.random.normal((64, 64)).astype(getattr(mx, info.compute_dtype))
    product = (x @ x).astype(mx.float32)
    exact = x.astype(mx.float32) @ x.astype(mx.float32)
    assert mx.allclose(product, exact, rtol=2e-2, atol=2e-1)
    assert backend.bucket_multiple % 16 == 0


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


def test_without_a_fast_blas_the_cpu_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlxmath.runtime.cpu.blas_is_missing", lambda: True)
    (note,) = CpuBackend().open(seed=0).notes
    assert "libopenblas0-pthread" in note and "pip install mkl" in note


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux needs a BLAS to be found")
def test_the_fast_blas_is_loaded_whichever_part_is_imported_first() -> None:
    from mlxmath.runtime.blas import preload

    if preload() is None:
        pytest.skip("no OpenBLAS or MKL on this machine")
    for part in ("lora.layers", "models.load", "training.fit", "generation.engine", "objectives.sft", "data.batches"):
        code = f"import mlxmath.{part}; print(open('/proc/self/maps').read())"
        maps = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        assert "openblas" in maps or "mkl_rt" in maps, part
