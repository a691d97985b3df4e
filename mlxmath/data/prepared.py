"""What rows the settings of earlier runs came to, for those who want to know it without opening data or tokenizer."""

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

from mlxmath.config.schema import DataConfig
from mlxmath.data.cache import TokenRows
from mlxmath.data.local import is_file_name
from mlxmath.errors import MlxmathError
from mlxmath.runtime.console import warn
from mlxmath.runtime.files import atomic_json, read_json

_NOTES = "prepared.json"
"""In the cache folder."""


class Prepared(NamedTuple):
    """What a cache holds."""

    rows: int
    tokens: int


def prepared(config: DataConfig, model_folder: Path, *, pairs: bool = False) -> Prepared | None:
    """What `prepare_rows` with these settings came to the last time. Neither the data nor the tokenizer is opened."""
    try:
        return Prepared(
            **read_json(Path(config.cache_dir).expanduser() / _NOTES)[_key(config, model_folder, pairs=pairs)]
        )
    except (MlxmathError, OSError, KeyError, TypeError):
        return None


def note(config: DataConfig, model_folder: Path, rows: TokenRows, *, pairs: bool) -> None:
    """Write down for `prepared` what rows there are."""
    path = Path(config.cache_dir).expanduser() / _NOTES
    try:
        notes = read_json(path) if path.exists() else {}
        notes[_key(config, model_folder, pairs=pairs)] = {"rows": len(rows), "tokens": len(rows.tokens)}
        atomic_json(path, notes)
    except (MlxmathError, TypeError) as error:
        warn(f"{path} is not up to date, which only `mlxmath plan` notices: {error}")


def _key(config: DataConfig, model_folder: Path, *, pairs: bool) -> str:
    """The settings, and the size and time of what is a file."""
    names = [name for name in (config.dataset, config.template_file) if name and is_file_name(str(name))]
    files = [path.stat() for path in map(Path, map(str, names)) if path.exists()]
    facts = [
        config.model_dump(mode="json", exclude={"cache_dir"}), str(model_folder.resolve()), pairs,
        [[found.st_size, found.st_mtime_ns] for found in files],
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
