"""PyTorch files and model folders made opcode by opcode, without PyTorch."""

import io
import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from mlxmath.weights.tensors import row_major
from mlxmath.weights.torch_bin import MAGIC_NUMBER
from mlxmath.weights.torch_pickle import STORAGE_DTYPES

KINDS = {dtype: kind for kind, dtype in STORAGE_DTYPES.items() if kind != "UntypedStorage"}


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    raw = value.to_bytes(16, "little", signed=True)
    return b"\x8a\x10" + raw


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def numbers(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def storage(key: str, dtype: str, count: int) -> bytes:
    return b"(" + text("storage") + name("torch", KINDS[dtype]) + text(key) + text("cpu") + number(count) + b"tQ"


def tensor(
    key: str,
    dtype: str,
    count: int,
    shape: tuple[int, ...],
    stride: tuple[int, ...] | None = None,
    offset: int = 0,
) -> bytes:
    """A `_rebuild_tensor_v2` call on storage `key` of `count` elements."""
    return (
        name("torch._utils", "_rebuild_tensor_v2")
        + b"("
        + storage(key, dtype, count)
        + number(offset)
        + numbers(shape)
        + numbers(row_major(shape) if stride is None else stride)
        + b"\x89"
        + name("collections", "OrderedDict")
        + b")RtR"
    )


def state_dict(entries: dict[str, bytes]) -> bytes:
    """A pickle of names to values, given as opcodes."""
    return b"\x80\x02}(" + b"".join(text(key) + value for key, value in entries.items()) + b"u."


def zip_file(
    pickled: bytes, storages: dict[str, bytes], *, compression: int = zipfile.ZIP_STORED, byteorder: str = "little"
) -> bytes:
    """The layout of PyTorch 1.6 and later."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr("model/data.pkl", pickled)
        archive.writestr("model/byteorder", byteorder)
        for key, data in storages.items():
            archive.writestr(f"model/data/{key}", data)
        archive.writestr("model/version", "3\n")
    return buffer.getvalue()


def legacy_file(pickled: bytes, storages: dict[str, tuple[int, bytes]], *, little_endian: bool = True) -> bytes:
    """The layout before PyTorch 1.6; `storages` gives each one's number of elements and bytes."""
    flag = b"\x88" if little_endian else b"\x89"
    return (
        b"\x80\x02" + number(MAGIC_NUMBER) + b"." + b"\x80\x02" + number(1001) + b"."
        + b"\x80\x02}" + text("little_endian") + flag + b"s."
        + pickled
        + b"\x80\x02](" + b"".join(text(key) for key in storages) + b"e."
        + b"".join(struct.pack("<q", count) + data for count, data in storages.values())
    )  # fmt: skip


def torch_bin(arrays: dict[str, np.ndarray]) -> bytes:
    """A zip file with float16 or float32 tensors."""
    entries, storages = {}, {}
    for key, (label, array) in enumerate(arrays.items()):
        entries[label] = tensor(str(key), str(array.dtype), array.size, array.shape)
        storages[str(key)] = array.tobytes()
    return zip_file(state_dict(entries), storages)


LLAMA: dict[str, Any] = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "num_hidden_layers": 2,
    "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
    "vocab_size": 96, "tie_word_embeddings": False, "torch_dtype": "float16",
}  # fmt: skip


def llama_arrays(seed: int = 0, dtype: str = "float16", **changes: Any) -> dict[str, np.ndarray]:
    """Random weights that fit `LLAMA`, under Hugging Face's names."""
    config = LLAMA | changes
    hidden, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    key_rows = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        shapes |= {
            prefix + "self_attn.q_proj.weight": (hidden, hidden),
            prefix + "self_attn.k_proj.weight": (key_rows, hidden),
            prefix + "self_attn.v_proj.weight": (key_rows, hidden),
            prefix + "self_attn.o_proj.weight": (hidden, hidden),
            prefix + "mlp.gate_proj.weight": (inner, hidden),
            prefix + "mlp.up_proj.weight": (inner, hidden),
            prefix + "mlp.down_proj.weight": (hidden, inner),
            prefix + "input_layernorm.weight": (hidden,),
            prefix + "post_attention_layernorm.weight": (hidden,),
        }
    shapes |= {"model.norm.weight": (hidden,), "lm_head.weight": (vocab, hidden)}
    rng = np.random.default_rng(seed)
    return {label: (rng.standard_normal(shape) * 0.1).astype(dtype) for label, shape in shapes.items()}


def llama_folder(
    folder: Path, *, shards: int = 1, seed: int = 0, arrays: dict[str, np.ndarray] | None = None, **changes: Any
) -> Path:
    """A model folder with .bin weights (and their index, if several) and a token of a tokenizer; `...` leaves a setting
    of `LLAMA` out."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {name: value for name, value in (LLAMA | changes).items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    arrays = llama_arrays(seed, **changes) if arrays is None else arrays
    if shards == 1:
        (folder / "pytorch_model.bin").write_bytes(torch_bin(arrays))
        return folder
    labels = list(arrays)
    weight_map = {}
    for number_ in range(shards):
        file = f"pytorch_model-{number_ + 1:05d}-of-{shards:05d}.bin"
        mine = labels[number_::shards]
        (folder / file).write_bytes(torch_bin({label: arrays[label] for label in mine}))
        weight_map |= dict.fromkeys(mine, file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder
