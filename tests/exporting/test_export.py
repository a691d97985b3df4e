"""The command and its targets in MLX: fused, merged, checked."""

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map
from mlx_lm.utils import load_model as mlx_lm_load

from mlxmath.config.schema import LoraConfig, ModelConfig
from mlxmath.errors import InputError, MlxmathError
from mlxmath.exporting.check import Answer, ModelAnswers, check
from mlxmath.exporting.files import one_tensor, write_tensors
from mlxmath.exporting.merge import Dense, parts_of
from mlxmath.exporting.mlx import LARGEST_SHARE, inputs_of, rounding_of
from mlxmath.exporting.original import Job, Original
from mlxmath.exporting.peft import shortest_ends
from mlxmath.models.load import load_model
from mlxmath.models.lora.adapter import adapter_config, save_config, save_weights
from mlxmath.models.lora.inject import open_blocks
from mlxmath.weights.architecture import Built
from mlxmath.weights.convert import convert, ensure_model
from mlxmath.weights.hub import open_weights
from mlxmath.weights.manifest import read_manifest
from mlxmath.weights.packing import Chosen, Packing
from mlxmath.weights.remade import remade
from tests.exporting.tuned import exported, logits_of, make_adapter
from tests.helpers import run, succeed
from tests.models import architectures

IDS = [1, 17, 33, 60, 5, 90, 41, 28, 77, 2, 9, 11, 54]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's model in 4 bits, and an adapter that moves its weights about as much as a step; not to be changed."""
    folder = tmp_path_factory.mktemp("packed")
    ensure_model(ModelConfig(model="demo", mlx_path=str(folder / "mlx_model"), quantize=4, group_size=32))
    make_adapter(folder / "adapters", folder / "mlx_model", std=0.06, rank=8, alpha=16)
    return folder


def tuned(folder: Path) -> Any:
    return Original(folder / "mlx_model", folder / "adapters", "float32").open().model


def test_fused_into_a_quantized_base_the_adapter_is_kept(packed: Path, tmp_path: Path) -> None:
    wanted = logits_of(tuned(packed), IDS)
    effect = np.abs(wanted - logits_of(load_model(packed / "mlx_model", "float32").model, IDS)).mean()
    lost, sizes = {}, {}
    for way in ("default", "dequantize", "requantize"):
        settings = {} if way == "default" else {way: True}
        found = exported(packed / "mlx_model", packed / "adapters", "mlx", tmp_path / way, **settings)
        theirs, _ = mlx_lm_load(tmp_path / way)
        theirs.set_dtype(mx.float32)
        lost[way] = np.abs(logits_of(theirs, IDS) - wanted).mean() / effect
        sizes[way] = (tmp_path / way / "model.safetensors").stat().st_size
        assert "weights of" in found.notes[0]
    assert lost["default"] < 0.15 and lost["dequantize"] < 0.01 and lost["requantize"] > 2 * lost["default"]
    assert sizes["requantize"] < sizes["default"] < sizes["dequantize"]
    assert "lost by this rounding" in found.notes[-1]


def test_fewest_bits_with_which_rounding_is_small(packed: Path) -> None:
    loaded = Original(packed / "mlx_model", packed / "adapters", "float32").load()
    parts = [part for part in parts_of(loaded).values() if part.adapter is not None]
    assert len(parts) > 6
    inputs = inputs_of(loaded.model, [IDS, IDS[:5]])
    assert {array.shape[0] for array in inputs.values()} == {len(IDS) + 5}
    before = logits_of(load_model(packed / "mlx_model", "float32").model, IDS)
    assert np.abs(logits_of(loaded.model, IDS) - before).max() > 0.1  # the adapters are in place again
    seen = set()
    for part in parts[:4]:
        rounding = rounding_of(part)
        base, wanted = part.base_weight(), part.weight()
        given = inputs[part.path]
        for values in (given, None):
            moved = (values @ (wanted - base).T) if values is not None else wanted - base
            assert rounding_of(part, values).moved == pytest.approx(float(mx.square(moved).sum()), rel=1e-4)
        assert rounding.bits in (4, 5, 6, 8, None)
        seen.add(rounding.bits)
        if rounding.bits:
            assert rounding.error <= LARGEST_SHARE**2 * rounding.moved
        assert rounding_of(part, given, requantize=True).bits == 4
    assert seen - {4}


