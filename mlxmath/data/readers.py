"""Reads rows out of one file: JSON lines, JSON, CSV, Parquet or Arrow; texts also compressed."""

import csv
import io
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from mlxmath.errors import MlxmathError, library_errors
from mlxmath.runtime.files import parse_json

Row = dict[str, Any]

TEXTS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
TABLES = (".parquet", ".arrow")
COMPRESSED = (".gz", ".bz2", ".zst")
SUFFIXES = (*TEXTS, *TABLES)
READABLE = ".jsonl, .json, .csv, .tsv, .parquet or .arrow"
"""For people."""
_LONGEST_CELL = 2**31 - 1
_DELIMITERS = ",;\t"


@dataclass(frozen=True)
class Rows:
    """An opened dataset, before its columns have a meaning."""

    name: str
    """For people."""
    columns: tuple[str, ...]
    """Of any of its rows."""
    read: Callable[[tuple[str, ...]], Iterator[Row]]
    """Reads the rows; of nested or large columns only those named are needed."""
    forms: tuple[tuple[str, ...], ...] = ()
    """The different sets of columns that its rows have, where rows need not have all."""
    num_rows: int | None = None
    place: Callable[[int], str] = lambda index: f"row {index + 1:,}"
    """Where a row stands (numbered from 0), for people."""
    split: str = "train"
    revision: str = ""
    """Identifies the exact data."""
    streamed: bool = False
    """Read from the network, row by row: as few as possible."""


def kind_of(path: Path) -> str | None:
    """The suffix of `SUFFIXES` that a file's name ends in, before one of `COMPRESSED` if it is text; or None."""
    suffix = path.suffix.lower()
    if suffix in COMPRESSED:
        inner = Path(path.stem).suffix.lower()
        return inner if inner in TEXTS else None
    return suffix if suffix in SUFFIXES else None


def read_file(path: Path) -> Rows:
    """Open a file whose name has a `kind_of`.

    Raises:
        MlxmathError: it is damaged.
    """
    kind = kind_of(path)
    if kind in TABLES:
        return _table(path)
    return _texts(path, {".csv": _cells, ".tsv": _cells, ".json": _json_rows}.get(str(kind), _json_lines))


def _texts(path: Path, numbered: Callable[[Path], Iterator[tuple[str, Row]]]) -> Rows:
    """A file of text is read once through for its columns: any row may be the first that has one."""
    forms: dict[tuple[str, ...], None] = {}
    try:
        for _, row in numbered(path):
            forms.setdefault(tuple(row))
    except MlxmathError:
        if not forms:  # what is damaged further down may lie behind the rows that are wanted
            raise

    def place(index: int) -> str:
        return next(itertools.islice(numbered(path), index, None))[0]

    columns = tuple(dict.fromkeys(name for form in forms for name in form))
    return Rows(path.name, columns, lambda _: (row for _, row in numbered(path)), tuple(forms), place=place)


def _open(path: Path) -> IO[bytes]:
    """A file's bytes, decompressed if need be.

    Reading raises OSError where they are damaged.
    """
    if path.suffix.lower() not in COMPRESSED:
        return path.open("rb")
    import pyarrow as pa

    return io.BufferedReader(pa.input_stream(str(path), compression="detect"))


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with _open(path) as file:
            yield from file
    except OSError as error:
        raise MlxmathError(f"{path} cannot be read to its end: {error}; fetch or write it again.") from None


def _json_lines(path: Path) -> Iterator[tuple[str, Row]]:
    for number, line in enumerate(_lines(path), 1):
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
        yield f"line {number:,}", row


