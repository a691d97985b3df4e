"""Models that are on this machine: GGUF files, Ollama's, LM Studio's; and GGUF repositories of the hub."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from mlxmath.config.schema import ModelConfig
from mlxmath.errors import InputError, MlxmathError
from mlxmath.runtime.files import read_json
from mlxmath.weights.convert import ensure_model
from mlxmath.weights.gguf_choice import chosen_gguf
from mlxmath.weights.hub import fetch, is_source
from tests.weights.gguf_models import llama_gguf


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("OLLAMA_MODELS", raising=False)
    return tmp_path / "home"


def pulled(root: Path, name: str, layers: dict[str, bytes]) -> Path:
    """What Ollama has on the disk after it has pulled a model; `name` with host and tag."""
    entries = []
    (root / "blobs").mkdir(parents=True, exist_ok=True)
    for kind, data in layers.items():
        digest = hashlib.sha256(data).hexdigest()
        (root / "blobs" / f"sha256-{digest}").write_bytes(data)
        media = f"application/vnd.ollama.image.{kind}"
        entries.append({"mediaType": media, "digest": f"sha256:{digest}", "size": len(data)})
    path = root / "manifests" / name
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"schemaVersion": 2, "config": {}, "layers": entries}))
    return path


def tiny(folder: Path) -> bytes:
    return llama_gguf(folder / "a.gguf").read_bytes()


def test_ollama(home: Path, tmp_path: Path) -> None:
    root = home / ".ollama" / "models"
    stop = json.dumps({"stop": ["<|im_end|>", "User:"]}).encode()
    pulled(root, "registry.ollama.ai/library/tiny/latest", {"model": tiny(tmp_path), "params": stop})
    config = ModelConfig(model="ollama:tiny", mlx_path=str(tmp_path / "m"))
    manifest = ensure_model(config)
    assert manifest.source == "ollama:tiny:latest" and is_source("ollama:tiny", manifest.source)
    assert not is_source("ollama:tiny:1b", manifest.source)
    assert ensure_model(config) == manifest
    direct = ensure_model(ModelConfig(model=str(tmp_path / "a.gguf"), mlx_path=str(tmp_path / "direct")))
    assert direct.fingerprint == manifest.fingerprint
    blob = fetch("ollama:tiny").gguf
    assert blob is not None and fetch(str(blob)).gguf == blob
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.write_bytes(data)
    with pytest.raises(MlxmathError, match="is damaged: its SHA-256 .* pull the model again"):
        ensure_model(ModelConfig(model="ollama:tiny", mlx_path=str(tmp_path / "n")))


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("registry.ollama.ai/library/tiny/1b", "tiny:1b"),
        ("registry.ollama.ai/someone/tiny/latest", "someone/tiny"),
        ("hf.co/owner/tiny-GGUF/Q8_0", "hf.co/owner/tiny-GGUF:Q8_0"),
    ],
)
def test_names_in_ollama(place: str, name: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "elsewhere"))
    pulled(tmp_path / "elsewhere", place, {"model": b"GGUF"})
    assert fetch(f"ollama:{name}").gguf is not None
    with pytest.raises(InputError, match=f"It has: {name}"):
        fetch("ollama:absent")


def damage(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text())
    content["layers"][0].update(changes)
    path.write_text(json.dumps(content))


def test_what_ollama_lacks(home: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No model of Ollama's was found"):
        fetch("ollama:tiny")
    root = home / ".ollama" / "models"
    path = pulled(root, "registry.ollama.ai/library/tiny/latest", {"model": b"GGUF"})
    for name in ("ollama:../../etc/passwd", "ollama:", "ollama:a/b/c/d", "ollama:tiny:../x"):
        with pytest.raises(InputError, match="expected ollama:NAME"):
            fetch(name)
    damage(path, size=5)
    with pytest.raises(MlxmathError, match="pull the model again"):
        fetch("ollama:tiny")
    damage(path, digest="sha256:" + "0" * 64)
    with pytest.raises(MlxmathError, match="is missing, Ollama's file with the model"):
        fetch("ollama:tiny")
    damage(path, digest="sha256:../../../../etc/passwd")
    with pytest.raises(MlxmathError, match="a layer has no digest"):
        fetch("ollama:tiny")
    damage(path, digest="sha256:" + "0" * 64, mediaType="application/vnd.ollama.image.tensor")
    with pytest.raises(MlxmathError, match="has 0 GGUF files"):
        fetch("ollama:tiny")
    path.write_text("{}")
    with pytest.raises(MlxmathError, match="names no layers"):
        fetch("ollama:tiny")


def test_stop_texts_of_ollama_end_answers(home: Path, tmp_path: Path) -> None:
    data = tiny(tmp_path).replace(b"[PAD9]", b"<STOP>")
    stop = json.dumps({"stop": ["<STOP>", "User:"]}).encode()
    pulled(home / ".ollama" / "models", "registry.ollama.ai/library/tiny/latest", {"model": data, "params": stop})
    ensure_model(ModelConfig(model="ollama:tiny", mlx_path=str(tmp_path / "m")))
    assert read_json(tmp_path / "m" / "generation_config.json")["eos_token_id"] == [260, 258, 270]


def test_ollama_s_template_where_the_file_has_none(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, place = home / ".ollama" / "models", "registry.ollama.ai/library/{}/latest"
    pulled(root, place.format("tiny"), {"model": tiny(tmp_path), "template": b"Q: {{ .Prompt }}\nA: {{ .Response }}\n"})
    ensure_model(ModelConfig(model="ollama:tiny", mlx_path=str(tmp_path / "m")))
    template = (tmp_path / "m" / "chat_template.jinja").read_text()
    assert "Q: " in template
    pulled(root, place.format("odd"), {"model": tiny(tmp_path), "template": b"{{ with .System }}{{ . }}{{ end }}"})
    ensure_model(ModelConfig(model="ollama:odd", mlx_path=str(tmp_path / "n")))
    assert not (tmp_path / "n" / "chat_template.jinja").exists()
    assert "Ollama's template cannot be translated ({{ with .System }})" in capsys.readouterr().err


def test_lm_studio(home: Path, tmp_path: Path) -> None:
    folder = home / ".lmstudio" / "models" / "owner" / "tiny-GGUF"
    folder.mkdir(parents=True)
    (folder / "tiny-Q8_0.gguf").write_bytes(tiny(tmp_path))
    (folder / "mmproj-tiny.gguf").write_bytes(b"")
    assert fetch("lmstudio:owner/tiny-GGUF").gguf == folder / "tiny-Q8_0.gguf"
    found = fetch("owner/tiny-GGUF")  # the hub is not asked
    assert (found.name, found.gguf) == ("owner/tiny-GGUF", folder / "tiny-Q8_0.gguf")
    with pytest.raises(InputError, match="LM Studio has no such model"):
        fetch("lmstudio:owner/other")
    with pytest.raises(InputError, match="expected lmstudio:owner/name"):
        fetch("lmstudio:../..")
    with pytest.raises(InputError, match="is on this machine, where it has no revisions"):
        fetch("lmstudio:owner/tiny-GGUF", "main")


def test_what_lm_studio_has_does_not_hide_what_it_has_not(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = home / ".lmstudio" / "models" / "owner" / "tiny-GGUF"
    folder.mkdir(parents=True)
    (folder / "tiny-Q8_0.gguf").write_bytes(tiny(tmp_path))

    def download(repo: str, *asked: Any, **_: Any) -> tuple[Path, str]:
        return tmp_path / "hub" / repo, f"tiny-{asked[1]}.gguf"

    monkeypatch.setattr("mlxmath.weights.hub.download", download)
    assert fetch("owner/tiny-GGUF:q8_0").gguf == folder / "tiny-Q8_0.gguf"
    assert fetch("owner/tiny-GGUF:Q4_K_M").gguf == tmp_path / "hub" / "owner/tiny-GGUF" / "tiny-Q4_K_M.gguf"
    with pytest.raises(InputError, match="lmstudio:owner/tiny-GGUF: there is no GGUF file Q4_K_M there; it has: Q8_0"):
        fetch("lmstudio:owner/tiny-GGUF:Q4_K_M")
    (folder / "tiny-F32.gguf").write_bytes(tiny(tmp_path))
    with pytest.raises(InputError, match=r"as in owner/tiny-GGUF:F32\. There are: F32, Q8_0"):
        fetch("owner/tiny-GGUF")


def test_a_folder_with_gguf_files(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    one = llama_gguf(folder / "tiny-Q8_0.gguf")
    manifest = ensure_model(ModelConfig(model=str(folder), mlx_path=str(tmp_path / "m")))
    assert manifest.source == str(folder) and manifest.source_files[0].name == one.name
    llama_gguf(folder / "tiny-F32.gguf", seed=1)
    with pytest.raises(InputError, match=r"holds 2 models in GGUF form; .* There are: F32, Q8_0"):
        fetch(str(folder))
    assert fetch(f"{folder}:q8_0").gguf == one
    with pytest.raises(InputError, match="there is no GGUF file Q4_0 there; it has: F32, Q8_0"):
        fetch(f"{folder}:Q4_0")
    config = ModelConfig(model=f"{folder}:q8_0", mlx_path=str(tmp_path / "n"))
    assert ensure_model(config) == ensure_model(config)
    llama_gguf(one, seed=2)
    with pytest.raises(InputError, match="have changed since"):
        ensure_model(config)


def test_a_file_that_changed_is_noticed(tmp_path: Path) -> None:
    path = llama_gguf(tmp_path / "a.gguf")
    config = ModelConfig(model=str(path), mlx_path=str(tmp_path / "m"))
    ensure_model(config)
    llama_gguf(path, seed=1)
    with pytest.raises(InputError, match="have changed since"):
        ensure_model(config)
    path.unlink()
    assert ensure_model(config).source == str(path)


def test_which_of_several() -> None:
    names = [
        "README.md", "m-Q4_K_M.gguf", "m-Q4_K_S.gguf", "UD/m-IQ2_XXS-00001-of-00002.gguf",
        "UD/m-IQ2_XXS-00002-of-00002.gguf", "mmproj-F16.gguf",
    ]  # fmt: skip
    assert chosen_gguf(names, "Q4_K_M", "owner/m") == ["m-Q4_K_M.gguf"]
    assert chosen_gguf(names, "iq2_xxs", "owner/m") == names[3:5]
    assert chosen_gguf(names, "m-Q4_K_S.gguf", "owner/m") == ["m-Q4_K_S.gguf"]
    with pytest.raises(
        InputError, match="owner/m holds 3 models .* owner/m:IQ2_XXS. There are: IQ2_XXS, Q4_K_M, Q4_K_S"
    ):
        chosen_gguf(names, None, "owner/m")
    with pytest.raises(InputError, match="there is no GGUF file Q4_K there"):
        chosen_gguf(names, "Q4_K", "owner/m")
