"""Files written by torch: every tensor comes through the conversion bit for bit, and no code in them runs."""

import collections
import json
import os
import pickle
import random
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch

from mlxmath.config.schema import ModelConfig
from mlxmath.errors import MlxmathError
from mlxmath.weights.architecture import Built
from mlxmath.weights.convert import ensure_model
from mlxmath.weights.dtypes import convert
from mlxmath.weights.layout import Layout
from mlxmath.weights.safetensor import open_safetensors
from mlxmath.weights.torch_bin import open_torch

DTYPES = [
    torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8,
    torch.bool, torch.uint16, torch.uint32, torch.uint64,
]  # fmt: skip
LAYOUTS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def some_tensors() -> dict[str, Any]:
    """Every supported type, every way to lie in a storage."""
    torch.manual_seed(0)
    found: dict[str, Any] = {}
    for dtype in DTYPES:
        bits = torch.randint(0, 256, (dtype.itemsize * 60,), dtype=torch.uint8)
        if dtype is torch.bool:
            bits &= 1
        whole = bits.view(dtype).reshape(3, 4, 5)
        kind = str(dtype).removeprefix("torch.")
        found |= {
            f"{kind}.plain": whole,
            f"{kind}.transposed": whole.transpose(0, 2),
            f"{kind}.sliced": whole[1:, ::2, 1:4],
            f"{kind}.expanded": whole[0, 0].expand(7, 5),
            f"{kind}.scalar": whole[1, 2, 3],
            f"{kind}.empty": whole[:0],
            f"{kind}.tied": whole,
            f"{kind}.big": bits.repeat(9000).view(dtype)[3:-5].reshape(-1, 4).T,
        }
    weight = torch.nn.Linear(5, 3).weight
    attribute = torch.nn.Parameter(torch.ones(2, 2))
    attribute.note = "kept out"  # type: ignore[attr-defined]
    return found | {"parameter": weight, "frozen": torch.nn.Parameter(weight.detach(), False), "attribute": attribute}


def bits_of(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def save(value: Any, path: Path, zipped: bool, **kwargs: Any) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=zipped, **kwargs)
    return path


@LAYOUTS
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_tensor(tmp_path: Path, zipped: bool, protocol: int) -> None:
    tensors = some_tensors()
    file = open_torch(save(tensors, tmp_path / "x.bin", zipped, pickle_protocol=protocol))
    assert list(file.tensors) == list(tensors)
    for name, tensor in tensors.items():
        reference = file.tensors[name]
        assert (reference.dtype, reference.shape) == (str(tensor.dtype)[6:], tuple(tensor.shape)), name
        assert file.tensors[name].read().tobytes() == bits_of(tensor), name
    assert file.tensors["float32.plain"].place == file.tensors["float32.tied"].place


def as_they_are(config: Any, tensors: Any, where: Path) -> Layout:
    return Layout(config, tensors, Built(None, config, {}, {}, (), (), 0), (), ())


@LAYOUTS
def test_every_tensor_through_convert(tmp_path: Path, zipped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlxmath.weights.build.plan_layout", as_they_are)  # they are no model's
    tensors = some_tensors()
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (source / "tokenizer.json").write_text("{}")
    names = list(tensors)
    weight_map = {}
    for number in range(3):
        file = f"pytorch_model-{number + 1:05d}-of-00003.bin"
        save(collections.OrderedDict((n, tensors[n]) for n in names[number::3]), source / file, zipped)
        weight_map |= dict.fromkeys(names[number::3], file)
    (source / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    ensure_model(ModelConfig(model=str(source), mlx_path=str(tmp_path / "out")))
    path = tmp_path / "out" / "model.safetensors"
    found = open_safetensors(path)
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        assert found[name].read().tobytes() == bits_of(tensor), name
        assert found[name].offset % tensor.element_size() == 0
    from safetensors.torch import load_file

    for name, tensor in load_file(path).items():
        assert tensor.shape == tensors[name].shape
        assert bits_of(tensor) == bits_of(tensors[name])
    for name, array in mx.load(str(path)).items():
        assert tuple(array.shape) == tuple(tensors[name].shape)
        assert str(array.dtype).removeprefix("mlx.core.").rstrip("_") == str(tensors[name].dtype)[6:]


@LAYOUTS
def test_module_and_wrapped_state_dicts(tmp_path: Path, zipped: bool) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.ones(3, 4)).sum().backward()
    optimizer.step()
    state = module.state_dict()
    assert open_torch(save(state, tmp_path / "a.bin", zipped)).num_ignored == 0
    for wrapper in ("state_dict", "model"):
        checkpoint = {"epoch": 3, wrapper: state, "optimizer": optimizer.state_dict(), "name": "x", "rate": 0.1}
        file = open_torch(save(checkpoint, tmp_path / "b.bin", zipped))
        assert list(file.tensors) == list(state)
        for name, tensor in state.items():
            assert file.tensors[name].read().tobytes() == bits_of(tensor)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.complex128])
