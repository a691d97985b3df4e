"""Exported GGUF files against the merged model, in gguf's own reader and in llama.cpp."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gguf
import mlx.core as mx
import numpy as np
import pytest

from mlxmath.config.schema import ModelConfig
from mlxmath.data.templates import get_template
from mlxmath.errors import InputError, MlxmathError
from mlxmath.exporting import llama_cpp
from mlxmath.exporting.gguf_metadata import describe, read_config
from mlxmath.exporting.gguf_types import quantized, type_of
from mlxmath.exporting.go_template import Message
from mlxmath.exporting.longrope import with_long_factors
from mlxmath.exporting.merge import merged_tensors
from mlxmath.exporting.ollama import go_template, modelfile
from mlxmath.exporting.original import Original
from mlxmath.generation.model import load_generation_tokenizer
from mlxmath.weights.configuration import GEMMA3_TEXT, translate
from mlxmath.weights.convert import ensure_model
from mlxmath.weights.rotary import LONG_FACTORS
from tests.data.chat_templates import CHATML
from tests.exporting.tuned import exported, make_adapter
from tests.llama_cpp import LlamaCpp
from tests.weights.gguf_models import llama_gguf, stored_tensors

Kind = gguf.GGMLQuantizationType
TEXT = "Tom has 12 pens.\n\nHe buys  $3.50 more: the \\frac{1}{2} théâtre 中 <|im_end|>\n"


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with GPT-2's tokenizer on bytes, and an adapter on all its layers; not to be changed."""
    folder = tmp_path_factory.mktemp("tuned")
    llama_gguf(folder / "base.gguf", tied=False)
    ensure_model(ModelConfig(model=str(folder / "base.gguf"), mlx_path=str(folder / "mlx_model")))
    make_adapter(folder / "adapters", folder / "mlx_model")
    make_adapter(folder / "dora", folder / "mlx_model", variant="dora")
    return folder


@pytest.fixture(scope="module")
def written(tuned: Path) -> Path:
    """Its export in 16 bits."""
    exported(tuned / "mlx_model", tuned / "adapters", "gguf", tuned / "f16")
    return tuned / "f16" / "model-f16.gguf"


def original(folder: Path, adapter: str = "adapters") -> Original:
    return Original(folder / "mlx_model", folder / adapter, "float32")


def entries(path: Path) -> dict[str, Any]:
    """The metadata of a file."""
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


def merged_state(folder: Path, adapter: str = "adapters") -> dict[str, np.ndarray]:
    """The merged weights, by Hugging Face's names."""
    source = original(folder, adapter)
    return {each.name: np.array(each.make()) for each in merged_tensors(source.load(), source.model)}


@pytest.mark.parametrize("adapter", ["adapters", "dora"])
def test_tensors_are_the_merged_ones(tuned: Path, tmp_path: Path, adapter: str) -> None:
    exported(tuned / "mlx_model", tuned / adapter, "gguf", tmp_path / "out")
    found = {each.name: each for each in gguf.GGUFReader(tmp_path / "out" / "model-f16.gguf").tensors}
    wanted = stored_tensors("llama", merged_state(tuned, adapter), 2, (4, 2))
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert found[name].tensor_type == (Kind.F16 if array.ndim > 1 else Kind.F32)
        np.testing.assert_array_equal(found[name].data, array.astype(found[name].data.dtype))


@pytest.mark.parametrize("kind", ["bf16", "q8_0", "q4_0"])
def test_other_types_are_gguf_s_own(tuned: Path, tmp_path: Path, kind: str) -> None:
    exported(tuned / "mlx_model", tuned / "adapters", "gguf", tmp_path / "out", gguf_type=kind)
    found = {each.name: each for each in gguf.GGUFReader(tmp_path / "out" / f"model-{kind}.gguf").tensors}
    for name, array in stored_tensors("llama", merged_state(tuned), 2, (4, 2)).items():
        if array.ndim > 1:
            chosen = Kind.Q8_0 if name == "output.weight" and kind == "q4_0" else Kind[kind.upper()]
            assert found[name].tensor_type == chosen
            np.testing.assert_array_equal(found[name].data, gguf.quants.quantize(array, chosen))


