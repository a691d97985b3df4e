"""Reads rows from local .jsonl, .json and .parquet files, and from folders of them."""

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlxmath.errors import InputError, MlxmathError
from mlxmath.files import sha256
from mlxmath.records import parse_json

SUFFIXES = (".jsonl", ".json", ".parquet")
_PEEK = 100
"""Rows whose keys are taken to be the columns of a JSON file."""

Row = dict[str, Any]


class AbsentError(InputError):
    """There is no dataset of that name; a declared fall-back may take its place."""


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
    streamed: bool = False
    """Read from the network, row by row: as few as possible."""


def is_file_name(dataset: str) -> bool:
    """Whether `--dataset` means a file, not a repository."""
    return (
        dataset.startswith((".", "/", "~"))
        or Path(dataset).suffix.lower() in (*SUFFIXES, ".csv", ".txt", ".gz", ".zst", ".arrow")
        or Path(dataset).exists()
    )


def open_path(path: Path, split: str | None = None) -> Rows:
    """Open a local file, or a split's files in a folder (`train.jsonl`, `data/train-00000-of-00002.parquet`).

    Raises:
        InputError: it is absent, empty or of another kind, or the folder has no such split.
        MlxmathError: its contents are damaged.
    """
    if not path.is_dir():
        if split not in (None, "train", path.stem):
            raise InputError(f"--split: {path} is one file and has no {split!r}; leave the option out.")
        return open_file(path, split or "train")
    inside = sorted(p for folder in (path, path / "data") for p in folder.glob("*") if p.suffix.lower() in SUFFIXES)
    splits: dict[str, list[Path]] = {}
    for file in inside:
        splits.setdefault(file.stem.partition("-")[0], []).append(file)
    if not splits:
        raise InputError(f"--dataset: {path} is a folder without any {', '.join(SUFFIXES)} file.")
    chosen = split or ("train" if "train" in splits else next(iter(splits)))
    if chosen not in splits or (split is None and chosen != "train" and len(splits) > 1):
        raise InputError(f"--split: {path} has no split {split or 'train'!r}, but {', '.join(splits)}; choose one.")
    return chain(path.name, chosen, [open_file(file, chosen) for file in splits[chosen]])


def chain(name: str, split: str, parts: Sequence[Rows]) -> Rows:
    """Datasets with the same columns, read one after the other."""
    if len(parts) == 1:
        return replace(parts[0], name=name)
    counts = [part.num_rows for part in parts]

    def read(used: tuple[str, ...]) -> Iterator[Row]:
        for part in parts:
            yield from part.read(used)

    return Rows(
        name,
        split,
        "+".join(part.revision for part in parts),
        tuple(dict.fromkeys(column for part in parts for column in part.columns)),
        read,
        None if None in counts else sum(count or 0 for count in counts),
        any(part.streamed for part in parts),
    )


def open_file(path: Path, split: str = "train", option: str = "--dataset") -> Rows:
    """Open a local file; errors name the option that it was given with.

    Raises:
        InputError: the file is absent, empty or of another kind.
        MlxmathError: its contents are damaged.
    """
    if not path.is_file():
        raise AbsentError(f"{option}: {path} does not exist; give a {', '.join(SUFFIXES)} file or a repository's name.")
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(f"{option}: {path} is not a {', '.join(SUFFIXES)} file; convert it to one of these.")
    if suffix == ".parquet":
        return _open_parquet(path, split, option)
    rows = _json_lines if suffix == ".jsonl" else _json_rows
    columns = dict.fromkeys(name for row in itertools.islice(rows(path), _PEEK) for name in row)
    if not columns:
        raise InputError(f"{option}: {path} holds no rows.")
    return Rows(path.name, split, f"sha256:{sha256(path)}", tuple(columns), lambda _: rows(path))


def _json_lines(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                if not text.strip():
                    continue
                row = parse_json(text)
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
        value = parse_json(path.read_text(encoding="utf-8-sig"))
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


def _open_parquet(path: Path, split: str, option: str) -> Rows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            num_rows = file.metadata.num_rows
    except (pa.ArrowException, OSError) as error:
        raise MlxmathError(f"{path} is not a readable parquet file: {error}") from None
    if not num_rows:
        raise InputError(f"{option}: {path} holds no rows.")

    def read(used: tuple[str, ...]) -> Iterator[Row]:
        wanted = [field.name for field in schema if field.name in used or not pa.types.is_nested(field.type)]
        try:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(1000, columns=wanted):
                    yield from batch.to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise MlxmathError(f"{path} is damaged: {error}") from None

    return Rows(path.name, split, f"sha256:{sha256(path)}", tuple(schema.names), read, num_rows)