def _json_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Rows of a JSON list, of an object that holds one list, or of JSON lines under a .json name."""
    try:
        value = parse_json(b"".join(_lines(path)).decode("utf-8-sig"))
    except ValueError as error:
        if isinstance(error, json.JSONDecodeError) and error.msg == "Extra data":
            yield from _json_lines(path)
            return
        line = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise MlxmathError(f"{path}{line}: expected a JSON list of rows, found {error}; mend the file.") from None
    if isinstance(value, dict):
        value = _rows_of(value)
    if not isinstance(value, list):
        raise MlxmathError(f"{path}: expected a JSON list of rows, found {_kind(value)}.")
    for number, row in enumerate(value, 1):
        if not isinstance(row, dict):
            raise MlxmathError(f"{path}: row {number}: expected a JSON object, found {_kind(row)}; mend the file.")
        yield f"row {number:,}", row


def _rows_of(value: dict[str, Any]) -> Any:
    """The rows in an object: its one list, or what pandas writes (columns of lists, or of {"0": …}), or rows by id."""
    parts = list(value.values())
    lists = [part for part in parts if isinstance(part, list)]
    if len(lists) == 1:
        return lists[0]
    if (
        lists == parts
        and len({len(part) for part in lists}) == 1
        and not any(isinstance(part[0], dict) for part in lists if part)
    ):
        return [dict(zip(value, cells, strict=True)) for cells in zip(*lists, strict=True)]
    if parts and all(isinstance(part, dict) for part in parts):
        numbers = [str(index) for index in range(len(parts[0]))]
        if all(list(part) == numbers for part in parts):
            return [{name: column[number] for name, column in value.items()} for number in numbers]
        return [{"id": name, **row} for name, row in value.items()]
    return value


def _cells(path: Path) -> Iterator[tuple[str, Row]]:
    """Rows of a table of text whose first line names the columns; cells are text, never numbers."""
    csv.field_size_limit(_LONGEST_CELL)
    lines = (line.decode("utf-8-sig" if number == 0 else "utf-8") for number, line in enumerate(_lines(path)))
    number = 1
    try:
        first = next(lines, "")
        delimiter = max(_DELIMITERS, key=first.count)
        reader = csv.reader(itertools.chain([first], lines), delimiter=delimiter, strict=True)
        names = next(reader, [])
        number = reader.line_num + 1
        for cells in reader:
            if len(cells) != len(names) and cells:
                raise ValueError(f"{len(cells)} cells")
            if cells:
                yield f"line {number:,}", dict(zip(names, cells, strict=True))
            number = reader.line_num + 1
    except (ValueError, csv.Error) as error:
        raise MlxmathError(
            f"{path}:{number}: expected a row with a cell for each of the columns of the first line, found {error}; "
            "mend or remove the row (cells with line breaks, quotes or the delimiter in them stand in double quotes)."
        ) from None


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _table(path: Path) -> Rows:
    """A Parquet file, or one of Arrow's file or stream format (in which `datasets` saves to disk)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    is_parquet = kind_of(path) == ".parquet"

    damaged = partial(library_errors, f"{path} is damaged", "Fetch it or write it again.")

    def opened(used: tuple[str, ...]) -> Iterator[Any]:
        """The schema, and the batches of rows with the columns used and the plain ones beside them."""

        def wanted(schema: pa.Schema) -> list[str]:
            return [field.name for field in schema if field.name in used or not pa.types.is_nested(field.type)]

        try:
            if is_parquet:
                with pq.ParquetFile(path) as file:
                    yield file.schema_arrow
                    yield from file.iter_batches(1000, columns=wanted(file.schema_arrow))
                return
            with pa.OSFile(str(path)) as source:  # a map of a file that is cut short would end the process
                try:
                    file = pa.ipc.open_file(source)
                    batches = map(file.get_batch, range(file.num_record_batches))
                except pa.ArrowInvalid:
                    source.seek(0)
                    file = batches = pa.ipc.open_stream(source)
                yield file.schema
                yield from (batch.select(wanted(file.schema)) for batch in batches)
        except (pa.ArrowException, OSError) as error:
            kind = "parquet" if is_parquet else "Arrow"
            raise MlxmathError(f"{path} is not a readable {kind} file: {error}") from None

    def read(used: tuple[str, ...]) -> Iterator[Row]:
        batches = itertools.islice(opened(used), 1, None)
        rows: list[Row] | None = []
        while rows is not None:
            with damaged():
                if (batch := next(batches, None)) is not None:
                    batch.validate(full=True)  # places and characters, which pyarrow takes as they are
                rows = None if batch is None else batch.to_pylist()
            yield from rows or ()

    with damaged():
        found = opened(())
        names = tuple(next(found).names)
        num_rows = pq.read_metadata(path).num_rows if is_parquet else sum(batch.num_rows for batch in found)
    return Rows(path.name, names, read, (names,), num_rows)