def test_types_are_those_of_llama_cpp_s_quantizer() -> None:
    def types(gguf_type: str, width: int, names: Sequence[str], *, is_tied: bool = False) -> list[str]:
        return [type_of(name, (8, width), gguf_type, is_tied=is_tied, num_blocks=16).name for name in names]

    heads = ["token_embd.weight", "output.weight", "blk.5.ffn_up.weight"]
    assert types("q4_k_m", 512, heads) == ["Q4_K", "Q6_K", "Q4_K"]
    assert types("q4_0", 512, heads[::2], is_tied=True) == ["Q6_K", "Q4_0"]
    assert types("q4_k_m", 576, heads) == ["Q5_0", "Q8_0", "Q5_0"]  # no multiple of 256
    assert types("q8_0", 40, heads) == ["F16"] * 3
    down = [f"blk.{number}.ffn_down.weight" for number in range(16)]
    better = {0, 1, 4, 7, 10, 13, 14, 15}  # use_more_bits: the first and last eighth, and every third between
    assert types("q4_k_m", 512, down) == ["Q6_K" if number in better else "Q4_K" for number in range(16)]
    assert type_of("blk.0.ffn_gate_inp.weight", (8, 512), "q4_0", is_tied=False, num_blocks=1) == Kind.F32
    assert type_of("blk.0.attn_norm.weight", (512,), "q4_0", is_tied=False, num_blocks=1) == Kind.F32


def test_metadata(tuned: Path, written: Path) -> None:
    found = entries(written)
    before = entries(tuned / "base.gguf")
    same = [name for name in before if name.startswith(("llama.", "tokenizer.ggml.")) and name != "llama.vocab_size"]
    same.remove("tokenizer.ggml.token_type")
    assert found["tokenizer.ggml.token_type"][:261] == before["tokenizer.ggml.token_type"][:261]
    assert {name: found[name] for name in same} == {name: before[name] for name in same}
    template = get_template("tutor")
    assert found["tokenizer.chat_template"] == template.chat_template(bos=False)
    assert found["general.architecture"] == "llama"
    assert found["general.file_type"] == gguf.LlamaFileType.MOSTLY_F16
    assert not found["tokenizer.ggml.add_bos_token"]


def test_llama_cpp_gives_our_logits(tuned: Path, written: Path) -> None:
    opened = original(tuned).open()
    ids = opened.encode(TEXT)[:200]
    wanted = np.array(opened.model(mx.array([ids]))[0])
    with LlamaCpp(written) as theirs:
        assert theirs.tokenize(opened.template.prompt(TEXT)[0].text.replace("<|im_end|>", "")) == opened.encode(
            TEXT.replace("<|im_end|>", "")
        )
        assert np.abs(theirs.logits(ids) - wanted).max() <= 5e-3 * np.abs(wanted).max()  # its cache is float16
        assert theirs.end_tokens >= {260}


def test_check_asks_llama_cpp(tuned: Path, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    problems = tmp_path / "problems.jsonl"
    problems.write_text("".join(json.dumps({"question": f"{n} + 1?", "answer": str(n + 1)}) + "\n" for n in range(4)))
    found = exported(
        tuned / "mlx_model", tuned / "adapters", "gguf", tmp_path / "out", check=True, check_problems=4,
        check_tokens=16, check_benchmark=str(problems),
    ).checked  # fmt: skip
    assert found is not None
    assert found.num_problems == 4
    assert 4 <= found.num_tokens <= 64
    assert found.largest < 0.02
    assert found.num_same == 4


def test_logprobs_of_a_text_that_llama_cpp_would_not_write(tuned: Path, written: Path) -> None:
    pytest.importorskip("xllamacpp")
    opened = original(tuned).open()
    prompt, answer = opened.encode("1 + 1?"), [7, 250, 31, 32, 260, 9]
    model = llama_cpp.LlamaCpp(written, opened.tokenizer.decode, [260], 256)
    logits_TV = np.array(opened.model(mx.array([[*prompt, *answer]]))[0]).astype(np.float64)
    logprobs_TV = logits_TV - np.log(np.exp(logits_TV).sum(axis=1, keepdims=True))
    wanted = [logprobs_TV[len(prompt) + place - 1, token] for place, token in enumerate(answer)]
    np.testing.assert_allclose(model.logprobs(prompt, answer), wanted, atol=0.02)
    with pytest.raises(MlxmathError, match="does not load"):
        llama_cpp.LlamaCpp(tuned / "none.gguf", str, [], 256)


def test_the_adapter_alone(tuned: Path, tmp_path: Path) -> None:
    exported(tuned / "mlx_model", tuned / "adapters", "gguf", tmp_path / "out", adapter_only=True)
    path = tmp_path / "out" / "adapter.gguf"
    assert entries(path)["adapter.lora.alpha"] == 12.0
    arrays = {each.name: each.data for each in gguf.GGUFReader(path).tensors}
    base = stored_tensors("llama", _base_state(tuned), 2, (4, 2))
    merged = stored_tensors("llama", merged_state(tuned), 2, (4, 2))
    for name, array in merged.items():  # alpha / rank = 3
        low, high = arrays.get(f"{name}.lora_a"), arrays.get(f"{name}.lora_b")
        assert (low is not None) == name.startswith("blk.") * (array.ndim > 1)
        if low is not None:
            np.testing.assert_allclose(base[name] + 3 * high @ low, array, atol=1e-5)
    xllamacpp = pytest.importorskip("xllamacpp")
    settings = xllamacpp.CommonParams()
    settings.model.path, settings.n_ctx, settings.warmup, settings.verbosity = str(tuned / "base.gguf"), 256, False, 0
    settings.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(path), 1.0)]
    opened = original(tuned).open()
    model = llama_cpp.LlamaCpp.__new__(llama_cpp.LlamaCpp)
    model._server, model._ends = xllamacpp.Server(settings), ()
    prompt = opened.encode("1 + 1?")
    logits = np.array(opened.model(mx.array([prompt]))[0, -1]).astype(np.float64)
    _, ((token, logprob, _),) = model._ask(prompt, 1)
    assert token == logits.argmax()
    assert abs(logprob - (logits.max() - np.log(np.exp(logits).sum()))) < 0.02


