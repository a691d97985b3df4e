"""LoRA layers, injection, the adapter folder."""

import shutil
import subprocess
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models.switch_layers import SwitchLinear

from mlxmath.config.schema import LoraConfig
from mlxmath.errors import InputError, MlxmathError
from mlxmath.models.lora.adapter import adapter_config, load_adapter, load_initial, save_config, save_weights
from mlxmath.models.lora.inject import adapter_arrays, inject
from mlxmath.models.lora.layers import LoRALinear, adapter_layer
from mlxmath.runtime.files import read_json
from tests.conftest import make_tiny_llama
from tests.models.adapted import linear, reconfigured, save, weight_of


@pytest.mark.parametrize("bits", [None, 4, 8])
@pytest.mark.parametrize("bias", [False, True])
def test_layer_is_wx_plus_scaled_bax(bits: int | None, bias: bool) -> None:
    base = linear(bits, bias=bias)
    layer = LoRALinear(base, rank=2, scale=1.5)
    layer.lora_b = mx.random.normal((2, 32))
    x = mx.random.normal((3, 4, 64))
    w, a, b, xn = (np.array(t, np.float64) for t in (weight_of(base), layer.lora_a, layer.lora_b, x))
    expected = xn @ w.T + 1.5 * (xn @ a @ b) + (np.array(base.bias) if bias else 0)
    np.testing.assert_allclose(np.array(layer(x)), expected, rtol=1e-5, atol=1e-4 if bits else 1e-5)


@pytest.mark.parametrize("variant", ["lora", "dora", "experts"])
def test_a_new_layer_is_its_base_and_stays_float32_over_a_16_bit_base(variant: str) -> None:
    base, x, chosen = nn.Linear(1024, 32), mx.random.normal((1, 3, 1024)), []
    base.weight = mx.concatenate([base.weight[:-1], mx.zeros((1, 1024))])  # a dead output
    if variant == "experts":
        base, x, chosen = SwitchLinear(1024, 32, 4), x[..., None, None, :], [mx.array([[[0, 2], [1, 3], [2, 0]]])]
    layer = adapter_layer(base, variant, 8, 2.0, 0.0)
    assert mx.array_equal(layer(x, *chosen), base(x, *chosen))
    a = np.array(layer.lora_a)
    assert np.abs(a).max() <= 1 / 32 and a.std() == pytest.approx(1 / 32 / 3**0.5, rel=0.03)
    layer.lora_b = mx.random.normal(layer.lora_b.shape)
    assert not mx.array_equal(layer(x, *chosen), base(x, *chosen))
    layer.scale = mx.array(0.0)
    assert mx.array_equal(layer(x, *chosen), base(x, *chosen))
    base.set_dtype(mx.bfloat16)
    layer = adapter_layer(base, variant, 8, 2.0, 0.0)
    assert {array.dtype for _, array in tree_flatten(layer.trainable_parameters())} == {mx.float32}
    assert layer(x.astype(mx.bfloat16), *chosen).dtype == mx.bfloat16  # not computed: experts are float32 on a CPU


@pytest.mark.parametrize("experts", [0, 2])
def test_dropout_acts_in_training_only_and_keeps_the_mean(experts: int) -> None:
    base = SwitchLinear(4, 4, experts, bias=False) if experts else nn.Linear(4, 4, bias=False)
    base.weight = mx.zeros_like(base.weight)
    layer = adapter_layer(base, "lora", 4, 1.0, 0.5)
    layer.lora_a = layer.lora_b = mx.broadcast_to(mx.eye(4), layer.lora_a.shape)
    x = mx.ones((20_000, 1, 1, 4) if experts else (20_000, 4))
    chosen = [mx.random.randint(0, experts, (20_000, 1))] if experts else []
    layer.train()
    y = np.array(layer(x, *chosen))
    assert set(np.unique(y)) == {0.0, 2.0} and y.mean() == pytest.approx(1.0, abs=0.02)
    layer.eval()
    assert (np.array(layer(x, *chosen)) == 1).all()


