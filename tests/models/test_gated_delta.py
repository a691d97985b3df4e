"""The gated delta rule in chunks, against mlx_lm's loop over tokens and a recurrence in float64."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models import gated_delta as home

from mlxmath.models import gated_delta as module
from mlxmath.models.gated_delta import CHUNK, gated_delta, use_chunks
from mlxmath.models.load import load_model
from tests.models import architectures
from tests.models.adapted import assert_close, token_by_token

SEGMENT = CHUNK * module._SEGMENT
NAMES = ("q", "k", "v", "decay", "beta", "state")


@pytest.fixture(autouse=True)
def mlx_lms_own() -> Iterator[None]:
    with token_by_token():
        yield


def arrays(
    rows: int, length: int, keys: int, heads: int, width: int, value_width: int, *, channels: bool = False
) -> list[Any]:
    """Queries and keys of length one, decays between 0.2 and 1, and a state."""
    rng = np.random.default_rng(length)
    q, k = (rng.normal(size=(rows, length, keys, width)) for _ in range(2))
    q, k = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (q, k))
    decay = np.exp(-0.5 * np.abs(rng.normal(size=(rows, length, heads, *([width] if channels else [])))))
    beta = rng.uniform(size=(rows, length, heads))
    v, state = rng.normal(size=(rows, length, heads, value_width)), rng.normal(size=(rows, heads, value_width, width))
    return [x.astype(np.float32) for x in (q, k, v, decay, beta, state)]


def in_float64(
    q: Any, k: Any, v: Any, decay: Any, beta: Any, state: Any, mask: Any = None
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The recurrence as it stands in the paper, S_t = S_{t-1} diag(α_t) (I − β_t k_t k_tᵀ) + β_t v_t k_tᵀ."""
    q, k, v, decay, beta, state = (np.array(x, np.float64) for x in (q, k, v, decay, beta, state))
    outputs = np.zeros(v.shape)
    for row, head in np.ndindex(*state.shape[:2]):
        s, key = state[row, head], head // (v.shape[2] // k.shape[2])
        for t in range(v.shape[1]):
            k_t, b = k[row, t, key], beta[row, t, head]
            if mask is None or mask[row, t]:
                s = (
                    s
                    @ np.diag(np.broadcast_to(decay[row, t, head], k_t.shape))
                    @ (np.eye(len(k_t)) - b * np.outer(k_t, k_t))
                )
                s = s + b * np.outer(v[row, t, head], k_t)
            outputs[row, t, head] = s @ q[row, t, key]
        state[row, head] = s
    return outputs, state


def gradients(rule: Any, inputs: list[Any], mask: Any = None) -> list[mx.array]:
    """Of Σ outputs · random + Σ state · random; of outputs only those that the mask does not leave out."""
    given = [mx.array(x) for x in inputs]
    rng = np.random.default_rng(1)
    d_output = rng.normal(size=inputs[2].shape) * (1 if mask is None else mask[..., None, None])
    d_state = rng.normal(size=inputs[5].shape)

    def total(*given: mx.array) -> mx.array:
        output, state = rule(*given, None if mask is None else mx.array(mask))
        return (output * mx.array(d_output, mx.float32)).sum() + (state * mx.array(d_state, mx.float32)).sum()

    return list(mx.grad(total, argnums=range(len(given)))(*given))


SHAPES = [
    (1, 1, 1, 1, 4, 4), (2, 2, 1, 2, 8, 4), (1, CHUNK - 1, 2, 2, 4, 8), (2, CHUNK, 1, 3, 8, 8),
    (1, CHUNK + 1, 2, 4, 16, 8), (1, 3 * CHUNK + 7, 1, 2, 8, 4), (1, SEGMENT, 1, 1, 4, 4), (2, SEGMENT + 5, 1, 2, 4, 4),
]  # fmt: skip


def assert_right(inputs: list[Any], of_values: float, of_gradients: float) -> None:
    """Values as in float64, gradients as mlx_lm's loop has them."""
    output, state = gated_delta(*map(mx.array, inputs))
    expected_output, expected_state = in_float64(*inputs)
    assert_close(output, expected_output, of_values, "outputs")
    assert_close(state, expected_state, of_values, "state")
    found, expected = gradients(gated_delta, inputs), gradients(home.gated_delta_ops, inputs)
    for name, of_chunks, of_loop in zip(NAMES, found, expected, strict=True):
        assert_close(of_chunks, of_loop, of_gradients, name)