def _base_state(folder: Path) -> dict[str, np.ndarray]:
    source = Original(folder / "mlx_model", None, "float32")
    return {each.name: np.array(each.make()) for each in merged_tensors(source.load(), source.model)}


def test_ollama(tuned: Path, tmp_path: Path, go: Callable[[str, Sequence[Sequence[Message]]], list[str]]) -> None:
    exported(tuned / "mlx_model", tuned / "adapters", "ollama", tmp_path / "out", gguf_type="q8_0")
    text = (tmp_path / "out" / "Modelfile").read_text()
    assert text.startswith("FROM ./model-q8_0.gguf\n")
    assert 'PARAMETER stop """<|im_end|>"""' in text
    template = text.partition('TEMPLATE """')[2].partition('"""')[0]
    questions = [f"Tom has {n} pens {{{{ x }}}}.\n  How many \"are\" {n * n} & 'more'? " for n in range(50)]
    ours = ["".join(part.text for part in original(tuned).template.prompt(each)) for each in questions]
    assert go(template, [[{"role": "user", "content": each}] for each in questions]) == ours


def test_a_modelfile_holds_the_system_message_and_stop_texts(tuned: Path, tmp_path: Path) -> None:
    spec = {"prompt": "{question}", "chat": True, "system": 'Say "42".', "stop": ["\nQ:", "###"]}
    record = json.loads((tuned / "adapters" / "adapter_config.json").read_text())
    folder = tmp_path / "adapters"
    folder.mkdir()
    record |= {"template": "own", "template_definition": {**spec, "completion": "{solution}"}}
    (folder / "adapter_config.json").write_text(json.dumps(record))
    (folder / "adapters.safetensors").write_bytes((tuned / "adapters" / "adapters.safetensors").read_bytes())
    chat_template = tuned / "mlx_model" / "chat_template.jinja"
    chat_template.write_text(CHATML)
    try:
        source = Original(tuned / "mlx_model", folder, "float32")
        text = modelfile(source, "x.gguf", go_template(source))
        tokenizer = load_generation_tokenizer(tuned / "mlx_model", source.template)
    finally:
        chat_template.unlink()
    assert '\nSYSTEM """Say "42"."""\n' in text
    assert '\nPARAMETER stop """\nQ:"""\n' in text
    assert '\nPARAMETER stop """###"""\n' in text
    assert source.template.stop == "<|im_end|>"
    assert tokenizer.eos_token_ids


@pytest.mark.parametrize(
    ("settings", "adapter", "why"),
    [
        ({"adapter_only": True}, "dora", "DoRA adapters are not written"),
        ({"adapter_only": True}, None, "there is none"),
        ({"adapter_only": True, "gguf_type": "q8_0"}, "adapters", "an adapter is not quantized"),
        ({"to": "ollama", "adapter_only": True}, "adapters", "no meaning with --to ollama"),
        ({"dequantize": True}, "adapters", "no meaning with --to gguf"),
    ],
)
def test_refused_settings(tuned: Path, tmp_path: Path, settings: dict[str, Any], adapter: str | None, why: str) -> None:
    given = dict(settings)
    with pytest.raises(InputError, match=why):
        exported(
            tuned / "mlx_model",
            tuned / adapter if adapter else None,
            given.pop("to", "gguf"),
            tmp_path / "out",
            **given,
        )
    assert not (tmp_path / "out").exists()


def test_a_check_needs_llama_cpp(tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_cpp, "PACKAGE", "no_such_package_of_llama_cpp")
    with pytest.raises(InputError, match="pip install"):
        exported(tuned / "mlx_model", tuned / "adapters", "gguf", tmp_path / "out", check=True)


