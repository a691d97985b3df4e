"""Q4_K and Q6_K against gguf's own reading of them, and against llama.cpp's own quantizers."""

import ctypes
from collections.abc import Callable

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants

from mlxmath.weights.k_quants import Bytes, Floats, quantize_q4_k, quantize_q6_k

Q4_K, Q6_K = GGMLQuantizationType.Q4_K, GGMLQuantizationType.Q6_K
QUANTIZERS: dict[GGMLQuantizationType, Callable[[Floats], Bytes]] = {Q4_K: quantize_q4_k, Q6_K: quantize_q6_k}
KINDS = pytest.mark.parametrize("kind", [Q4_K, Q6_K], ids=["Q4_K", "Q6_K"])


def values(name: str, rows: int = 64, width: int = 1024) -> Floats:
    """Weights of a kind that models have."""
    rng = np.random.default_rng(0)
    drawn = {
        "normal": lambda: rng.normal(0, 0.02, (rows, width)),
        "laplace": lambda: rng.laplace(0, 0.02, (rows, width)),
        "outliers": lambda: rng.standard_t(3, (rows, width)),
        "positive": lambda: np.abs(rng.normal(0, 1, (rows, width))),
        "uneven": lambda: rng.normal(0, 1, (rows, width)) * np.exp(rng.normal(0, 2, (rows, width // 32)).repeat(32, 1)),
    }
    return drawn[name]().astype(np.float32)


def read_back(packed: Bytes, kind: GGMLQuantizationType) -> Floats:
    return quants.dequantize(packed, kind)


def rms(difference: Floats) -> float:
    return float(np.sqrt(np.mean(np.square(difference, dtype=np.float64))))


@KINDS
def test_values_that_the_format_can_hold_come_back_exactly(kind: GGMLQuantizationType) -> None:
    rng = np.random.default_rng(1)
    if kind == Q4_K:  # two super-blocks, all of whose sub-blocks reach the ends of their range
        q = rng.integers(0, 16, (2, 8, 32))
        q[..., :2] = 0, 15
        scale, low = rng.integers(1, 64, (2, 8, 1)), rng.integers(0, 64, (2, 8, 1))
        scale[:, 0], low[:, 0] = 63, 63
        exact = 0.5 * scale * q - 0.25 * low
        found = read_back(quantize_q4_k(exact.reshape(1, -1).astype(np.float32)), kind)
        np.testing.assert_allclose(found.reshape(exact.shape), exact, atol=0.26)  # the search may take another scale
    else:
        q = rng.integers(-31, 32, (2, 16, 16))
        q[..., 0] = -32
        scale = rng.integers(1, 128, (2, 16, 1))
        scale[:, 0] = -128
        exact = (0.5 * scale * q).reshape(1, -1).astype(np.float32)
        np.testing.assert_array_equal(read_back(quantize_q6_k(exact), kind), exact)


@KINDS
def test_zeros_stay_zeros_and_shapes_are_those_of_the_format(kind: GGMLQuantizationType) -> None:
    packed = QUANTIZERS[kind](np.zeros((3, 2, 512), np.float32))
    assert packed.shape == (3, 2, 2 * {Q4_K: 144, Q6_K: 210}[kind])
    assert not read_back(packed, kind).any()
    with pytest.raises(ValueError, match="576 values"):
        QUANTIZERS[kind](np.zeros((3, 576), np.float32))


@KINDS
def test_rows_do_not_depend_on_their_neighbours(kind: GGMLQuantizationType) -> None:
    rows = values("outliers", 700)  # 2,800 super-blocks: more than are searched together
    packed = QUANTIZERS[kind](rows)
    for row in (0, 300, 699):
        np.testing.assert_array_equal(packed[row], QUANTIZERS[kind](rows[row : row + 1])[0])


@KINDS
@pytest.mark.parametrize("name", ["normal", "laplace", "outliers", "positive", "uneven"])
def test_the_error_is_that_of_llama_cpp(kind: GGMLQuantizationType, name: str) -> None:
    xllamacpp = pytest.importorskip("xllamacpp")
    rows = values(name)
    ours = QUANTIZERS[kind](rows)
    theirs = np.zeros_like(ours)
    quantize = ctypes.CDLL(xllamacpp.xllamacpp.__file__).quantize_q4_K  # (source, target, rows, width, weights)
    if kind == Q6_K:
        quantize = ctypes.CDLL(xllamacpp.xllamacpp.__file__).quantize_q6_K
    quantize.restype = ctypes.c_size_t
    quantize.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p]
    assert quantize(rows.ctypes.data, theirs.ctypes.data, *rows.shape, None) == theirs.nbytes
    error, their_error = (rms(read_back(packed, kind) - rows) for packed in (ours, theirs))
    assert error <= 1.01 * their_error
