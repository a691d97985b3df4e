"""Which files of a folder belong to what it holds, and that nothing private is in them.

Small files of JSON are sent with the paths of this machine cut down to their last part; a key, or a path of somebody's
home in any other text, is an error.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mlxmath.config.load import RUN
from mlxmath.errors import InputError, MlxmathError
from mlxmath.models.lora.adapter import CONFIG, WEIGHTS
from mlxmath.runtime.files import inside, read_json, real
from mlxmath.runtime.sealed import resealed, unsealed_json
from mlxmath.runtime.secrets import has_secret
from mlxmath.weights.download import LICENSES, TOKENIZER_FILES
from mlxmath.weights.hub import weight_files
from mlxmath.weights.manifest import FILE_NAME
from mlxmath.weights.safetensor import open_safetensors

Kind = Literal["mlx adapter", "peft adapter", "mlx model", "transformers model", "gguf"]
PEFT_WEIGHTS = "adapter_model.safetensors"
EXPORT = "mlxmath_export.json"
"""What an export notes of its origin; it stays here."""
CARD = "README.md"
_PICTURES = ("loss.png", "curves.png")
_BESIDE = ("chat_template.jinja", "mlxmath_adapter.json", *LICENSES)
_VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "added_tokens.json")
_OBJECTS = ("config", "origin", "data", "device", "adapter")
"""Of run.json."""
_BINARY = (".safetensors", ".gguf", ".model", ".tiktoken", ".png")
_HEAD_BYTES = 1 << 20
"""Of a file with weights, where its own texts stand."""
_OF_SOMEBODY = re.compile(r"/(?:home|Users)/[^/\s\"']+/|[A-Za-z]:\\Users\\")
_WHOLE_PATH = re.compile(r"(?:~[/\\]|[A-Za-z]:[/\\]|/[^/\n{}<>]+/)[^\n{}<>]+")
_LOCAL_PATH = re.compile(r"(?<![\w:/.])(?:~|(?:/[\w.@+-]+)(?=/)|[A-Za-z]:)(?:[/\\][\w.@+-]+)+")


@dataclass(frozen=True)
class Contents:
    """What a folder holds.

    Attributes:
        kind: in which form.
        folder: where it lies.
        files: what belongs to it, by the name that it gets.
        config: its adapter_config.json or config.json; nothing for GGUF.
        run_folder: the folder of the run that made it, as far as is known.
        record: run.json of that run; nothing where it is not known.
    """

    kind: Kind
    folder: Path
    files: Mapping[str, Path | bytes]
    config: Mapping[str, Any]
    run_folder: Path | None
    record: Mapping[str, Any]

    @property
    def is_adapter(self) -> bool:
        """Whether it needs its base."""
        return self.kind.endswith("adapter")

    def size(self, name: str) -> int:
        """Bytes of a file."""
        file = self.files[name]
        return len(file) if isinstance(file, bytes) else file.stat().st_size


def contents_of(folder: Path, run: Path | None = None) -> Contents:
    """Look at a folder.

    Args:
        folder: with an adapter, a model or GGUF files.
        run: the folder of the run that made it (None: the folder itself, the one around `best/`, or the one that an
            export names).

    Raises:
        InputError: there is no such folder, or nothing in it that can be pushed.
        MlxmathError: a file is damaged, or holds something private.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; expected one with an adapter, a model or GGUF files.")
    kind, names = _found(folder)
    config = {} if kind == "gguf" else read_json(folder / (CONFIG if kind.endswith("adapter") else "config.json"))
    if not isinstance(config, dict):
        raise MlxmathError(f"{folder} holds no configuration: expected an object of JSON.")
    run_folder = _run_folder(folder, run)
    record = _record(run_folder / RUN) if run_folder else {}
    files: dict[str, Path | bytes] = {name: folder / name for name in names}
    for name in _PICTURES:
        if run_folder and (run_folder / name).is_file():
            files[name] = run_folder / name
    for name, path in files.items():
        files[name] = _checked(name, Path(str(path)))
    return Contents(kind, folder, files, config, run_folder, record)


def _found(folder: Path) -> tuple[Kind, list[str]]:
    """What lies in a folder, and the names of the files that belong to it."""
    kind: Kind
    beside = sorted(path.name for pattern in _BESIDE for path in folder.glob(pattern) if path.is_file())
    if (folder / CONFIG).is_file():
        for kind, weights in (("mlx adapter", WEIGHTS), ("peft adapter", PEFT_WEIGHTS)):
            if (folder / weights).is_file():
                open_safetensors(folder / weights)
                return kind, [CONFIG, weights, *beside]
        raise InputError(f"{folder} holds no adapter: neither {WEIGHTS} nor {PEFT_WEIGHTS} is there.")
    if ggufs := sorted(path.name for path in folder.glob("*.gguf")):
        modelfile = ["Modelfile"] if (folder / "Modelfile").is_file() else []
        return "gguf", [*ggufs, *modelfile, *beside]
    if (folder / "config.json").is_file():
        shards, _ = weight_files(folder)
        if any(path.suffix != ".safetensors" for path in shards):
            raise InputError(f"{folder}: only safetensors are pushed, which run nothing; convert the model first.")
        index = folder / "model.safetensors.index.json"
        others = {path.name for pattern in TOKENIZER_FILES for path in folder.glob(pattern) if path.is_file()}
        others |= {name for name in (FILE_NAME, index.name) if (folder / name).is_file()}
        kind = "mlx model" if _form(shards[0]) == "mlx" else "transformers model"
        return kind, list(dict.fromkeys(["config.json", *(path.name for path in shards), *sorted(others), *beside]))
    raise InputError(
        f"{folder} holds nothing to push: expected an adapter ({CONFIG}), a model (config.json and safetensors) or "
        "GGUF files."
    )


