"""Functions of a library under other names, for whatever is loaded later."""

import sys
from pathlib import Path

import pytest

from tests.runtime.blas_process import in_a_process

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux needs a BLAS to be found")


def test_names_of_a_library_are_given_to_all_that_is_loaded_later(tmp_path: Path) -> None:
    code = """
import ctypes, os
del os.memfd_create  # as in a Python that was built for an older glibc
from mlxmath.runtime.symbols import make_global
labs = ctypes.cast(ctypes.CDLL(None).labs, ctypes.c_void_p).value
make_global({"mlxmath_labs": labs, "mlxmath_other": labs})
print(ctypes.CDLL(None).mlxmath_labs(-3), ctypes.CDLL(None).mlxmath_other(-4))
"""
    assert in_a_process(code, tmp_path) == "3 4\n"


def test_a_package_with_names_of_its_own_serves_mlx(tmp_path: Path) -> None:
    pytest.importorskip("scipy_openblas32")
    code = """
import time
blas_trials.libraries = lambda: [path for path in libraries() if "scipy_openblas" in path]
print(blas.preload().library)
import mlx.core as mx, numpy as np
a, b = (np.random.default_rng(0).normal(size=(512, 512)).astype(np.float32) for _ in range(2))
a_mlx, b_mlx = mx.array(a), mx.array(b)
mx.set_default_device(mx.cpu)
mx.eval(a_mlx @ b_mlx)
start = time.process_time()
product = a_mlx @ b_mlx
mx.eval(product)
print(2 * 512**3 / (time.process_time() - start), np.abs(np.array(product) - a.astype(float) @ b.astype(float)).max())
"""
    library, figures = in_a_process(
        "libraries = blas_trials.libraries" + code, tmp_path, OPENBLAS_NUM_THREADS="1"
    ).splitlines()
    rate, difference = map(float, figures.split())
    assert "scipy_openblas" in library and rate > 10e9 and difference < 1e-3