@pytest.mark.parametrize("channels", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_are_those_of_the_loop(shape: Any, channels: bool) -> None:
    assert_right(arrays(*shape, channels=channels), 2e-6, 1e-5)


def changed(case: str, inputs: list[Any]) -> list[Any]:
    q, k, v, decay, beta, state = inputs
    if case == "decays that vanish":
        decay = np.where(np.arange(decay.size).reshape(decay.shape) % 3, decay, 0).astype(np.float32)
    elif case == "tiny decays":
        decay = np.exp(100 * np.log(decay)).astype(np.float32)
    elif case == "no decay":
        decay = np.ones_like(decay)
    elif case == "nothing written":
        beta = np.zeros_like(beta)
    elif case == "all written":
        beta = np.ones_like(beta)
    elif case == "written twice":
        beta = np.full_like(beta, 1.9)
    elif case == "the same key":
        k, beta, decay = np.broadcast_to(k[:, :1], k.shape), np.ones_like(beta), np.ones_like(decay)
    return [np.ascontiguousarray(x) for x in (q, k, v, decay, beta, state)]


CASES = (
    "decays that vanish", "tiny decays", "no decay", "nothing written", "all written", "written twice", "the same key",
)  # fmt: skip


@pytest.mark.parametrize("channels", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_at_the_ends_of_what_gates_can_be(case: str, channels: bool) -> None:
    assert_right(changed(case, arrays(1, 2 * CHUNK + 9, 1, 2, 8, 4, channels=channels)), 1e-5, 2e-5)


@pytest.mark.parametrize("channels", [False, True])
def test_what_is_masked_is_not_there(channels: bool) -> None:
    inputs = arrays(2, CHUNK + 20, 1, 2, 8, 4, channels=channels)
    mask = np.ones((2, CHUNK + 20), bool)
    mask[0, :7], mask[1, -23:], mask[1, 5] = False, False, False
    output, state = gated_delta(*map(mx.array, inputs), mx.array(mask))
    expected_output, expected_state = in_float64(*inputs, mask)
    seen = mask[..., None, None]
    assert_close(output * seen, expected_output * seen, 2e-6, "outputs")
    assert_close(state, expected_state, 2e-6, "state")
    found, expected = gradients(gated_delta, inputs, mask), gradients(home.gated_delta_ops, inputs, mask)
    for name, of_chunks, of_loop in zip(NAMES, found, expected, strict=True):
        assert_close(of_chunks, of_loop, 1e-5, name)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_sixteen_bits_are_computed_in_float32(dtype: mx.Dtype) -> None:
    q, k, v, decay, beta, _ = map(mx.array, arrays(1, CHUNK + 9, 1, 2, 8, 8))
    short = [x.astype(dtype) for x in (q, k, v)]
    output, state = gated_delta(*short, decay, beta)
    expected, expected_state = gated_delta(*(x.astype(mx.float32) for x in short), decay, beta)
    assert output.dtype == dtype and state.dtype == mx.float32
    assert mx.array_equal(output, expected.astype(dtype)) and mx.array_equal(state, expected_state)
    d_q = mx.grad(lambda q: gated_delta(q, *short[1:], decay, beta)[0].sum())(short[0])
    assert d_q.dtype == dtype


def test_no_state_is_kept_of_each_token() -> None:
    width, length = 128, 2 * SEGMENT
    inputs = [mx.array(x) for x in arrays(1, length, 1, 1, width, width)[:-1]]
    mx.eval(inputs)
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    mx.eval(mx.grad(lambda *x: gated_delta(*x)[0].sum(), argnums=range(5))(*inputs))
    assert mx.get_peak_memory() - before < length * width * width * 4 / 4


def test_two_threads_compute_what_one_does() -> None:
    inputs = arrays(1, SEGMENT + 3, 1, 2, 8, 4)
    expected = gradients(gated_delta, inputs)
    found: dict[int, list[mx.array]] = {}

    def work(number: int) -> None:
        found[number] = gradients(gated_delta, inputs)
        mx.eval(found[number])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(2):
        assert all(mx.array_equal(a, b) for a, b in zip(found[number], expected, strict=True))


@pytest.mark.parametrize("model_type", ["qwen3_5", "qwen3_next", "kimi_linear"])
def test_a_loaded_model_goes_through_chunks_and_decodes_token_by_token(
    model_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = []

    def noting(q_BLKD: mx.array, *rest: Any, **more: Any) -> Any:
        lengths.append(q_BLKD.shape[1])
        return gated_delta(q_BLKD, *rest, **more)

    model = load_model(architectures.write(model_type, tmp_path), "float32").model
    monkeypatch.setattr(module, "gated_delta", noting)
    tokens_BL = mx.array([[5, 9, 17, 33, 41, 8]])
    for training in (True, False):
        model.train(training)
        lengths.clear()
        logits_BLV = model(tokens_BL)
        assert set(lengths) == {6}
        with token_by_token():
            assert_close(logits_BLV, model(tokens_BL), 1e-4, "logits")
    lengths.clear()
    model(tokens_BL[:, :1])
    assert not lengths


def test_another_rule_is_left_alone(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    own = home.gated_delta_ops

    def other(q: mx.array, *rest: Any) -> Any:
        return own(q * q.shape[-1] ** -0.5, *rest)

    for rule, words in ((other, "% off"), (lambda q, k: (q, k), "called otherwise")):
        monkeypatch.setattr(home, "gated_delta_ops", rule)
        use_chunks()
        assert home.gated_delta_ops is rule
        assert words in caplog.text
        caplog.clear()
    monkeypatch.setattr(home, "gated_delta_ops", own)
    use_chunks()
    replaced = home.gated_delta_ops
    assert replaced is not own
    use_chunks()
    assert home.gated_delta_ops is replaced