@LAYOUTS
def test_types_that_mlx_lacks(tmp_path: Path, zipped: bool, dtype: torch.dtype) -> None:
    path = save({"w.x": torch.zeros(2, 2).to(dtype)}, tmp_path / "x.bin", zipped)
    with pytest.raises(MlxmathError, match=rf"'w\.x' is of type {str(dtype)[6:]}"):
        open_torch(path)


def test_conversions_equal_torch() -> None:
    bits = torch.randint(0, 2**32, (300_000,), dtype=torch.int64).to(torch.uint32)
    kinds = {
        "float64": torch.cat([bits.view(torch.float32).double(), torch.randn(100_000, dtype=torch.float64)]),
        "float32": bits.view(torch.float32),
        "float16": torch.arange(65536, dtype=torch.int32).to(torch.uint16).view(torch.float16),
        "bfloat16": torch.arange(65536, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16),
    }
    for source, tensor in kinds.items():
        raw = tensor.view(torch.uint16).numpy() if source == "bfloat16" else tensor.numpy()
        for target in ("float32", "float16", "bfloat16"):
            expected = tensor.to(torch.float32).to(getattr(torch, target))
            result, num_infinite = convert(raw, source, target)
            ours = torch.from_numpy(result.copy())
            ours = ours.view(torch.bfloat16) if target == "bfloat16" else ours
            nan = expected.isnan()
            assert torch.equal(ours.isnan(), nan), (source, target)
            assert torch.equal(ours[~nan], expected[~nan]), (source, target)
            if target == "float16":
                assert num_infinite == int((expected.isinf() & ~tensor.isinf()).sum())


class Evil:
    """Pickles to a call of `function`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments


@LAYOUTS
@pytest.mark.parametrize("nested", ["value", "ordered", "instead", "beside a storage"])
def test_hostile_files_run_nothing(tmp_path: Path, zipped: bool, nested: str) -> None:
    marker = tmp_path / "ran"
    for function, arguments, name in [
        (os.system, (f"touch {marker}",), r"posix\.system"),
        (eval, (f"__import__('pathlib').Path({str(marker)!r}).touch()",), r"__builtin__\.eval"),
        (os.mkdir, (str(marker),), r"posix\.mkdir"),
    ]:
        evil = Evil(function, *arguments)
        value = {
            "value": {"w": torch.ones(2), "x": evil},
            "ordered": {"w": collections.OrderedDict(a=collections.OrderedDict(b=[evil]))},
            "instead": evil,
            "beside a storage": {"w": [torch.ones(2), (evil, torch.ones(2))]},
        }[nested]
        path = save(value, tmp_path / "x.bin", zipped)
        with pytest.raises(MlxmathError, match=name) as caught:
            open_torch(path)
        assert str(path) in str(caught.value)
        assert not marker.exists()
        torch.load(path, weights_only=False)  # it is a real attack: torch itself falls for it
        assert marker.exists()
        marker.rmdir() if marker.is_dir() else marker.unlink()


def test_a_whole_module_is_refused_by_name(tmp_path: Path) -> None:
    path = save(torch.nn.Linear(2, 2), tmp_path / "x.bin", True)
    with pytest.raises(MlxmathError, match=r"torch\.nn\.modules\.linear\.Linear"):
        open_torch(path)


def test_a_plain_pickle_is_no_torch_file(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(pickle.dumps({"w": 1}))
    with pytest.raises(MlxmathError, match="is not a PyTorch file"):
        open_torch(path)


@LAYOUTS
def test_damage_never_crashes(tmp_path: Path, zipped: bool) -> None:
    tensors = {name: tensor for name, tensor in some_tensors().items() if "big" not in name}
    path = save(tensors, tmp_path / "x.bin", zipped)
    data = path.read_bytes()
    rng = random.Random(1)

    def read() -> None:
        file = open_torch(path)
        for name, reference in file.tensors.items():
            if reference.num_bytes < 1 << 20:
                file.tensors[name].read()

    for _ in range(150):
        path.write_bytes(data[: rng.randrange(len(data) - 1)])
        with pytest.raises(MlxmathError):
            read()
    outcomes = np.zeros(2, int)
    for _ in range(300):
        damaged = bytearray(data)
        for _ in range(rng.choice((1, 3, 30))):
            damaged[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(bytes(damaged))
        try:
            read()
            outcomes[0] += 1
        except MlxmathError:
            outcomes[1] += 1
    assert outcomes[1] > 50
