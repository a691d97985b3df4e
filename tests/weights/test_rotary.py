"""Angles of the rotary embedding against transformers' own and mlx_lm's, and models that turn by others."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.models.hunyuan import DynamicNTKAlphaRoPE
from mlx_lm.models.rope_utils import initialize_rope

from mlxmath.weights.rotary import angles, built_otherwise

BASE, DIMS = 5000.0, 16
SCALINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 2.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 8.0, "original_max_position_embeddings": 32},
    "yarn, another range": {
        "factor": 4.0, "original_max_position_embeddings": 4096, "beta_fast": 16.0, "beta_slow": 2.0,
    },
    "llama3": {
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
    },
    "longrope": {
        "short_factor": [1 + i / 10 for i in range(8)], "long_factor": [1 + i / 10 for i in range(8)],
        "original_max_position_embeddings": 64,
    },
}  # fmt: skip


def rope(name: str) -> dict[str, Any]:
    kind = name.partition(",")[0]
    return {"rope_type": kind, "type": kind, **SCALINGS[name]}


def embedding(name: str, base: float = BASE, *, traditional: bool = False) -> nn.Module:
    return initialize_rope(DIMS, base, traditional, rope(name), 256)


def model(*modules: nn.Module) -> nn.Module:
    """With an attention's embedding in each block."""
    result = nn.Module()
    result.layers = [SimpleModule(module) for module in modules]
    return result


class SimpleModule(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.rope = module


def config(name: str, **more: Any) -> dict[str, Any]:
    return {"rope_theta": BASE, "rope_scaling": rope(name), **more}


@pytest.mark.parametrize("name", SCALINGS)
def test_angles_are_those_of_the_published_formula(name: str) -> None:
    """As transformers computes them."""
    rope_utils = pytest.importorskip("transformers.modeling_rope_utils")
    kind = name.partition(",")[0]
    parameters = {**rope(name), "rope_theta": BASE}
    fake = SimpleNamespace(
        rope_parameters=parameters,
        head_dim=DIMS,
        hidden_size=64,
        num_attention_heads=4,
        max_position_embeddings=256,
        standardize_rope_params=lambda: None,
    )
    pytest.importorskip("torch")
    if kind == "default":
        wanted = BASE ** -(np.arange(0, DIMS, 2) / DIMS)
    else:
        wanted = rope_utils.ROPE_INIT_FUNCTIONS[kind](fake, "cpu", seq_len=16)[0].numpy()
    np.testing.assert_allclose(angles(rope(name), BASE, DIMS), wanted, rtol=1e-5)


@pytest.mark.parametrize("traditional", [False, True], ids=["halves", "neighbours"])
@pytest.mark.parametrize("name", SCALINGS)
def test_what_mlx_lm_makes_of_the_same_settings_is_the_same(name: str, traditional: bool) -> None:
    assert built_otherwise(model(embedding(name, traditional=traditional)), config(name)) is None


def test_a_base_that_depends_on_alpha() -> None:
    made = DynamicNTKAlphaRoPE(DIMS, BASE, 50.0)
    assert (
        built_otherwise(model(made), {"rope_theta": BASE, "rope_scaling": {"type": "dynamic", "alpha": 50.0}}) is None
    )
    assert built_otherwise(model(made), config("default")) is not None


@pytest.mark.parametrize("name", ["linear", "yarn", "llama3", "longrope"])
def test_a_scaling_that_is_not_there(name: str) -> None:
    said = built_otherwise(model(embedding("default"), embedding("default")), config(name))
    assert said is not None and f"{name} at a base of 5000" in said


@pytest.mark.parametrize("made", [embedding("linear"), embedding("default", 1e4), nn.RoPE(DIMS, base=5100.0)])
def test_other_angles(made: nn.Module) -> None:
    assert "angles other than" in (built_otherwise(model(embedding("default"), made), config("default")) or "")


def test_layers_of_two_kinds() -> None:
    both = model(embedding("yarn"), embedding("default", 100.0))
    nested = {
        "rope_parameters": {
            "full_attention": {**rope("yarn"), "rope_theta": BASE},
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        }
    }
    assert built_otherwise(both, nested) is None
    assert built_otherwise(both, config("yarn", rope_local_base_freq=100.0)) is None
    assert built_otherwise(model(embedding("default", 100.0)), nested) is not None


def test_what_cannot_be_told() -> None:
    """No base, a scaling of another kind, or no embedding that can be asked."""
    assert built_otherwise(model(embedding("linear")), {}) is None
    assert built_otherwise(model(embedding("linear")), {"rope_theta": BASE, "rope_scaling": {"type": "mine"}}) is None
    assert built_otherwise(model(nn.Linear(4, 4)), config("yarn")) is None


@pytest.mark.parametrize("name", ["default", "llama3"])
def test_angles_are_not_asked_of_a_device_with_a_coarse_sine(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Metal's `fast::sin` is right to 2^-13. Played here: what is turned is off by that, but on the CPU's stream."""
    rope, stream, chosen = mx.fast.rope, mx.stream, []

    @contextmanager
    def noted(device: Any) -> Iterator[None]:
        chosen.append(device)
        with stream(device):
            yield
        chosen.pop()

    def coarse(*args: Any, **kwargs: Any) -> mx.array:
        found = rope(*args, **kwargs)
        return found if mx.cpu in chosen else found + 2.0**-13 * (found != 0)

    monkeypatch.setattr(mx, "stream", noted)
    monkeypatch.setattr(mx.fast, "rope", coarse)
    assert built_otherwise(model(embedding(name)), config(name)) is None
