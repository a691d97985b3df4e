"""Loading: types, memory, errors that help, ids that have no embedding, weights that cannot be anybody's."""

import gc
import json
import re
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlxmath.config.schema import ModelConfig
from mlxmath.errors import MlxmathError
from mlxmath.generation.engine import Sampling, generate_batch, stream
from mlxmath.models.load import check_finite, load_model, num_embeddings, token_embedding
from mlxmath.models.served import Served, to_be_tried
from mlxmath.weights.convert import ensure_model
from tests.conftest import make_tiny_llama
from tests.models.architectures import write
from tests.weights.handmade import LLAMA, llama_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A converted model of 96 words."""
    source = llama_folder(tmp_path / "source")
    ensure_model(ModelConfig(model=str(source), mlx_path=str(tmp_path / "out")))
    return tmp_path / "out"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("lazy", [False, True])
def test_a_model_keeps_what_it_keeps_out_of_casts(tmp_path: Path, dtype: str, lazy: bool) -> None:
    """The bias of glm4_moe's routers is one that mlx_lm keeps in float32."""
    source = write("glm4_moe", tmp_path)
    ensure_model(ModelConfig(model=str(source), mlx_path=str(tmp_path / "out"), dtype="float16"))
    for folder in (source, tmp_path / "out"):
        model = load_model(folder, dtype, lazy=lazy).model
        kept = {name: array.dtype for name, array in tree_flatten(model.parameters()) if "correction" in name}
        assert set(kept.values()) == {mx.float32}
        others = {array.dtype for name, array in tree_flatten(model.parameters()) if "correction" not in name}
        assert others == {getattr(mx, dtype)}


def test_weights_go_with_their_model(folder: Path) -> None:
    """Not when Python next looks for cycles, which with few objects is never: two models would be in memory."""
    load_model(folder, "float32")  # what is made once is made
    gc.collect()
    before = mx.get_active_memory()
    gc.disable()
    try:
        model = load_model(folder, "float32").model
        assert mx.get_active_memory() > before
        del model
        assert mx.get_active_memory() == before
    finally:
        gc.enable()


def test_all_that_does_not_fit_is_named(folder: Path) -> None:
    weights = mx.load(str(folder / "model.safetensors"))
    del weights["model.norm.weight"], weights["model.layers.0.mlp.up_proj.weight"]
    weights["model.layers.0.mlp.router.weight"] = mx.zeros((2, 2))
    weights["model.layers.1.mlp.up_proj.weight"] = mx.zeros((64, 64))
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    with pytest.raises(MlxmathError) as caught:
        load_model(folder, "float32")
    said = str(caught.value)
    assert re.search(r"missing \(2\): model\.layers\.0\.mlp\.up_proj\.weight, model\.norm\.weight", said)
    assert "unknown to the model (1): model.layers.0.mlp.router.weight" in said
    assert "model.layers.1.mlp.up_proj.weight (64, 64) instead of (128, 64)" in said
    assert "It was changed after it was made" in said  # here it helps to make it again
    assert "--overwrite" in said