def test_the_demo_s_tokenizer_is_refused(tmp_path: Path) -> None:
    ensure_model(ModelConfig(model="demo", mlx_path=str(tmp_path / "mlx_model")))
    with pytest.raises(InputError, match="cuts text in a way"):
        exported(tmp_path / "mlx_model", None, "gguf", tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"model_type": "gpt_neox"}, "type gpt_neox"),
        ({"hidden_act": "gelu"}, "hidden_act is gelu"),
        ({"rope_theta": None}, "rope_theta"),
        ({"model_type": "qwen2", "use_sliding_window": True}, "sliding window"),
        ({"model_type": "qwen3", "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "scaled by dynamic"),
        ({"model_type": "gemma3_text", "query_pre_attn_scalar": 100}, "query_pre_attn_scalar is 100"),
    ],
)
def test_models_that_llama_cpp_cannot_be_told_are_refused(changes: dict[str, Any], why: str) -> None:
    config = {
        "model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2,
        "intermediate_size": 96, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
        "sliding_window": 8,
    }  # fmt: skip
    with pytest.raises(InputError, match=why):
        describe({name: value for name, value in {**config, **changes}.items() if value is not None})


def test_longrope_keeps_its_factors_for_long_texts(tmp_path: Path) -> None:
    rope = {"type": "longrope", "short_factor": [1.0, 1.5], "long_factor": [3.0, 7.0]}
    source = {
        "model_type": "phi3", "hidden_size": 16, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 32,
        "intermediate_size": 96, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
        "max_position_embeddings": 131072, "original_max_position_embeddings": 4096, "rope_scaling": rope,
    }  # fmt: skip
    first = translate(source)
    assert first.config["rope_scaling"]["long_factor"] == [1.0, 1.5] and [each.tokens for each in first.limits] == [
        4096
    ]
    assert translate(first.config) == first  # a converted model that is converted
    scale = np.sqrt(1 + np.log(32) / np.log(4096))
    kept = describe(first.config)
    assert kept.tensors["rope_factors_long.weight"].tolist() == [3.0, 7.0] and not kept.notes
    assert kept.tensors["rope_factors_short.weight"].tolist() == [1.0, 1.5]
    assert kept.metadata["context_length"] == 131072
    config, notes = with_long_factors({"text_config": first.config})
    assert config["text_config"]["rope_scaling"]["long_factor"] == [3.0, 7.0] and not notes
    assert not [name for name in config["text_config"] if "mlxmath" in name]

    before = {name: value for name, value in first.config.items() if name != LONG_FACTORS}
    lost = describe(before)
    assert lost.metadata["context_length"] == lost.metadata["rope.scaling.original_context_length"] == 4096
    assert "its context is written as that" in lost.notes[0] and "4,096 tokens" in lost.notes[0]
    for each in (kept, lost):
        assert each.metadata["rope.scaling.attn_factor"] == pytest.approx(scale)


SPARSE = {
    "model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"], "vision_config": {},
    "text_config": {
        "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024,
    },
}  # fmt: skip
"""As Google's Gemma 3 4B says it."""


def test_what_a_text_config_leaves_to_transformers_class(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(translate(SPARSE).config))
    assert describe(read_config(tmp_path)).metadata == {
        "context_length": 131072, "embedding_length": 2560, "block_count": 34, "feed_forward_length": 10240,
        "attention.head_count": 8, "attention.head_count_kv": 4, "attention.key_length": 256,
        "attention.value_length": 256, "attention.layer_norm_rms_epsilon": 1e-6, "rope.dimension_count": 256,
        "rope.freq_base": 1e6, "rope.freq_base_swa": 1e4, "rope.scaling.type": "linear", "rope.scaling.factor": 8.0,
        "attention.sliding_window": 1024,
    }  # fmt: skip


def test_defaults_of_gemma_3_are_transformers_and_what_mlx_lm_builds() -> None:
    from mlx_lm.models import gemma3, gemma3_text
    from transformers.models.gemma3.configuration_gemma3 import Gemma3TextConfig

    theirs = Gemma3TextConfig().to_dict()
    rope = theirs["rope_parameters"]
    theirs |= {
        "rope_theta": rope["full_attention"]["rope_theta"],
        "rope_local_base_freq": rope["sliding_attention"]["rope_theta"],
    }
    assert dict(GEMMA3_TEXT) == {name: theirs[name] for name in GEMMA3_TEXT}
    inner = {name: value for name, value in SPARSE["text_config"].items() if name != "sliding_window"}
    built = gemma3.ModelArgs.from_dict(translate({**SPARSE, "text_config": inner}).config).text_config
    found = vars(gemma3_text.ModelArgs.from_dict(built))
    length = "max_position_embeddings"  # which it does not look at
    assert {**found, length: 131072} == {**found, **GEMMA3_TEXT}


def test_values_that_do_not_fit() -> None:
    with pytest.raises(MlxmathError, match="--gguf-type bf16"):
        quantized(np.array([[1e5]], np.float32), Kind.F16, "blk.0.attn_q.weight")
    with pytest.raises(MlxmathError, match="no finite numbers"):
        quantized(np.array([[np.nan]], np.float32), Kind.Q8_0, "blk.0.attn_q.weight")