def test_only_adapters_train_and_the_count_is_right() -> None:
    model = make_tiny_llama()
    before = sum(a.size for _, a in tree_flatten(model.parameters()))
    injected = inject(model, LoraConfig(rank=4))
    names = [name for name, _ in tree_flatten(model.trainable_parameters())]
    assert len(names) == 2 * 2 * 2
    assert all(name.endswith((".lora_a", ".lora_b")) for name in names)
    expected = 2 * (4 * (32 + 32) + 4 * (32 + 16))  # q: 32 -> 32, v: 32 -> 16, two blocks
    assert injected.num_trainable == expected
    assert injected.num_total == before + expected
    assert injected.keys == ("self_attn.q_proj", "self_attn.v_proj")


def test_quantized_parameters_are_counted_unpacked() -> None:
    model = make_tiny_llama()
    plain = inject(make_tiny_llama(), LoraConfig(rank=4))
    nn.quantize(
        model,
        group_size=32,
        bits=4,
        class_predicate=lambda _, m: isinstance(m, nn.Linear) and m.weight.shape[1] % 32 == 0,
    )
    scales = sum(a.size for name, a in tree_flatten(model.parameters()) if name.endswith((".scales", ".biases")))
    assert inject(model, LoraConfig(rank=4)).num_total == plain.num_total + scales


@pytest.mark.parametrize(
    ("targets", "keys"),
    [
        (("q_proj",), ("self_attn.q_proj",)),
        (("mlp.*",), ("mlp.down_proj", "mlp.gate_proj", "mlp.up_proj")),
        (("self_attn.[kv]_proj", "o_proj"), ("self_attn.k_proj", "self_attn.o_proj", "self_attn.v_proj")),
        (("q_proj", "lm_head"), ("lm_head", "self_attn.q_proj")),
        (
            ("*",),
            ("mlp.down_proj", "mlp.gate_proj", "mlp.up_proj", "self_attn.k_proj", "self_attn.o_proj",
             "self_attn.q_proj", "self_attn.v_proj"),
        ),
    ],
)  # fmt: skip
def test_targets_by_name_path_and_glob(targets: tuple[str, ...], keys: tuple[str, ...]) -> None:
    assert inject(make_tiny_llama(), LoraConfig(targets=targets)).keys == keys


def test_a_rank_above_the_layer_is_refused() -> None:
    with pytest.raises(InputError, match=r"--lora-rank 17 exceeds .*v_proj \(16\)"):
        inject(make_tiny_llama(), LoraConfig(rank=17))


def saved(tmp_path: Path) -> Path:
    config = LoraConfig(rank=4)
    model = make_tiny_llama()
    save(tmp_path, model, config, inject(model, config).keys, base_model="x/y", base_fingerprint="abc")
    return tmp_path


def edit(folder: Path, **changes: object) -> None:
    arrays = mx.load(str(folder / "adapters.safetensors"))
    mx.eval(arrays)
    for name, value in changes.items():
        arrays[name.replace("__", ".")] = value
    mx.save_safetensors(str(folder / "adapters.safetensors"), {k: v for k, v in arrays.items() if v is not None})


A0 = "model__layers__0__self_attn__q_proj__lora_a"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({A0: None}, r"layers\.0\.self_attn\.q_proj\.lora_a is missing"),
        ({"other__lora_a": mx.zeros((2, 2))}, r"other\.lora_a belongs to no adapter"),
        ({A0: mx.zeros((32, 8))}, r"has shape \(32, 8\), expected \(32, 4\)"),
    ],
)
def test_missing_extra_and_misshapen_tensors_raise(tmp_path: Path, changes: dict, message: str) -> None:
    folder = saved(tmp_path)
    edit(folder, **changes)
    with pytest.raises(MlxmathError, match=message):
        load_adapter(make_tiny_llama(), folder)