def test_what_would_not_help_is_not_advised(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    del config["rms_norm_eps"]
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mlxmath.json").unlink()
    with pytest.raises(MlxmathError, match=r"config\.json lacks rms_norm_eps.*made by another program") as caught:
        load_model(folder, "float32")
    assert "--overwrite" not in str(caught.value)


def test_sizes_that_the_weights_do_not_bear_out(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(LLAMA | {"num_hidden_layers": 10**7}))
    with pytest.raises(MlxmathError, match=r"num_hidden_layers 10000000, but the weights are 21 tensors"):
        load_model(folder, "float32")


def test_weights_that_are_not_converted(tmp_path: Path) -> None:
    with pytest.raises(MlxmathError, match="not converted yet"):
        load_model(llama_folder(tmp_path / "source"), "float32")


def test_the_model_is_mlx_lms(folder: Path) -> None:
    from mlx_lm.models.llama import Model

    assert type(load_model(folder, "float32").model) is Model


class NoTokenizer:
    eos_token_ids = frozenset({0})


class TestIds:
    def test_prompts(self) -> None:
        """The embedding has 64 rows; reading beyond it takes whatever lies there."""
        model = make_tiny_llama()
        assert num_embeddings(model) == 64
        said = r"has the token id 64, but the embedding ends at 63.*tokenizer"
        with pytest.raises(MlxmathError, match=said):
            generate_batch(model, NoTokenizer(), [[5, 6], [5, 64]], Sampling(2, 0.0))  # type: ignore[arg-type]
        with pytest.raises(MlxmathError, match=said):
            list(stream(model, NoTokenizer(), [64], Sampling(2, 0.0)))  # type: ignore[arg-type]

    def test_positions_are_no_words(self) -> None:
        from mlx_lm.models.gpt2 import Model, ModelArgs

        sizes = {"n_ctx": 512, "n_embd": 32, "n_head": 4, "n_layer": 1, "n_positions": 512, "vocab_size": 40}
        model = Model(ModelArgs(model_type="gpt2", layer_norm_epsilon=1e-5, **sizes))
        assert num_embeddings(model) == 40

    def test_tables_of_blocks_and_of_several_tokens_are_no_words(self) -> None:
        from mlx_lm.models.gemma4_text import Model, ModelArgs
        from mlx_lm.models.longcat_flash_ngram import ModelArgs as NgramArgs
        from mlx_lm.models.longcat_flash_ngram import NgramEmbedding

        sizes: dict[str, Any] = {
            "hidden_size": 32, "num_hidden_layers": 5, "intermediate_size": 32, "num_attention_heads": 2,
            "num_key_value_heads": 1, "num_kv_shared_layers": 0, "head_dim": 16, "global_head_dim": 16,
            "vocab_size": 64, "vocab_size_per_layer_input": 64, "hidden_size_per_layer_input": 8,
        }  # fmt: skip
        model = Model(ModelArgs(model_type="gemma4_text", **sizes))
        assert token_embedding(model) is model.model.embed_tokens
        fields = dict.fromkeys(NgramArgs.__dataclass_fields__, 1) | {"vocab_size": 40, "hidden_size": 24}
        ngrams = NgramEmbedding(NgramArgs(**fields | {"emb_neighbor_num": 4, "emb_split_num": 4}))
        assert token_embedding(ngrams) is ngrams.word_embeddings and num_embeddings(ngrams) == 40

    def test_of_a_quantized_model(self, tmp_path: Path) -> None:
        source = llama_folder(tmp_path / "source")
        ensure_model(ModelConfig(model=str(source), mlx_path=str(tmp_path / "out"), quantize=4))
        assert num_embeddings(load_model(tmp_path / "out", "float32").model) == 96


def test_logits_are_those_of_mlx_lm(folder: Path) -> None:
    from mlx_lm.utils import load_model as mlx_lm_load_model

    theirs, _ = mlx_lm_load_model(folder)
    theirs.set_dtype(mx.float32)
    tokens = mx.array([[1, 5, 9]])
    np.testing.assert_allclose(
        np.array(load_model(folder, "float32").model(tokens)), np.array(theirs(tokens)), rtol=1e-5, atol=1e-6
    )


def test_nothing_is_kept_of_weights_that_were_not_there_yet(tmp_path: Path) -> None:
    """Kimi K3 makes products of weights when it first answers, and none anew."""
    from mlx_lm.utils import load_model as mlx_lm_load_model

    folder, tokens = write("kimi_k3", tmp_path), mx.array([[3, 1, 4, 1, 5, 9, 2, 6]])
    expected = np.array(mlx_lm_load_model(folder)[0](tokens))
    np.testing.assert_allclose(np.array(load_model(folder, "float32").model(tokens)), expected, atol=1e-4)
    served = Served(folder, "float32")
    with to_be_tried(served.model):
        served.model(tokens)
    np.testing.assert_allclose(np.array(served.model(tokens)), expected[:, -1:], atol=1e-4)
    served.close()


NAME = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 1e38])
def test_a_base_with_a_weight_that_is_none_does_not_load(tmp_path: Path, value: float) -> None:
    folder = write("llama", tmp_path)
    load_model(folder, "float32")
    arrays = mx.load(str(folder / "model.safetensors"))
    mx.eval(arrays)
    arrays[NAME][-1, -1] = value
    mx.save_safetensors(str(folder / "model.safetensors"), arrays, metadata={"format": "mlx"})
    with pytest.raises(MlxmathError, match=rf"llama is damaged or its training diverged: {NAME} holds"):
        load_model(folder, "float32")


def test_every_part_is_looked_at_and_whole_numbers_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlxmath.models.load._AT_A_TIME", 7)
    arrays = {"a": mx.zeros((5, 5)), "packed": mx.full((3,), 2**32 - 1, mx.uint32), "empty": mx.zeros((0,))}
    check_finite(Path("x"), arrays)
    for place in range(25):
        flat = [0.0] * 25
        flat[place] = float("nan")
        with pytest.raises(MlxmathError, match="a holds nan"):
            check_finite(Path("x"), arrays | {"a": mx.array(flat).reshape(5, 5)})


def test_many_are_named_in_short() -> None:
    with pytest.raises(MlxmathError, match=r"w0 holds inf.*w4 holds inf and 4 more") as error:
        check_finite(Path("x"), {f"w{i}": mx.full((2,), float("inf"), mx.bfloat16) for i in range(9)})
    assert "w5" not in str(error.value)