def test_16_bits_that_are_too_coarse_are_said(packed: Path, tmp_path: Path) -> None:
    adapter = make_adapter(
        tmp_path / "adapters", packed / "mlx_model", std=1e-3, rank=8, alpha=16, targets=("*.o_proj",)
    )
    notes = exported(packed / "mlx_model", adapter, "mlx", tmp_path / "16").notes
    assert any("fused layers in float16: rounding changes" in note for note in notes)
    assert "float16 is too coarse for" in notes[-1] and "--export-dtype float32" in notes[-1]
    notes = exported(packed / "mlx_model", adapter, "mlx", tmp_path / "32", export_dtype="float32").notes
    assert "fused layers in float32" in notes[-1]


@pytest.mark.parametrize("is_packed", [False, True])
def test_an_unpacked_fused_model_is_the_original(
    debug_run: Path, packed: Path, tmp_path: Path, is_packed: bool
) -> None:
    model = packed / "mlx_model" if is_packed else debug_run / "mlx_model"
    adapter = make_adapter(tmp_path / "adapters", model, variant="dora", targets=("q_proj", "down_proj"))
    exported(model, adapter, "mlx", tmp_path / "mlx", export_dtype="float32", dequantize=is_packed)
    found = load_model(tmp_path / "mlx", "float32")
    wanted = logits_of(Original(model, adapter, "float32").open().model, IDS)
    assert "quantization" not in found.config
    np.testing.assert_allclose(logits_of(found.model, IDS), wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("to", ["hf", "mlx"])
def test_weights_whose_scales_are_no_floats(tmp_path: Path, to: str) -> None:
    """MLX's float forms: scales of 8 bits, out of which no type of the dense weights can be read."""
    model = tmp_path / "mlx_model"
    ensure_model(ModelConfig(model="demo", mlx_path=str(model), quantize="mxfp4"))
    adapter = make_adapter(tmp_path / "adapters", model)
    exported(model, adapter, to, tmp_path / to, **({"dequantize": True} if to == "mlx" else {}))
    wanted = logits_of(Original(model, adapter, "float32").open().model, IDS)
    assert {tensor.dtype for tensor in open_weights(tmp_path / to).tensors.values()} == {"float16"}
    np.testing.assert_allclose(logits_of(load_model(tmp_path / to, "float32").model, IDS), wanted, rtol=0, atol=0.05)


def test_the_command_writes_once_and_checks(debug_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    arguments = ("--to", "mlx", "--export-path", str(folder), "--check-problems", "4", "--check-tokens", "12")
    done = succeed(debug_run, "export", *arguments, "--check", "--check-accuracy")
    printed = json.loads(done.stdout)
    checked = printed["check"]
    assert printed["folder"] == str(folder) and checked["num_problems"] == 4 == checked["num_same"]
    assert checked["largest"] < 0.05 and checked["accuracy"]["fixed"] == 0
    assert "greedy answers: 4 of 4 are the same" in done.stderr and "right answers" in done.stderr
    assert json.loads((folder / "mlxmath_export.json").read_text())["check"] == checked
    assert (folder / "chat_template.jinja").read_text() == (debug_run / "adapters/chat_template.jinja").read_text()
    again = run(debug_run, "export", *arguments)
    assert again.returncode == 2 and "--overwrite" in again.stderr
    succeed(debug_run, "export", *arguments[:-4], "--overwrite")
    asked = succeed(debug_run, "infer", "--no-adapter", "--mlx-path", str(folder), "--prompt", "2 + 3?", "--json",
                    "--max-new-tokens", "8")  # fmt: skip
    assert json.loads(asked.stdout)["tokens"]


WRONG: dict[str, tuple[tuple[str, ...], str]] = {
    "no target": ((), "--to is missing"),
    "a foreign folder": (("--to", "hf", "--export-path", "mlx_model", "--overwrite"), "no export of mlxmath"),
    "a file": (("--to", "hf", "--export-path", "mlx_model/config.json"), "is a file"),
    "both ways": (("--to", "mlx", "--dequantize", "--requantize"), "not both"),
    "accuracy of no check": (("--to", "mlx", "--check-accuracy"), "needs --check"),
    "not its own": (("--to", "hf", "--requantize"), "--requantize has no meaning with --to hf"),
    "a type of GGUF's": (("--to", "hf", "--gguf-type", "q4_0"), "--gguf-type has no meaning with --to hf"),
    "a type of others": (
        ("--to", "gguf", "--export-dtype", "bfloat16"),
        "--export-dtype has no meaning with --to gguf",
    ),
    "no adapter at all": (("--to", "peft", "--no-adapter"), "an adapter is what is written"),
    "adapter and none": (("--to", "hf", "--no-adapter", "--adapter-path", "x"), "excludes"),
    "no such adapter": (("--to", "hf", "--adapter-path", "nowhere"), "nowhere holds no adapter"),
    "no such model": (("--to", "hf", "--mlx-path", "nowhere"), "nowhere is not a model folder"),
    "no such problems": (
        ("--to", "hf", "--check", "--check-benchmark", "gsm9k"),
        "--check-benchmark: there is no 'gsm9k'",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_be_is_one_line_and_leaves_nothing(prepared: Path, debug_run: Path, what: str) -> None:
    (prepared / "adapters").symlink_to(debug_run / "adapters")
    arguments, expected = WRONG[what]
    found = run(prepared, "export", *arguments)
    assert found.returncode in (1, 2) and expected in found.stderr, found.stderr
    assert "Traceback" not in found.stderr and not list(prepared.rglob("exported/*"))


def test_blocks_trained_whole_are_merged_and_no_adapter(prepared: Path) -> None:
    succeed(prepared, "train", "--debug", "--full", "--max-steps", "1", "--learning-rate", "1e-2")
    found = run(prepared, "export", "--to", "peft")
    assert found.returncode == 2 and "--full" in found.stderr
    succeed(prepared, "export", "--to", "hf", "--export-dtype", "float32")
    wanted = logits_of(Original(prepared / "mlx_model", prepared / "adapters", "float32").open().model, IDS)
    merged = logits_of(load_model(prepared / "exported/hf", "float32").model, IDS)
    np.testing.assert_allclose(merged, wanted, rtol=0, atol=1e-4)
    assert np.abs(merged - logits_of(load_model(prepared / "mlx_model", "float32").model, IDS)).max() > 0.01


def test_blocks_trained_whole_of_a_model_that_is_packed_elsewhere(tmp_path: Path) -> None:
    """A block in 16 bits of a model whose embedding is quantized."""
    model, adapter = tmp_path / "mlx_model", tmp_path / "adapters"
    chosen = Chosen({"model.embed_tokens": Packing(8, 32)}, "nothing")
    convert(ModelConfig(model="demo", mlx_path=str(model), quantize="auto:8"), lambda *_: chosen)
    loaded = load_model(model, "float32").model
    open_blocks(loaded, 1)
    loaded.apply_to_modules(lambda _, each: each.update(tree_map(lambda one: one * 1.2, each.trainable_parameters())))
    adapter.mkdir()
    save_config(adapter, adapter_config(LoraConfig(num_layers=1), (), full=True))
    save_weights(adapter / "adapters.safetensors", loaded)
    wanted = logits_of(Original(model, adapter, "float32").open().model, IDS)
    exported(model, adapter, "mlx", tmp_path / "mlx", export_dtype="float32")
    np.testing.assert_allclose(logits_of(load_model(tmp_path / "mlx", "float32").model, IDS), wanted, rtol=0, atol=1e-4)
    assert np.abs(wanted - logits_of(load_model(model, "float32").model, IDS)).max() > 0.01


class Other(ModelAnswers):
    """Answers something else to the first problem, and a little more to all."""

    def greedy(self, prompts: Any, max_tokens: int) -> list[Answer]:
        first, *rest = super().greedy(prompts, max_tokens)
        return [Answer(first.tokens, first.text + " and more"), *rest]

    def logprobs(self, prompt: Any, answer: Any) -> list[float]:
        return [value - 0.25 for value in super().logprobs(prompt, answer)]


def test_the_check_counts_what_differs(packed: Path) -> None:
    original = Original(packed / "mlx_model", packed / "adapters", "float32")
    settings = {"to": "mlx", "check_problems": 3, "check_tokens": 6}
    from mlxmath.config.methods import ExportConfig

    job = Job(original, ExportConfig(**settings), packed)
    found = check(job, lambda: Other(original.open()))
    assert found.num_same == 2 and found.largest == pytest.approx(0.25) == found.mean
    assert found.kept is not None and found.kept < 1 and found.num_changed


def test_several_files_and_values_beyond_float16(tmp_path: Path) -> None:
    tensors = [Dense(f"t{i}", (4, 8), "float32", lambda i=i: mx.full((4, 8), float(i))) for i in range(5)]  # type: ignore[misc]
    write_tensors(tmp_path, [one_tensor(each, "bfloat16") for each in tensors], form="pt", shard_bytes=128)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) == 3
    for name, file in index["weight_map"].items():
        assert mx.load(str(tmp_path / file))[name].tolist() == [[float(name[1:])] * 8] * 4
    for value, expected in ((7e4, "beyond the range of float16"), (float("nan"), "holds nan")):
        wrong = one_tensor(Dense("x", (1,), "float32", lambda value=value: mx.array([value])), "float16")  # type: ignore[misc]
        with pytest.raises(MlxmathError, match=expected):
            write_tensors(tmp_path, [wrong], form="pt")


@pytest.fixture(scope="module")
def rearranged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen 3.5 as Hugging Face has it, converted as it is and in 4 bits, with an adapter for each."""
    folder = tmp_path_factory.mktemp("rearranged")
    source = architectures.write("qwen3_5", folder)
    arrays = dict(mx.load(str(source / "model.safetensors")))
    mx.save_safetensors(
        str(source / "model.safetensors"),
        {
            name.replace("language_model.model", "model.language_model").removeprefix("language_model."): mx.contiguous(
                mx.moveaxis(array, 2, 1)
            )
            if "conv1d" in name
            else array
            for name, array in arrays.items()
        },
    )
    for name, settings in (("dense", {}), ("packed", {"quantize": 4, "group_size": 32})):
        ensure_model(ModelConfig(model=str(source), mlx_path=str(folder / name), **settings))
        make_adapter(folder / f"{name}-adapters", folder / name)
    return folder


@pytest.mark.parametrize("to", ["hf", "peft"])
def test_tensors_as_mlx_lm_makes_them_are_not_hugging_face_s(rearranged: Path, tmp_path: Path, to: str) -> None:
    exported(rearranged / "dense", rearranged / "dense-adapters", to, tmp_path / "whole")
    file, start = {"hf": ("model", "model"), "peft": ("adapter_model", "base_model.model.model")}[to]
    names = {name for name in mx.load(str(tmp_path / "whole" / f"{file}.safetensors")) if "lm_head" not in name}
    assert names and all(name.startswith(f"{start}.language_model.layers") or to == "hf" for name in names)
    if to == "hf":
        assert names < set(mx.load(str(rearranged / "qwen3_5" / "model.safetensors")))
    packed, adapter = rearranged / "packed", rearranged / "packed-adapters"
    with pytest.raises(InputError, match=rf"^--to {to}: .*language_model.model.* again without --quantize"):
        exported(packed, adapter, to, tmp_path / "out")
    before = tmp_path / "before"  # as an earlier version has converted it
    shutil.copytree(packed, before)
    read_manifest(before).model_copy(update={"remade": None}).write(before)
    with pytest.raises(InputError, match="nothing tells .* again with the same settings"):
        exported(before, adapter, to, tmp_path / "out")
    (before / "mlxmath.json").unlink()
    with pytest.raises(InputError, match="nothing tells .* convert Hugging Face's own"):
        exported(before, adapter, to, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    exported(packed, adapter, "mlx", tmp_path / "out")


def test_dense_tensors_that_mlx_lm_has_saved_are_not_taken_for_hugging_face_s(rearranged: Path, tmp_path: Path) -> None:
    model, _ = mlx_lm_load(rearranged / "qwen3_5")
    saved = tmp_path / "saved"
    shutil.copytree(rearranged / "qwen3_5", saved)
    mx.save_safetensors(
        str(saved / "model.safetensors"), dict(tree_flatten(model.parameters())), metadata={"format": "mlx"}
    )
    ensure_model(ModelConfig(model=str(saved), mlx_path=str(tmp_path / "dense")))
    assert read_manifest(tmp_path / "dense").remade is None and read_manifest(rearranged / "dense").remade == ()
    with pytest.raises(InputError, match="nothing tells .* convert Hugging Face's own"):
        exported(tmp_path / "dense", None, "hf", tmp_path / "out")


def test_layers_that_keep_their_names_are_peft_s(packed: Path, tmp_path: Path) -> None:
    """Whatever else mlx_lm makes of a model; and of a type of which it makes nothing an old record is enough."""
    base = tmp_path / "base"
    shutil.copytree(packed / "mlx_model", base)
    assert read_manifest(base).remade == ()
    read_manifest(base).model_copy(update={"remade": ("model.layers.#.input_layernorm.weight",)}).write(base)
    exported(base, packed / "adapters", "peft", tmp_path / "peft")
    with pytest.raises(InputError, match=r"--to hf: .*: model.layers.#.input_layernorm.weight\. Convert"):
        exported(base, packed / "adapters", "hf", tmp_path / "hf")
    read_manifest(base).model_copy(update={"remade": None}).write(base)
    exported(base, packed / "adapters", "hf", tmp_path / "hf")


@pytest.mark.parametrize(
    ("stored", "made", "expected"),
    [
        (["x.mlp.experts.0.up_proj.weight", "x.mlp.experts.1.up_proj.weight"], "x.mlp.switch_mlp.up_proj.weight", ()),
        (["m.block_sparse_moe.experts.0.w3.weight", "m.block_sparse_moe.experts.1.w3.weight"],
         "m.block_sparse_moe.switch_mlp.up_proj.weight", ()),
        (["x.3.mlp.experts.gate_up_proj"], "x.3.mlp.switch_mlp.up_proj.weight", ("x.#.mlp.switch_mlp.up_proj.weight",)),
        (["x.3.kv_b_proj.weight"], "x.3.embed_q.weight", ("x.#.embed_q.weight",)),
        (["x.q_proj.qweight"], "x.q_proj.scales", ()),
    ],
)  # fmt: skip
def test_what_exports_take_apart_is_not_remade(stored: list[str], made: str, expected: tuple[str, ...]) -> None:
    built = Built(
        None, {}, {"same": "same", "x.new": "x.old"}, {"same": 0, "x.new": 0, made: mx.zeros((2, 4))}, (), (), 0
    )
    assert set(remade(built, stored, {made})) == {"x.new", *expected}
    stacks = {made} if ".switch_" in made else {*expected}  # one that is not packed stays a stack
    assert set(remade(built, stored, ())) == {"x.new", *(name.replace(".3.", ".#.") for name in stacks)}


def test_layers_are_named_by_the_shortest_ends_that_mean_no_others() -> None:
    names = [f"model.layers.{i}.self_attn.q_proj" for i in range(2)]
    assert shortest_ends(names, {"model.layers.0.mlp.up_proj"}) == ["q_proj"]
    assert shortest_ends(names, {"vision.q_proj"}) == ["self_attn.q_proj"]
    assert shortest_ends(names[1:], set(names[:1])) == ["1.self_attn.q_proj"]
    assert shortest_ends(["lm_head"], {"model.x"}) == ["lm_head"]


def test_from_python(debug_run: Path, tmp_path: Path) -> None:
    import mlxmath

    found = mlxmath.export("peft", debug_run / "mlx_model", debug_run / "adapters", export_path=str(tmp_path / "p"))
    assert (found.folder / "adapter_model.safetensors").is_file() and found.checked is None
    with pytest.raises(InputError, match="to="):
        mlxmath.export("onnx", debug_run / "mlx_model")
