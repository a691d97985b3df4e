"""`--quantize auto`, from problems to a model that trains and answers."""

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import mlxmath
from mlxmath.commands.convert import main as convert
from mlxmath.config.schema import ModelConfig, RunConfig
from mlxmath.errors import InputError
from mlxmath.models.load import load_model
from mlxmath.runtime.device import DeviceInfo
from mlxmath.training import bits
from mlxmath.weights.convert import ensure_model
from mlxmath.weights.manifest import read_manifest
from mlxmath.weights.packing import Chosen
from tests.conftest import FakeRows
from tests.helpers import invoke
from tests.models.architectures import config_of
from tests.models.folders import folder_of

FEW = ("--dataset", "demo", "--num-examples", "16", "--decontaminate", "none", "--backend", "cpu")


@pytest.fixture(scope="module")
def chosen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("auto")
    invoke(
        convert, "--model", "demo", "--quantize", "auto:4.5", "--mlx-path", str(folder / "model"), "--cache-dir",
        str(folder / "cache"), *FEW[2:],
    )  # fmt: skip
    return folder / "model"


def test_bytes_are_counted_and_others_read_it(chosen: Path) -> None:
    from mlx_lm import generate, load

    settings = json.loads((chosen / "config.json").read_text())["quantization"]
    forms = Counter((each["bits"], each["group_size"]) for each in settings.values() if isinstance(each, dict))
    assert len(forms) > 1
    assert sum(forms.values()) == 29
    arrays = mx.load(str(chosen / "model.safetensors"))
    packed = {name.removesuffix(".scales") for name in arrays if name.endswith(".scales")}
    num_bytes = sum(array.nbytes for name, array in arrays.items() if name.rpartition(".")[0] in packed)
    num_weights = sum(arrays[f"{path}.weight"].size * 32 // settings[path]["bits"] for path in packed)
    assert 0.99 * 4.5 < 8 * num_bytes / num_weights <= 4.5
    model, tokenizer = load(str(chosen))
    assert generate(model, tokenizer, "2 + 3 =", max_tokens=2) is not None
    manifest = read_manifest(chosen)
    assert manifest.quantize == "auto:4.5"
    assert manifest.calibration.startswith("16 problems, ")
    assert manifest.calibration.endswith(" tokens of demo")  # the bundled model's own, since none were named
    assert f"demo, auto:4.5 by {manifest.calibration}, float16" in manifest.describe()


def test_the_same_again(chosen: Path, tmp_path: Path) -> None:
    made = mlxmath.convert(
        "demo", "demo", quantize="auto:4.5", mlx_path=str(tmp_path / "again"), num_examples=16, decontaminate="none",
        cache_dir=str(tmp_path), backend="cpu",
    )  # fmt: skip
    assert read_manifest(made).fingerprint == read_manifest(chosen).fingerprint
    assert [path.name for path in tmp_path.iterdir() if ".tmp" in path.name] == []


def test_it_is_used_again_trained_and_asked(chosen: Path, tmp_path: Path) -> None:
    result = mlxmath.sft(
        "demo", model="demo", mlx_path=str(chosen), quantize="auto:4.5", max_steps=2, num_examples=16,
        decontaminate="none", cache_dir=str(tmp_path), adapter_path=str(tmp_path / "adapters"), backend="cpu",
    )  # fmt: skip
    assert result.steps == 2
    model = mlxmath.load(str(chosen), tmp_path / "adapters")
    assert mlxmath.generate(model, "What is 2 + 3?", max_new_tokens=4).text is not None


def test_errors(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    with pytest.raises(InputError, match=r"dataset= .* problems are for quantize= auto:4.5, which"):
        mlxmath.convert("demo", "demo", mlx_path=out)
    with pytest.raises(InputError, match="quantize= auto:4.5 measures on problems, and there are none here"):
        mlxmath.load("demo", quantize="auto:4.5", mlx_path=out)
    found = invoke(convert, "--model", "demo", "--mlx-path", out, "--quantize", "auto:2.25", *FEW, code=2)
    assert "the smallest forms of all layers take" in found.output
    assert not Path(out).exists()


@pytest.mark.parametrize(("quantize", "group_size"), [(4, 32), ("auto:8", None)])
def test_rows_that_the_architectures_form_does_not_divide_stay_as_they_are(
    tmp_path: Path, quantize: int | str, group_size: int | None
) -> None:
    """RWKV-7 wants its low ranks in 8 bits, in groups of 64; many have a rank of 32."""
    source = folder_of(tmp_path / "source", config_of("rwkv7") | {"v_low_rank_dim": 32, "gate_low_rank_dim": 64})

    def choose(folder: Path, _: float) -> Chosen:
        forms, fixed = bits._open_and_fixed(load_model(folder, "float32").model)
        return Chosen({path: own[0] for path, own in forms.items()} | fixed, "nothing")

    out = tmp_path / "out"
    config = ModelConfig(model=str(source), mlx_path=str(out), quantize=quantize, group_size=group_size)
    ensure_model(config, exact=True, choose=choose)
    found = load_model(out, "float32").model.layers[1].attn
    assert "scales" in found.g_lora.lora[2] and "scales" not in found.v_lora.lora[2]


def test_what_has_no_gradients_is_not_measured(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "source", config_of("deepseek_v41"))
    device = DeviceInfo("cpu", "D", 1 << 34, "float32", "")
    choose = bits.chooser(
        RunConfig(model={"quantize": "auto:4.5"}), device, lambda *_: SimpleNamespace(train=of_lengths([9]))
    )
    with pytest.raises(
        InputError, match=r"--quantize auto measures .* deepseek_v41 cannot be trained: .* --quantize 4\."
    ):
        choose(folder, 4.5)


def of_lengths(lengths: list[int]) -> Any:
    return FakeRows([np.ones(n, np.int32) for n in lengths], [np.ones(n, np.bool_) for n in lengths])


def test_what_is_measured_on() -> None:
    rows = of_lengths([50] * 1000)
    first, second = bits.drawn(rows, 0), bits.drawn(rows, 1)
    assert len(first) == len(set(first)) == 128
    assert first != second
    assert first == bits.drawn(rows, 0)
    assert len(bits.drawn(of_lengths([1000] * 40), 0)) == 8
    assert len(bits.drawn(of_lengths([20_000] * 4), 0)) == 1
    batches = list(bits._batches(rows, first, 256))
    assert sum(len(tokens) for tokens, _ in batches) == 128
    assert max(tokens.size for tokens, _ in batches) <= 256
