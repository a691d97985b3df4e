"""PEFT's folders taken in: what is written for PEFT comes back bit for bit; what does not fit is one clear error."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mlxmath.errors import MlxmathError
from mlxmath.models.load import load_model
from mlxmath.models.lora.adapter import load_adapter
from mlxmath.models.lora.inject import adapter_arrays
from mlxmath.models.lora.peft_experts import Pair, alpha_of, apart, written
from tests.exporting.tuned import exported, logits_of, make_adapter
from tests.helpers import run, succeed

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@pytest.fixture(scope="module")
def peft_folder(debug_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of rank 4, its PEFT form beside it; not to be changed."""
    folder = tmp_path_factory.mktemp("peft")
    make_adapter(folder / "adapters", debug_run / "mlx_model", targets=("q_proj", "v_proj"), std=0.2)
    exported(debug_run / "mlx_model", folder / "adapters", "peft", folder / "peft")
    return folder


def copied(peft_folder: Path, folder: Path) -> Path:
    (folder / "p").mkdir()
    for name in (CONFIG, WEIGHTS):
        (folder / "p" / name).write_bytes((peft_folder / "peft" / name).read_bytes())
    return folder / "p"


def change(folder: Path, **values: Any) -> None:
    record = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(record | values))


def loaded(model: Path, folder: Path) -> dict[str, np.ndarray]:
    found = load_model(model, "float32").model
    load_adapter(found, folder)
    return {name: np.array(array) for name, array in adapter_arrays(found).items()}


def test_back_bit_for_bit(debug_run: Path, peft_folder: Path) -> None:
    model = debug_run / "mlx_model"
    ours, theirs = (loaded(model, peft_folder / name) for name in ("adapters", "peft"))
    assert ours.keys() == theirs.keys() and len(ours) > 3
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_infer_and_evaluate_take_the_folder(debug_run: Path, peft_folder: Path) -> None:
    answers = []
    for name in ("adapters", "peft"):
        arguments = (
            "--adapter-path",
            str(peft_folder / name),
            "--max-new-tokens",
            "12",
            "--json",
            "--prompt",
            "2 + 3?",
        )
        answers.append(json.loads(succeed(debug_run, "infer", *arguments).stdout))
    assert answers[0]["tokens"] == answers[1]["tokens"] and answers[1]["template"] == "tutor"
    base = json.loads(succeed(debug_run, "infer", "--no-adapter", *arguments[2:]).stdout)
    assert base["tokens"] != answers[0]["tokens"]
    found = succeed(
        debug_run, "evaluate", "--adapter-path", str(peft_folder / "peft"), "--limit", "2", "--max-tokens", "4",
        "--results-path", str(peft_folder / "results"),
    )  # fmt: skip
    assert "results.json" in found.stdout


def test_a_run_starts_from_the_folder(prepared: Path, peft_folder: Path) -> None:
    started = []
    for name in ("adapters", "peft"):
        arguments = (
            "--debug", "--init-adapter", str(peft_folder / name), "--lora-rank", "4", "--lora-alpha", "12",
            "--max-steps", "1", "--learning-rate", "1e-9", "--adapter-path", f"from-{name}",
        )  # fmt: skip
        succeed(prepared, "train", *arguments)
        started.append(load_file(prepared / f"from-{name}" / "adapters.safetensors"))
    assert all(np.array_equal(array, started[1][name]) for name, array in started[0].items())
    wrong = run(prepared, "train", *[{"12": "16"}.get(each, each) for each in arguments[:-1]], "other")
    assert wrong.returncode == 2 and "scale" in wrong.stderr


def test_ranks_and_alphas_of_single_layers(debug_run: Path, peft_folder: Path, tmp_path: Path) -> None:
    folder = copied(peft_folder, tmp_path)
    tensors = load_file(folder / WEIGHTS)
    (first, *_) = sorted(name for name in tensors if "q_proj.lora_A" in name)
    second = first.replace("lora_A", "lora_B")
    tensors[first], tensors[second] = tensors[first][:2].copy(), tensors[second][:, :2].copy()
    save_file(tensors, folder / WEIGHTS)
    name = first.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
    change(folder, rank_pattern={name: 2}, alpha_pattern={f".*{name.rpartition('.layers.')[2]}": 5})
    model = load_model(debug_run / "mlx_model", "float32").model
    load_adapter(model, folder)
    layer = dict(model.named_modules())[name]
    assert layer.lora_a.shape[1] == 2 and layer.scale.item() == 2.5
    exported(debug_run / "mlx_model", folder, "peft", tmp_path / "again")
    written, again = (
        json.loads((tmp_path / "again" / CONFIG).read_text()),
        load_model(debug_run / "mlx_model", "float32").model,
    )
    assert (written["rank_pattern"], written["alpha_pattern"]) == ({name: 2}, {name: 5.0})
    load_adapter(again, tmp_path / "again")
    assert np.array_equal(logits_of(again, [1, 17, 33]), logits_of(model, [1, 17, 33]))


def bf16(folder: Path) -> None:
    arrays = mx.load(str(folder / WEIGHTS))
    mx.save_safetensors(str(folder / WEIGHTS), {name: array.astype(mx.bfloat16) for name, array in arrays.items()})


def test_sixteen_bits_become_float32(debug_run: Path, peft_folder: Path, tmp_path: Path) -> None:
    folder = copied(peft_folder, tmp_path)
    bf16(folder)
    found, whole = (loaded(debug_run / "mlx_model", each) for each in (folder, peft_folder / "peft"))
    assert all(array.dtype == np.float32 for array in found.values())
    assert all(np.allclose(array, whole[name], rtol=1e-2) for name, array in found.items())


