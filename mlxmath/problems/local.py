"""Reads rows from local .jsonl, .json and .parquet files."""

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxmath.errors import InputError, MlxmathError
from mlxmath.files import sha256

SUFFIXES = (".jsonl", ".json", ".parquet")
_PEEK = 100
"""Rows whose keys are taken to be the columns of a JSON file."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Rows:
    """An opened dataset, before its columns have a meaning."""

    name: str
    """For people."""
    split: str
    revision: str
    """Identifies the exact data."""
    columns: tuple[str, ...]
    read: Callable[[tuple[str, ...]], Iterator[Row]]
    """Reads the rows; of large columns only those named are needed."""
    num_rows: int | None = None


def is_file_name(dataset: str) -> bool:
    """Whether `--dataset` means a file, not a repository."""
    return (
        dataset.startswith((".", "/", "~"))
        or Path(dataset).suffix.lower() in (*SUFFIXES, ".csv", ".txt", ".gz", ".zst", ".arrow")
        or Path(dataset).exists()
    )


def open_file(path: Path, split: str = "train") -> Rows:
    """Open a local file.

    Raises:
        InputError: the file is absent, a folder, empty or of another kind.
        MlxmathError: its contents are damaged.
    """
    if path.is_dir():
        inside = sorted(p.name for p in path.iterdir() if p.suffix in SUFFIXES)
        found = f"it holds {', '.join(inside[:8])}" if inside else f"it holds no {' or '.join(SUFFIXES)} file"
        raise InputError(f"--dataset: {path} is a folder; name a file ({found}).")
    if not path.is_file():
        raise InputError(f"--dataset: {path} does not exist; give a {', '.join(SUFFIXES)} file or a repository's name.")
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(f"--dataset: {path} is not a {', '.join(SUFFIXES)} file; convert it to one of these.")
    if suffix == ".parquet":
        return _open_parquet(path, split)
    rows = _json_lines if suffix == ".jsonl" else _json_rows
    columns = dict.fromkeys(name for row in itertools.islice(rows(path), _PEEK) for name in row)
    if not columns:
        raise InputError(f"--dataset: {path} holds no rows.")
    return Rows(path.name, split, f"sha256:{sha256(path)}", tuple(columns), lambda _: rows(path))


def _json_lines(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                if not text.strip():
                    continue
                row = json.loads(text)
            except ValueError as error:
                found = f"{error.msg}, at character {error.pos}" if isinstance(error, json.JSONDecodeError) else error
                raise MlxmathError(
                    f"{path}:{number}: expected one JSON object in this line, found {found}; mend or remove the line."
                ) from None
            if not isinstance(row, dict):
                raise MlxmathError(
                    f"{path}:{number}: expected a JSON object with named columns, found {_kind(row)}; "
                    "mend or remove the line."
                )
            yield row


def _json_rows(path: Path) -> Iterator[Row]:
    """Rows of a JSON list, of an object that holds one list, or of JSON lines under a .json name."""
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        if isinstance(error, json.JSONDecodeError) and error.msg == "Extra data":
            yield from _json_lines(path)
            return
        line = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise MlxmathError(f"{path}{line}: expected a JSON list of rows, found {error}; mend the file.") from None
    if isinstance(value, dict):
        lists = [item for item in value.values() if isinstance(item, list)]
        value = lists[0] if len(lists) == 1 else value
    if not isinstance(value, list):
        raise MlxmathError(f"{path}: expected a JSON list of rows, found {_kind(value)}.")
    for number, row in enumerate(value, 1):
        if not isinstance(row, dict):
            raise MlxmathError(f"{path}: row {number}: expected a JSON object, found {_kind(row)}; mend the file.")
        yield row


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _open_parquet(path: Path, split: str) -> Rows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            num_rows = file.metadata.num_rows
    except (pa.ArrowException, OSError) as error:
        raise MlxmathError(f"{path} is not a readable parquet file: {error}") from None
    if not num_rows:
        raise InputError(f"--dataset: {path} holds no rows.")

    def read(used: tuple[str, ...]) -> Iterator[Row]:
        wanted = [field.name for field in schema if field.name in used or not pa.types.is_nested(field.type)]
        try:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(1000, columns=wanted):
                    yield from batch.to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise MlxmathError(f"{path} is damaged: {error}") from None

    return Rows(path.name, split, f"sha256:{sha256(path)}", tuple(schema.names), read, num_rows)
