"""GGUF files: the numbers of every type, what config.json says, and files that are damaged or hostile."""

import struct
from pathlib import Path
from typing import Any

import gguf
import mlx.core as mx
import numpy as np
import pytest

from mlxmath.config.schema import ModelConfig
from mlxmath.errors import MlxmathError
from mlxmath.models.load import load_model
from mlxmath.runtime.files import read_json
from mlxmath.weights.convert import ensure_model
from mlxmath.weights.dtypes import convert
from mlxmath.weights.gguf_file import open_gguf
from mlxmath.weights.gguf_model import read_gguf
from tests.weights.gguf_models import (
    Kind,
    llama_gguf,
    llama_metadata,
    llama_state,
    permuted,
    stored_tensors,
    write_gguf,
)

PACKED = {Kind.Q4_0: 4, Kind.Q4_1: 4, Kind.Q8_0: 8}
DEQUANTIZED = [
    kind
    for kind in gguf.GGML_QUANT_SIZES
    if kind.name.startswith(("Q", "IQ", "TQ", "MXFP4", "NVFP4")) and kind.name not in ("Q8_1", "Q8_K", "Q1_0")
]
"""All types that gguf can dequantize."""


def random_blocks(kind: Kind, rows: int, columns: int) -> np.ndarray:
    """Bytes (rows, bytes of a row) of a type whose numbers are finite and not huge."""
    per_block, num_bytes = gguf.GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(int(kind))
    blocks = rng.integers(0, 256, (rows * columns // per_block, num_bytes), np.uint8)
    with np.errstate(all="ignore"):
        for _ in range(60):
            values = gguf.quants.dequantize(blocks, kind)
            bad = ~np.all(np.abs(values) < 1e4, axis=1)
            if not bad.any():
                break
            blocks[bad] = rng.integers(0, 256, (int(bad.sum()), num_bytes), np.uint8)
    assert not bad.any()
    return blocks.reshape(rows, -1)


def raw_file(path: Path, kind: Kind, data: np.ndarray, name: str = "blk.0.ffn_up.weight") -> Path:
    """A file whose header is that of a Llama, with one tensor of given bytes."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in llama_metadata(embedding_length=512).items():
        (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(f"llama.{key}", value)
    writer.add_tensor(name, data, raw_dtype=kind)
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("kind", DEQUANTIZED, ids=lambda kind: kind.name)
def test_numbers_of_every_type_are_gguf_s(kind: Kind, tmp_path: Path) -> None:
    data = random_blocks(kind, 6, 512)
    path = raw_file(tmp_path / "one.gguf", kind, data)
    with np.errstate(all="ignore"):
        want = gguf.quants.dequantize(data, kind)
    ref = read_gguf(open_gguf(path), packed=False).tensors["model.layers.0.mlp.up_proj.weight"]
    got = np.concatenate([block.copy() for block in ref.blocks_as("float32")]).reshape(ref.shape)
    assert np.array_equal(got, want)
    assert np.array_equal(ref.read(), want.astype(np.float16))
    parts = [block.copy() for block in ref.blocks(multiple=512, block_bytes=200)]
    assert len(parts) > 1
    assert np.array_equal(np.concatenate(parts), want.astype(np.float16).reshape(-1))


@pytest.mark.parametrize("kind", PACKED, ids=lambda kind: kind.name)
def test_packed_types_keep_every_bit(kind: Kind, tmp_path: Path) -> None:
    """MLX's dequantization of the packed form is gguf's of the file, q and k with their rows put back."""
    data = random_blocks(kind, 32, 512)
    for stem, name in (("attn_k", "self_attn.k_proj"), ("ffn_up", "mlp.up_proj")):
        path = raw_file(tmp_path / f"{stem}.gguf", kind, data, f"blk.0.{stem}.weight")
        model = read_gguf(open_gguf(path))
        found = [
            mx.array(model.tensors[f"model.layers.0.{name}.{end}"].read()) for end in ("weight", "scales", "biases")
        ]
        assert model.config["quantization"] == {"group_size": 32, "bits": PACKED[kind], "mode": "affine"}
        got = mx.dequantize(
            found[0], *(part.astype(mx.float32) for part in found[1:]), group_size=32, bits=PACKED[kind]
        )
        want = gguf.quants.dequantize(data, kind)
        assert np.array_equal(permuted(np.array(got), 2) if stem == "attn_k" else np.array(got), want)


@pytest.mark.parametrize("kind", [Kind.F32, Kind.F16, Kind.BF16], ids=lambda kind: kind.name)
def test_floats_stay_as_they_are(kind: Kind, tmp_path: Path) -> None:
    model = read_gguf(open_gguf(llama_gguf(tmp_path / "a.gguf", kind=kind, tied=False)))
    state = llama_state(tied=False)
    assert model.tensors.keys() == state.keys()
    for name, array in state.items():
        ref = model.tensors[name]
        want = array
        if array.ndim > 1:
            want = gguf.quants.dequantize(gguf.quants.quantize(array, kind), kind)
            assert ref.dtype == {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[kind.name]
        assert np.array_equal(convert(ref.read(), ref.dtype, "float32")[0], want), name


def test_a_converted_file_is_the_model(tmp_path: Path) -> None:
    """Types mixed by layer; loaded by mlx_lm and here; equal to the file made numbers first."""
    import mlx_lm

    kinds = {"token_embd.weight": Kind.Q8_0, "blk.1.attn_v.weight": Kind.F16, "blk.0.ffn_down.weight": Kind.Q5_1}
    path = llama_gguf(tmp_path / "a.gguf", kind=Kind.Q4_0, kinds=kinds)
    manifest = ensure_model(ModelConfig(model=str(path), mlx_path=str(tmp_path / "packed")))
    numbers = ensure_model(ModelConfig(model=str(path), mlx_path=str(tmp_path / "numbers"), dtype="float32"))
    assert manifest.quantization is not None and manifest.quantization_of_source and numbers.quantization is None
    settings = read_json(tmp_path / "packed" / "config.json")["quantization"]
    assert (settings["bits"], settings["model.embed_tokens"]["bits"]) == (4, 8)
    ids = mx.array([[5, 7, 9, 200, 11]])
    want = load_model(tmp_path / "numbers", "float32").model(ids)
    got = load_model(tmp_path / "packed", "float32").model(ids)
    theirs, tokenizer = mlx_lm.load(str(tmp_path / "packed"))
    scale = float(mx.abs(want).max())
    assert float(mx.abs(got - want).max()) < 1e-3 * scale  # its Q5_1 is float16
    assert float(mx.abs(theirs(ids).astype(mx.float32) - want).max()) < 1e-2 * scale  # it computes in float16
    assert tokenizer.encode("the<|im_end|>") == [257, 260]
    assert ensure_model(ModelConfig(model=str(path), mlx_path=str(tmp_path / "packed"))) == manifest


def test_adapters_train_on_packed_weights(tmp_path: Path) -> None:
    """From the file to an adapter in one call; the loss falls, and mlx_lm puts the adapter on the folder."""
    import mlx_lm

    import mlxmath

    path = llama_gguf(tmp_path / "a.gguf", kind=Kind.Q4_0, kinds={"token_embd.weight": Kind.Q8_0})
    losses: list[float] = []

    def note(event: dict[str, Any]) -> None:
        if event["event"] == "step":
            losses.append(event["loss"])

    mlxmath.sft(
        [{"question": f"{a} + {b}?", "answer": f"{a + b}"} for a in range(4) for b in range(3)], callback=note,
        model=str(path), mlx_path=str(tmp_path / "m"), cache_dir=str(tmp_path / "c"), adapter_path=str(tmp_path / "a"),
        backend="cpu", max_steps=8, learning_rate=0.02, grad_accumulation_steps=2, template="plain",
    )  # fmt: skip
    assert losses[-1] < losses[0]
    model, _ = mlx_lm.load(str(tmp_path / "m"), adapter_path=str(tmp_path / "a"))
    assert mx.isfinite(model(mx.array([[5, 7, 9]]))).all()


def test_quantized_anew_if_asked(tmp_path: Path) -> None:
    path = llama_gguf(tmp_path / "a.gguf", kind=Kind.Q5_0)
    config = ModelConfig(model=str(path), mlx_path=str(tmp_path / "m"), quantize=8, group_size=32)
    manifest = ensure_model(config)
    assert manifest.quantization is not None and manifest.quantization["bits"] == 8
    assert not manifest.quantization_of_source


def test_a_set_of_files(tmp_path: Path) -> None:
    state = stored_tensors("llama", llama_state(), 2, (4, 2))
    names = sorted(state)
    for number, part in enumerate((names[:7], names[7:]), 1):
        path = tmp_path / f"tiny-{number:05d}-of-00002.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_uint16("split.count", 2)
        if number == 1:
            for key, value in llama_metadata().items():
                (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(f"llama.{key}", value)
        for name in part:
            writer.add_tensor(name, state[name])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    first = tmp_path / "tiny-00001-of-00002.gguf"
    assert read_gguf(open_gguf(first)).tensors.keys() == llama_state().keys()
    path.unlink()
    with pytest.raises(MlxmathError, match="tiny-00002-of-00002.gguf are missing"):
        open_gguf(first)
    with pytest.raises(MlxmathError, match="its name says otherwise"):
        open_gguf(first.rename(tmp_path / "renamed.gguf"))


def llama3_factors(factor: float, dims: int = 16) -> np.ndarray:
    """As convert_hf_to_gguf.py computes them for Llama 3.1 (low 1, high 4, 8192)."""
    result = []
    for frequency in 10000.0 ** (-np.arange(0, dims, 2) / dims):
        wave = 2 * np.pi / frequency
        if wave < 8192 / 4:
            result.append(1.0)
        elif wave > 8192 / 1:
            result.append(factor)
        else:
            smooth = (8192 / wave - 1) / 3
            result.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(result, np.float32)


def with_tensors(path: Path, extra: dict[str, np.ndarray], **changes: Any) -> Path:
    tensors = {**stored_tensors("llama", llama_state(), 2, (4, 2)), **extra}
    return write_gguf(path, "llama", tensors, llama_metadata(**changes))


def test_llama_3_scaling_out_of_its_factors(tmp_path: Path) -> None:
    path = with_tensors(tmp_path / "a.gguf", {"rope_freqs.weight": llama3_factors(32.0)})
    config = read_gguf(open_gguf(path)).config
    assert config["rope_scaling"] == {
        "type": "llama3", "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    odd = with_tensors(tmp_path / "b.gguf", {"rope_freqs.weight": np.array([1, 1, 5, 1, 3, 2, 8, 8], np.float32)})
    with pytest.raises(MlxmathError, match=r"rope_freqs.weight .*Llama 3.1's kind"):
        read_gguf(open_gguf(odd))


def test_configuration(tmp_path: Path) -> None:
    path = with_tensors(
        tmp_path / "a.gguf", {}, **{"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0,
                                    "rope.scaling.original_context_length": 64},
    )  # fmt: skip
    config = read_gguf(open_gguf(path)).config
    assert config["rms_norm_eps"] == 1e-5  # stored as 9.99999974e-06
    assert config["rope_scaling"] == {
        "type": "yarn", "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64,
    }  # fmt: skip
    assert config["tie_word_embeddings"] and (config["bos_token_id"], config["eos_token_id"]) == (259, 260)
    assert (config["head_dim"], config["vocab_size"], config["architectures"]) == (16, 288, ["LlamaForCausalLM"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_count": 0}, "llama.block_count is 0"),
        ({"attention.head_count": [4, 8]}, "head_count is .*the same for all blocks"),
        ({"attention.layer_norm_rms_epsilon": float("nan")}, "rms_epsilon is nan, expected a number"),
        ({"attention.value_length": 8}, "value_length is 8, expected 16"),
        ({"attention.head_count_kv": 3}, "32 rows, which are not those of 3 heads"),
        ({"rope.scaling.type": "odd"}, "rope.scaling.type is 'odd'"),
        ({"block_count": 1 << 20}, "block_count is 1048576, expected no more than its 20 tensors"),
    ],
)
def test_metadata_that_cannot_be(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = with_tensors(tmp_path / "a.gguf", {}, **changes)
    with pytest.raises(MlxmathError, match=message) as caught:
        ensure_model(ModelConfig(model=str(path), mlx_path=str(tmp_path / "m")))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "m").exists()


def test_what_is_not_known_is_refused(tmp_path: Path) -> None:
    tensors = stored_tensors("llama", llama_state(), 2, (4, 2))
    with pytest.raises(MlxmathError, match="architecture 'mamba'; expected one of llama, qwen2"):
        read_gguf(open_gguf(write_gguf(tmp_path / "a.gguf", "mamba", tensors, {})))
    with pytest.raises(MlxmathError, match="'blk.0.attn_sinks.weight', which models of the architecture"):
        read_gguf(open_gguf(with_tensors(tmp_path / "b.gguf", {"blk.0.attn_sinks.weight": np.ones(4, np.float32)})))
    del tensors["blk.1.ffn_up.weight"]
    path = write_gguf(tmp_path / "c.gguf", "llama", tensors, llama_metadata())
    with pytest.raises(MlxmathError, match=r"missing \(1\): model.layers.1.mlp.up_proj.weight"):
        ensure_model(ModelConfig(model=str(path), mlx_path=str(tmp_path / "m")))


def header(*, version: int = 3, tensors: int = 1, entries: int = 0, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, entries) + rest


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def info(
    name: bytes = b"a", dims: tuple[int, ...] = (32, 1), kind: int = 0, offset: int = 0, count: int | None = None
) -> bytes:
    start = text(name) + struct.pack("<I", len(dims) if count is None else count)
    return start + struct.pack(f"<{len(dims)}Q", *dims) + struct.pack("<IQ", kind, offset)


ROOM = bytes(4096)
HOSTILE = {
    "empty": (b"", "ends after 0 bytes"),
    "another kind": (b"PK\x03\x04" + ROOM, "is no GGUF file"),
    "version 1": (header(version=1, rest=ROOM), "of version 1; expected GGUF of version 2 or 3"),
    "big-endian": (header(version=0x03000000, rest=ROOM), "written for big-endian machines"),
    "tensors without number": (header(tensors=1 << 60, rest=ROOM), "claims 1,152,921,504,606,846,976 tensors"),
    "entries without number": (header(entries=1 << 62, rest=ROOM), "metadata entries, more than the file has room"),
    "an endless name": (header(entries=1, rest=struct.pack("<Q", 1 << 40) + ROOM), "is a text of 1,099,511,627,776"),
    "a name past the end": (header(entries=1, rest=struct.pack("<Q", 5000) + ROOM), "the file is cut off"),
    "no UTF-8": (header(entries=1, rest=text(b"\xff\xfe") + ROOM), "is no UTF-8"),
    "an unknown type": (header(entries=1, rest=text(b"a") + struct.pack("<I", 77) + ROOM), "of type 77"),
    "an endless list": (
        header(entries=1, rest=text(b"a") + struct.pack("<IIQ", 9, 0, 1 << 61) + ROOM), "entries of 'a'",
    ),
    "a list of lists": (
        header(entries=1, rest=text(b"a") + struct.pack("<IIQ", 9, 9, 1) + ROOM), "list of type 9, which is not read",
    ),
    "an entry twice": (
        header(entries=2, rest=(text(b"a") + struct.pack("<IB", 0, 1)) * 2 + ROOM), "'a' is there twice",
    ),
    "alignment": (
        header(entries=1, rest=text(b"general.alignment") + struct.pack("<II", 4, 12) + info() + ROOM),
        "alignment is 12",
    ),
    "no dimensions": (header(rest=info(dims=()) + ROOM), "has 0 dimensions"),
    "many dimensions": (header(rest=info(count=1 << 30) + ROOM), "has 1073741824 dimensions"),
    "an empty dimension": (header(rest=info(dims=(32, 0)) + ROOM), r"has the dimensions \[32, 0\]"),
    "a product that overflows": (header(rest=info(dims=(1 << 33, 1 << 33)) + ROOM), "has the dimensions"),
    "a type of tomorrow": (header(rest=info(kind=99) + ROOM), "ggml's type 99, which gguf does not know"),
    "half a block": (header(rest=info(dims=(33, 1), kind=2) + ROOM), "rows of 33, no multiple of Q4_0's 32"),
    "an odd offset": (header(rest=info(offset=7) + ROOM), "lies at 7, which is not aligned to 32"),
    "past the end": (header(rest=info(offset=1 << 20) + ROOM), "the file is cut off or damaged"),
    "offset that overflows": (header(rest=info(offset=(1 << 64) - 32) + ROOM), "the file is cut off or damaged"),
    "a name twice": (header(tensors=2, rest=info() + info(offset=128) + ROOM), "'a' is there twice"),
    "one inside another": (header(tensors=2, rest=info() + info(name=b"b", offset=32) + ROOM), "inside another one"),
    "nothing": (header(tensors=0, rest=ROOM), "holds no tensors"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files(name: str, tmp_path: Path) -> None:
    data, message = HOSTILE[name]
    path = tmp_path / "bad.gguf"
    path.write_bytes(data)
    with pytest.raises(MlxmathError, match=message) as caught:
        open_gguf(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_damage_anywhere_is_one_error(tmp_path: Path) -> None:
    """Bytes changed, or cut off, anywhere in the header: read or refused, nothing else."""
    whole = llama_gguf(tmp_path / "a.gguf", kind=Kind.Q8_0).read_bytes()
    start = whole.index(b"output_norm.weight") + 60
    rng = np.random.default_rng(0)
    path = tmp_path / "b.gguf"
    refused = 0
    for number in range(150):
        data = bytearray(whole)
        if number % 3 == 0:
            data = data[: int(rng.integers(0, len(whole)))]
        else:
            for place in rng.integers(0, start, 1 + number % 4):
                data[place] = rng.integers(0, 256)
        path.write_bytes(data)
        try:
            read_gguf(open_gguf(path))
        except MlxmathError as error:
            refused += 1
            assert "\n" not in str(error) and str(path) in str(error)
    assert refused > 50


def test_a_header_without_end(tmp_path: Path) -> None:
    """A list of a billion numbers, in a file that is large enough (a hole on the disk), is not read."""
    path = tmp_path / "bad.gguf"
    with path.open("wb") as file:
        file.write(header(entries=1, rest=text(b"a") + struct.pack("<IIQ", 9, 0, 1 << 30)))
        file.truncate(1 << 31)
    with pytest.raises(MlxmathError, match="its header is of more than 512 MB"):
        open_gguf(path)


def test_scales_that_mlx_cannot_hold(tmp_path: Path) -> None:
    data = random_blocks(Kind.Q8_0, 2, 512)
    data[0, :2] = np.array([60000], np.float16).view(np.uint8)
    path = raw_file(tmp_path / "a.gguf", Kind.Q8_0, data)
    ref = read_gguf(open_gguf(path)).tensors["model.layers.0.mlp.up_proj.biases"]
    with pytest.raises(MlxmathError, match="dequantize it with --dtype float32"):
        ref.read()
