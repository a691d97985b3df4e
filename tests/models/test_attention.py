"""Attention under autodiff on GPUs whose kernels raise or do not exist. Played here: MLX's operations answer."""

from typing import Any, Literal

import mlx.core as mx
import numpy as np
import pytest

from mlxmath.data.batch import Shape, make_batch
from mlxmath.models import attention as module
from mlxmath.models.attention import TrainingAttention
from mlxmath.models.kernels import long_rows
from mlxmath.models.kernels.portable import Kernels
from mlxmath.models.lora.inject import open_blocks
from mlxmath.models.masks import Written
from mlxmath.training.gradients import choose_gradients
from mlxmath.training.sft import sft_loss
from tests.models import architectures
from tests.models.adapted import assert_agrees, plain_gradients, random_adapters, rows

Device = Literal["metal", "cuda"]
WIDTHS = (16, 64)
"""Of heads that Metal has a kernel for."""


def play(device: Device, monkeypatch: pytest.MonkeyPatch, block: int = 16) -> list[Any]:
    """The device and MLX 0.32.4's kernels on it; what these are asked for is noted."""
    original, asked = mx.fast.scaled_dot_product_attention, []

    def played(
        q: mx.array, k: mx.array, v: mx.array, *, scale: float, mask: Any = None, sinks: Any = None,
        force_fused: bool = False,
    ) -> mx.array:  # fmt: skip
        width, scores = q.shape[-1], isinstance(mask, mx.array) and mask.dtype != mx.bool_
        if force_fused and width not in WIDTHS:
            raise ValueError(f"no fused kernel is available: heads are {width} wide")
        asked.append(mask)
        refused = isinstance(mask, str) and (sinks is not None or q.shape[2] <= 8)
        if device == "cuda":
            refused = scores or sinks is not None

        @mx.custom_function
        def kernel(*given: mx.array) -> mx.array:
            return original(*given[:3], scale=scale, mask=mask, sinks=sinks)

        @kernel.vjp
        def kernel_vjp(*_: Any) -> Any:
            raise RuntimeError("NYI")

        return kernel(q, k, v) if refused else original(q, k, v, scale=scale, mask=mask, sinks=sinks)

    monkeypatch.setattr(mx.fast, "scaled_dot_product_attention", played)
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu, 0))
    monkeypatch.setattr(mx.cuda, "is_available", lambda: device == "cuda")
    monkeypatch.setattr(long_rows, "GPU_BLOCK", block)
    return asked


@pytest.fixture(autouse=True)
def nothing_known() -> None:
    module._has_kernel.cache_clear()


@pytest.mark.parametrize("block", [16, 1024])
@pytest.mark.parametrize(
    ("name", "device", "full"),
    [
        ("gpt_oss", "metal", False),
        ("gpt_oss", "metal", True),
        ("gpt_oss", "cuda", True),
        ("deepseek_v3", "cuda", False),
    ],
)
def test_what_kernels_have_no_gradient_of(
    name: str, device: Device, full: bool, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = architectures.make(name)
    if full:
        open_blocks(model, -1)
        model.train()
    else:
        random_adapters(model)
    texts = rows(architectures.VOCAB_SIZE)
    expected = plain_gradients(model, texts)
    mx.eval(expected)
    play(device, monkeypatch, block)
    ways = choose_gradients(model, sft_loss, Kernels(), compiled=False)
    assert_agrees(ways, make_batch(texts, (0, 1, 2), Shape(8)), *expected)


def test_whether_texts_may_share_a_row_is_tried_by_the_same_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_adapters(architectures.make("gpt_oss")[0])
    model.model.window_size = 128  # as in the models that there are: longer than what is tried
    play("metal", monkeypatch)
    assert choose_gradients(model, sft_loss, Kernels(), compiled=False).cannot_pack() is None


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
@pytest.mark.parametrize("windowed", [False, True])
def test_sinks_by_blocks(windowed: bool, dtype: mx.Dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = (2, 6, 41, 8), (2, 2, 41, 8), (2, 2, 41, 4), (6,)
    given = [mx.random.normal(shape, key=mx.random.key(i)).astype(dtype) * 2 for i, shape in enumerate(shapes)]
    d = mx.random.normal((2, 6, 41, 4), key=mx.random.key(9)).astype(dtype)
    seen = mx.tri(41, dtype=mx.int32) - mx.tri(41, k=-20, dtype=mx.int32) > 0

    def mlxs(q: mx.array, k: mx.array, v: mx.array, sinks: mx.array) -> mx.array:
        mask = seen if windowed else "causal"
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=0.4, mask=mask, sinks=sinks)

    def ours(q: mx.array, k: mx.array, v: mx.array, sinks: mx.array) -> mx.array:
        return module._by_blocks(q, k, v, 0.4, Written(seen) if windowed else None, sinks)

    expected = mx.vjp(mlxs, [x.astype(mx.float32) for x in given], [d.astype(mx.float32)])
    monkeypatch.setattr(long_rows, "BLOCK", 16)
    found = mx.vjp(ours, given, [d])
    tolerance = 1e-5 if dtype == mx.float32 else 3e-2
    for one, other in zip(found[0] + found[1], expected[0] + expected[1], strict=True):
        assert one.dtype == dtype
        largest = mx.abs(other).max().item()
        np.testing.assert_allclose(np.array(one.astype(mx.float32)), np.array(other), rtol=0, atol=tolerance * largest)


@pytest.mark.parametrize(("width", "asked_for"), [(16, ["causal"]), (24, [])])
def test_long_rows_go_by_blocks_where_metal_has_no_kernel_for_their_width(
    width: int, asked_for: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = architectures.make("llama")
    asked = play("metal", monkeypatch)
    q, k, v = (mx.random.normal((1, heads, 41, width), key=mx.random.key(heads)) for heads in (4, 2, 2))
    module._is_fused(q, v)
    asked.clear()
    found = TrainingAttention(model)._attention(q, k, v, None, 0.3, "causal")
    assert asked == asked_for
    monkeypatch.undo()
    expected = mx.fast.scaled_dot_product_attention(q, k, v, scale=0.3, mask="causal")
    assert mx.allclose(found, expected, rtol=0, atol=1e-5)


def test_few_queries_have_a_gradient_on_metal(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = architectures.make("llama")
    tokens_BL = mx.arange(10).reshape(2, 5)

    def loss(embeddings_BLD: mx.array) -> mx.array:
        return mx.square(model.layers[0](embeddings_BLD, mask="causal")).sum()

    embeddings_BLD = model.model.embed_tokens(tokens_BL)
    expected = mx.grad(loss)(embeddings_BLD)
    mx.eval(expected)
    play("metal", monkeypatch)
    with TrainingAttention(model).in_place():
        found = mx.grad(loss)(embeddings_BLD)
    assert mx.allclose(found, expected, rtol=1e-4, atol=1e-5)
