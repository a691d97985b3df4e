"""What a new run can start from: models, data and earlier runs in the studio's folder."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlencode

from mlxmath.config.load import RUN, RUN_FILE
from mlxmath.config.section import DEMO
from mlxmath.errors import MlxmathError
from mlxmath.parsing import HALF_A_CHARACTER
from mlxmath.runtime.console import size
from mlxmath.runtime.files import read_json
from mlxmath.studio.place import Studio

_MANIFEST, _CONFIG = "mlxmath.json", "config.json"
_DATA = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow")
_COMPRESSED = (".gz", ".bz2", ".zst")
_NO_DATA = (_MANIFEST, _CONFIG, RUN, "adapter_config.json", "results.json", "job.json", "state.json")
"""Folders with such a file are models, runs, evaluations: what lies in them is not made to be trained on."""
_NO_ROWS = ("settings.json", "plan.json", "progress.json", "sweep.json", "responses.jsonl", "prepared.json")
"""Files that commands keep for themselves."""
_MOST = 200
"""Of each kind that a page offers."""


class Choice(NamedTuple):
    """Something to choose."""

    value: str
    """Settings, as in an address."""
    label: str


class Found(NamedTuple):
    """What there is."""

    models: list[Choice]
    data: list[Choice]
    runs: list[Choice]


def choices(studio: Studio) -> Found:
    """Look through the folder, once."""
    models = [Choice(urlencode({"model": DEMO, "mlx_path": ""}), f"{DEMO}: the bundled model, for a try")]
    data = [Choice(urlencode({"dataset": DEMO}), f"{DEMO}: the bundled problems")]
    runs: list[tuple[float, Choice]] = []
    for folder, inner in studio.folders():
        inner = [entry for entry in inner if not HALF_A_CHARACTER.search(str(entry))]  # others no page can name
        names = {entry.name for entry in inner}
        if RUN_FILE in names and RUN in names:
            runs.append((_changed(folder / RUN), Choice(urlencode({"from": studio.name(folder)}), studio.name(folder))))
        elif _MANIFEST in names:
            models += _converted(studio, folder)
        elif _CONFIG in names and any(name.endswith((".safetensors", ".bin")) for name in names):
            name = studio.name(folder)
            models.append(Choice(urlencode({"model": name, "mlx_path": ""}), f"{name}: a model folder"))
        for entry in inner:
            if entry.suffix.lower() == ".gguf":
                models.append(_file(studio, entry, model=True))
            elif not names.intersection(_NO_DATA) and _is_data(entry):
                data.append(_file(studio, entry))
    newest = [choice for _, choice in sorted(runs, reverse=True)]
    return Found(models[:_MOST], data[:_MOST], newest[:_MOST])


def _converted(studio: Studio, folder: Path) -> Iterator[Choice]:
    """A folder that `mlxmath convert` has made: what it was made from, and where it lies."""
    try:
        manifest = read_json(folder / _MANIFEST)
    except (OSError, MlxmathError):
        return
    source = manifest.get("source") if isinstance(manifest, dict) else None
    if not isinstance(source, str) or HALF_A_CHARACTER.search(source):
        return
    name, kind = studio.name(folder), manifest.get("quantization")
    if Path(source).is_absolute():  # a folder or file that need not be there any more; this one says what it was
        source = name
    bits = f", {kind['bits']} bits" if isinstance(kind, dict) and isinstance(kind.get("bits"), int) else ""
    yield Choice(urlencode({"model": source, "mlx_path": name}), f"{name}: {source}, converted{bits}")


def _is_data(path: Path) -> bool:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _COMPRESSED:
        suffixes.pop()
    is_one = bool(suffixes) and suffixes[-1] in _DATA and path.name not in _NO_ROWS and not path.name.startswith(".")
    return is_one and path.is_file()


def _file(studio: Studio, path: Path, *, model: bool = False) -> Choice:
    name = studio.name(path)
    settings = {"model": name, "mlx_path": ""} if model else {"dataset": name}
    return Choice(urlencode(settings), f"{name} ({size(path.stat().st_size)})")


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def method_of(studio: Studio, run: str) -> str | None:
    """The command that a run was made by; None where its record does not say."""
    try:
        record = read_json(studio.inside(run) / RUN)
    except (OSError, MlxmathError):
        return None
    found = record.get("method") if isinstance(record, dict) else None
    return found if isinstance(found, str) else None