def _form(path: Path) -> str | None:
    """Whose tensors a safetensors file says that it holds: "mlx", "pt"."""
    open_safetensors(path)  # checks the header
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    metadata = header.get("__metadata__")
    return metadata.get("format") if isinstance(metadata, dict) else None


def _run_folder(folder: Path, run: Path | None) -> Path | None:
    """The folder of the run that made what `folder` holds.

    Raises:
        InputError: `run` is none.
    """
    if run is not None:
        if not (run / RUN).is_file():
            raise InputError(f"--run {run}: {RUN} is not there; expected the folder of a training run.")
        return run
    places = [folder, real(folder).parent] if real(folder).name == "best" else [folder]
    if (folder / EXPORT).is_file():
        adapter = unsealed_json(folder / EXPORT, None).get("adapter")
        if isinstance(adapter, str):
            places += [Path(adapter), Path(adapter).parent]
    return next((place for place in places if (place / RUN).is_file()), None)


def _record(path: Path) -> dict[str, Any]:
    """What run.json holds.

    Raises:
        MlxmathError: it is damaged.
    """
    record = unsealed_json(path, None)
    parts = {name: record.get(name, {}) for name in _OBJECTS}
    if isinstance(record.get("config"), dict):
        parts |= {f"config.{name}": section for name, section in record["config"].items()}
    if type(record.get("steps", 0)) is not int:
        raise MlxmathError(f"{path} is damaged: steps is no number.")
    for name, part in parts.items():
        if not isinstance(part, dict):
            raise MlxmathError(f"{path} is damaged: {name} is no object of JSON.")
    return record


def _checked(name: str, path: Path) -> Path | bytes:
    """The file, or what is sent in its place.

    Raises:
        MlxmathError: it holds something private.
    """
    if name.endswith(".json") and name not in _VOCABULARIES:
        data = read_json(path)
        public = resealed(without_paths(data))
        text = json.dumps(public, indent=2, ensure_ascii=False) + "\n"
        check_public(name, text)
        return path if public == data else text.encode()
    if name.endswith(_BINARY) or name in _VOCABULARIES:
        with path.open("rb") as file:
            text = file.read(_HEAD_BYTES).decode("latin-1")
        if name.endswith((".safetensors", ".gguf")):
            check_public(name, text)
        return path
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise MlxmathError(f"{path} is not readable text: {error}.") from None
    if name == "Modelfile":
        _check_modelfile(path, text)
    check_public(name, text)
    return path


def _check_modelfile(path: Path, text: str) -> None:
    """A Modelfile names its model beside it.

    Raises:
        MlxmathError: it names one that lies elsewhere.
    """
    for found in re.findall(r"^(?:FROM|ADAPTER)\s+(\S+)", text, re.MULTILINE | re.IGNORECASE):
        if found.endswith(".gguf") and not inside(path.parent, found.removeprefix("./")).is_file():
            raise MlxmathError(f"{path} names {found}, which is not beside it; export it again with --to ollama.")


def check_public(name: str, text: str) -> None:
    """Refuse a text that others must not see.

    Raises:
        MlxmathError: a key, or a path in somebody's home, stands in it.
    """
    if has_secret(text):
        raise MlxmathError(f"{name} holds what looks like a key or a password; nothing was pushed. Take it out first.")
    home = str(Path.home())
    personal = _OF_SOMEBODY.search(text)
    if personal or (home.count("/") > 1 and f"{home}/" in text):
        found = personal[0] if personal else home
        raise MlxmathError(f"{name} names a folder of this machine ({found}…); nothing was pushed. Take it out first.")


def without_paths(value: Any) -> Any:
    """A JSON value with the last part of each text that is a whole path of this machine."""
    if isinstance(value, str):
        return re.split(r"[/\\]", value.rstrip("/\\"))[-1] if is_local_path(value) else value
    if isinstance(value, dict):
        return {name: without_paths(inner) for name, inner in value.items()}
    return [without_paths(inner) for inner in value] if isinstance(value, list) else value


def is_local_path(text: str) -> bool:
    """Whether a text is nothing but a path from the root, a drive or somebody's home on."""
    return _WHOLE_PATH.fullmatch(text) is not None


def last_parts(text: str) -> str:
    """A text of several words with the last part of each path of this machine in it."""
    return _LOCAL_PATH.sub(lambda found: re.split(r"[/\\]", found[0])[-1], text)