def test_an_adapter_of_another_rank_names_every_tensor(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    reconfigured(folder, lambda record: record["lora_parameters"].update(rank=2))
    with pytest.raises(MlxmathError, match="expected") as error:
        load_adapter(make_tiny_llama(), folder)
    assert str(error.value).count("has shape") == 8


def test_an_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    load_adapter(make_tiny_llama(), folder, base_fingerprint="abc")
    with pytest.raises(MlxmathError, match=r"another base model \(x/y, fingerprint abc\)"):
        load_adapter(make_tiny_llama(), folder, base_fingerprint="def")


def test_absent_and_damaged_folders(tmp_path: Path) -> None:
    with pytest.raises(MlxmathError, match=r"adapter_config\.json is missing"):
        load_adapter(make_tiny_llama(), tmp_path)
    folder = saved(tmp_path / "a")
    path = folder / "adapters.safetensors"
    whole = path.read_bytes()
    damages = {
        b"\0" * 20: "is not a safetensors file", whole[:-1]: "is truncated",
        whole.replace(b'"model.layers.0', b'"mo\\ud800l.rs.0', 1): r"damaged: \w+: ",
        whole.replace(b'"F32"', b'"F3x"', 1): "F3x",
    }  # fmt: skip
    for data, message in damages.items():
        path.write_bytes(data)
        with pytest.raises(MlxmathError, match=message):
            load_adapter(make_tiny_llama(), folder)


@pytest.mark.parametrize(
    ("changes", "are_kept"),
    [
        ({"mlxmath_version": "9", "base_model": "/elsewhere"}, True), ({"base_fingerprint": "other"}, False),
        ({"num_layers": 1}, False), ({"reward_model": True}, False),
    ],
)  # fmt: skip
def test_weights_stay_until_they_are_written_again(tmp_path: Path, changes: dict, are_kept: bool) -> None:
    """A run that goes on with another version of the program saves its adapters after many steps."""
    facts = {"base_model": "here", "base_fingerprint": "f", "mlxmath_version": "8"}
    record = adapter_config(LoraConfig(), ("self_attn.q_proj",), **facts)
    save_config(tmp_path, record)
    (tmp_path / "adapters.safetensors").write_bytes(b"")
    save_config(tmp_path, record | changes)
    assert read_json(tmp_path / "adapter_config.json") == record | changes
    assert (tmp_path / "adapters.safetensors").exists() == are_kept


def test_a_full_disk_leaves_the_old_adapter(tmp_path: Path) -> None:
    """On a real, tiny file system; needs the right to mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = (
        shutil.which("mount")
        and subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True, check=False
        ).returncode
        == 0
    )
    if not mounted:
        pytest.skip("cannot mount a small file system here")
    try:
        folder = saved(disk / "adapters")
        before = (folder / "adapters.safetensors").read_bytes()
        big = make_tiny_llama(hidden_size=512, intermediate_size=64)
        inject(big, LoraConfig(rank=64))
        with pytest.raises(MlxmathError, match="cannot write .*adapters.safetensors"):
            save_weights(folder / "adapters.safetensors", big)
        assert (folder / "adapters.safetensors").read_bytes() == before
        assert [p.name for p in folder.iterdir() if p.name.endswith(".tmp")] == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


ABSURD = {
    "a list": [1, 2],
    "text": "lora",
    "no rank": {"num_layers": 2, "lora_parameters": {"scale": 2.0, "keys": ["self_attn.q_proj"]}},
    "endless rank": {"rank": float("inf")},
    "half a rank": {"rank": 4.5},
    "no rank at all": {"rank": 0},
    "a rank beyond all layers": {"rank": 10**9},
    "rank as text": {"rank": "4"},
    "rank as truth": {"rank": True},
    "scale not a number": {"scale": float("nan")},
    "endless scale": {"scale": float("-inf")},
    "a scale beyond floats": {"scale": 10**400},
    "a scale beyond float32": {"scale": -1e300},
    "dropout of one": {"dropout": 1.0},
    "keys as text": {"keys": "q_proj"},
    "keys as numbers": {"keys": [1, 2]},
    "keys of no layer": {"keys": ["self_attn.wq"]},
    "parameters as a list": {"num_layers": 2, "lora_parameters": [8, 16]},
    "layers as text": {"num_layers": "all", "lora_parameters": {"rank": 4, "scale": 2.0}},
    "no parameters": {"num_layers": 2},
    "an unknown kind": {"num_layers": 2, "fine_tune_type": "vera"},
    "kind as a number": {"num_layers": 2, "fine_tune_type": 7},
}


@pytest.mark.parametrize("name", list(ABSURD))
def test_a_senseless_configuration_is_one_clear_error(tmp_path: Path, name: str) -> None:
    folder = saved(tmp_path)
    wrong = ABSURD[name]
    if isinstance(wrong, dict) and "num_layers" not in wrong:
        reconfigured(folder, lambda record: record["lora_parameters"].update(wrong))
    else:
        reconfigured(folder, lambda _: wrong)
    with pytest.raises(MlxmathError, match=r"adapter_config\.json.*(expected|keys name no layer)") as error:
        load_adapter(make_tiny_llama(), folder)
    assert "\n" not in str(error.value)
    model = make_tiny_llama()
    wanted = adapter_config(LoraConfig(rank=4), inject(model, LoraConfig(rank=4)).keys)
    with pytest.raises(MlxmathError):
        load_initial(model, folder, wanted)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 1e38, -1e12])
def test_weights_that_no_training_makes_are_refused_by_name(tmp_path: Path, value: float) -> None:
    folder = saved(tmp_path)
    wrong = mx.zeros((32, 4))
    wrong[3, 1] = value
    edit(folder, **{A0: wrong})
    model = make_tiny_llama()
    wanted = adapter_config(LoraConfig(rank=4), inject(model, LoraConfig(rank=4)).keys, base_fingerprint="abc")
    for load in (lambda: load_adapter(make_tiny_llama(), folder), lambda: load_initial(model, folder, wanted)):
        with pytest.raises(MlxmathError, match=r"adapters\.safetensors.*layers\.0\.self_attn\.q_proj\.lora_a holds"):
            load()


def test_whole_numbers_are_no_weights(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    edit(folder, **{A0: mx.zeros((32, 4), mx.int32)})
    with pytest.raises(MlxmathError, match=r"layers\.0\.self_attn\.q_proj\.lora_a holds mlx.core.int32, expected"):
        load_adapter(make_tiny_llama(), folder)


def test_an_initial_adapter_without_keys_fits_by_its_arrays(tmp_path: Path) -> None:
    """mlx_lm lists no keys by default, and 16 layers of a model that has two."""
    folder = saved(tmp_path)
    own = {"rank": 4, "scale": 4.0, "dropout": 0.0}
    reconfigured(folder, lambda record: {"num_layers": 16, "fine_tune_type": "lora", "lora_parameters": own})
    model, config = make_tiny_llama(), LoraConfig(rank=4)
    load_initial(model, folder, adapter_config(config, inject(model, config).keys, base_fingerprint="abc"))
    assert mx.array_equal(
        adapter_arrays(model)[A0.replace("__", ".")],
        mx.load(str(folder / "adapters.safetensors"))[A0.replace("__", ".")],
    )
    other, config = make_tiny_llama(), LoraConfig(rank=4, targets=("*",))
    with pytest.raises(MlxmathError, match="is missing"):
        load_initial(other, folder, adapter_config(config, inject(other, config).keys))
    last, config = make_tiny_llama(), LoraConfig(rank=4, num_layers=1)
    with pytest.raises(InputError, match="num_layers is -1 there and 1 here"):
        load_initial(last, folder, adapter_config(config, inject(last, config).keys))
