"""Names of tensors in GGUF files, against gguf's own table and transformers' models."""

import gguf
import numpy as np
import pytest

from mlxmath.weights.gguf_names import FAMILIES, Family, family_of_architecture, rows_to_gguf, rows_to_hf


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.model_type)
def test_names_are_gguf_s_own(family: Family) -> None:
    """gguf's table, which llama.cpp's converter asks, gives the same name for each of Hugging Face's."""
    arch = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}[family.architecture]
    names = gguf.get_tensor_name_map(arch, 3)
    stems = [f"blk.2.{stem}" for stem in family.blocks] + ["token_embd", "output_norm", "output"]
    for stem in stems:
        ours = family.to_hf(f"{stem}.weight")
        assert ours is not None
        if stem == "output" and gguf.MODEL_TENSOR.OUTPUT not in gguf.MODEL_TENSORS[arch]:
            continue  # Gemma's head is always the embedding
        ours = ours.replace(".{e}.", ".7.")
        theirs = names.get_name(ours.replace(".7.", "."), (".weight",))
        assert theirs == f"{stem}.weight", ours
        assert family.to_gguf(ours) == f"{stem}.weight"


def test_unknown_names_have_none() -> None:
    llama = family_of_architecture("llama")
    assert llama is not None and llama.model_type == "llama"
    assert llama.to_hf("rope_freqs.weight") is None
    assert llama.to_hf("blk.0.attn_sinks.weight") is None
    assert llama.to_gguf("model.layers.0.self_attn.rotary_emb.inv_freq") is None
    assert family_of_architecture("mamba") is None
    mixtral = family_of_architecture("llama", num_experts=8)
    assert mixtral is not None and mixtral.model_type == "mixtral"


def test_rows_are_llama_cpp_s_permutation() -> None:
    """`LlamaModel.permute` of llama.cpp's converter, written out for 2 heads of 6."""
    assert rows_to_gguf(12, 2).tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]
    rows = np.arange(24)
    assert np.array_equal(rows[rows_to_gguf(24, 3)][rows_to_hf(24, 3)], rows)