def edited(edit: Callable[[dict[str, np.ndarray]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        edit(tensors)
        save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, folder / WEIGHTS)

    return damage


def first(tensors: dict[str, np.ndarray]) -> str:
    return min(tensors)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "another method": (lambda folder: change(folder, peft_type="IA3"), "peft_type is 'IA3'"),
    "another task": (lambda folder: change(folder, task_type="SEQ_CLS"), "task_type is 'SEQ_CLS'"),
    "whole layers": (lambda folder: change(folder, modules_to_save=["lm_head"]), "modules_to_save"),
    "biases": (lambda folder: change(folder, bias="all"), "bias is 'all'"),
    "a bias of B": (lambda folder: change(folder, lora_bias=True), "lora_bias is True"),
    "another base": (lambda folder: change(folder, init_lora_weights="pissa_niter_4"), "init_lora_weights"),
    "an unknown key": (lambda folder: change(folder, use_new_thing=True), "use_new_thing is True"),
    "no rank": (lambda folder: change(folder, r="8"), "r is '8': expected a number"),
    "half a rank": (lambda folder: change(folder, r=1.5), "r is 1.5: expected a whole number"),
    "no alpha": (lambda folder: change(folder, lora_alpha=None), "lora_alpha is None"),
    "infinite alpha": (lambda folder: change(folder, lora_alpha=float("inf")), "lora_alpha is inf"),
    "a pattern that takes for ever": (
        lambda folder: change(folder, rank_pattern={"(.*.*)*x": 4}), "rank_pattern is '(.*.*)*x': expected names"),
    "no list": (lambda folder: change(folder, target_parameters="x"), "target_parameters is 'x'"),
    "no table": (lambda folder: (folder / CONFIG).write_text("[1]"), "expected a table"),
    "no JSON": (lambda folder: (folder / CONFIG).write_text("{"), "not readable JSON"),
    "DoRA without magnitudes": (lambda folder: change(folder, use_dora=True), "lora_magnitude_vector is missing"),
    "another rank": (lambda folder: change(folder, r=3), "has shape (4, "),
    "no configuration": (lambda folder: (folder / CONFIG).unlink(), "adapter_config.json is missing"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), "adapter_model.safetensors is missing"),
    "a truncated file": (
        lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-9]), "is truncated"),
    "no safetensors": (lambda folder: (folder / WEIGHTS).write_bytes(b"x" * 100), WEIGHTS),
    "a missing tensor": (edited(lambda tensors: tensors.pop(first(tensors))), "lora_A is missing"),
    "another layer": (
        edited(lambda tensors: tensors.update(
            {first(tensors).replace(".layers.0.", ".layers.99."): tensors[first(tensors)]})),
        "layers.99.self_attn.q_proj is no linear layer of this model"),
    "an embedding": (
        edited(lambda tensors: tensors.update({"base_model.model.model.embed_tokens.lora_embedding_A": np.ones(2)})),
        "is no part of a LoRA adapter"),
    "other numbers": (
        edited(lambda tensors: tensors.update({first(tensors): tensors[first(tensors)].astype(np.int32)})),
        "expected floating-point numbers"),
    "NaN": (edited(lambda tensors: tensors[first(tensors)].fill(np.nan)), "holds nan"),
    "nothing": (edited(dict.clear), "there is no tensor"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_and_strange_ones_are_one_clear_error(
    debug_run: Path, peft_folder: Path, tmp_path: Path, damage: str
) -> None:
    folder = copied(peft_folder, tmp_path)
    do, expected = DAMAGES[damage]
    do(folder)
    with pytest.raises(MlxmathError) as found:
        load_adapter(load_model(debug_run / "mlx_model", "float32", lazy=True).model, folder)
    assert expected in str(found.value) and str(folder) in str(found.value) and "\n" not in str(found.value)


def test_an_adapter_of_another_base_is_refused(debug_run: Path, peft_folder: Path) -> None:
    model = load_model(debug_run / "mlx_model", "float32", lazy=True).model
    with pytest.raises(MlxmathError, match="was trained on another base model"):
        load_adapter(model, peft_folder / "peft", "0123456789abcdef")


@pytest.mark.parametrize("names", [("gate_proj", "up_proj", "down_proj"), ("up_proj",), ("gate_proj", "down_proj")])
def test_experts_are_split_as_they_were_joined(names: tuple[str, ...]) -> None:
    mx.random.seed(1)
    sizes = {"gate_proj": (6, 5), "up_proj": (6, 5), "down_proj": (5, 6)}
    pairs = {
        f"model.layers.1.mlp.switch_mlp.{name}": Pair(
            mx.random.normal((3, 2, sizes[name][1])), mx.random.normal((3, sizes[name][0], 2))
        )
        for name in names
    }
    found = written(pairs, 2, 1.5, is_rslora=True)
    home = "model.layers.1.mlp.experts"
    back = {}
    for part in ("gate_up_proj", "down_proj"):
        if f"{home}.{part}" in found.parameters:
            inner = f"{home}.base_layer" if part == "gate_up_proj" and len(found.parameters) == 2 else home
            back |= apart(part, *(found.tensors[f"{inner}.lora_{x}.weight"] for x in "AB"), 3)
    assert back.keys() == set(names)
    for path, pair in pairs.items():
        for ours, theirs in zip(pair, back[path.rpartition(".")[2]], strict=True):
            assert mx.array_equal(ours, theirs).item()


def test_alpha_gives_the_scale() -> None:
    """To the last bit where it came of an alpha; else as float32, in which adapters hold it."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        alpha, rank = float(rng.integers(1, 2000)) / 4, int(rng.integers(1, 300))
        for divisor, is_rslora in ((rank, False), (float(np.sqrt(rank)), True)):
            assert alpha_of(alpha / divisor, rank, is_rslora=is_rslora) / divisor == alpha / divisor
            scale = float(rng.uniform(0.01, 20))
            assert np.float32(alpha_of(scale, rank, is_rslora=is_rslora) / divisor) == np.float32(scale)
