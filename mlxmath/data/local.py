"""Opens local files of rows, and folders of them."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mlxmath.data.readers import COMPRESSED, READABLE, SUFFIXES, Row, kind_of, read_contents
from mlxmath.errors import InputError
from mlxmath.runtime.files import sha256

_NO_DATA = ("state.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json")
"""What `datasets` writes beside a dataset's rows."""


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
    forms: tuple[tuple[str, ...], ...] = ()
    """The different sets of columns that its rows have, where rows need not have all."""
    place: Callable[[int], str] = lambda index: f"row {index + 1:,}"
    """Where a row stands (numbered from 0), for people."""


def is_file_name(dataset: str) -> bool:
    """Whether `--dataset` means a file, not a repository."""
    return (
        dataset.startswith((".", "/", "~"))
        or Path(dataset).suffix.lower() in (*SUFFIXES, *COMPRESSED, ".txt")
        or Path(dataset).exists()
    )


def open_path(path: Path, split: str | None = None) -> Rows:
    """Open a local file, or a split's files in a folder.

    Files are of the split that their name begins with (`train.jsonl`, `data/train-00000-of-00002.parquet`) or that
    their folder is called (`train/part-1.jsonl`); a folder that `datasets` saved is as it was.

    Raises:
        InputError: it is absent, empty or of another kind, or the folder has no such split.
        MlxmathError: its contents are damaged.
    """
    if not path.is_dir():
        if split not in (None, "train", _stem(path)):
            raise InputError(f"--split: {path} is one file and has no {split!r}; leave the option out.")
        return open_file(path, split or "train")
    splits = _splits(path)
    if not splits:
        raise InputError(f"--dataset: {path} is a folder without any {READABLE} file.")
    chosen = split or ("train" if "train" in splits else next(iter(splits)))
    if chosen not in splits or (split is None and chosen != "train" and len(splits) > 1):
        raise InputError(f"--split: {path} has no split {split or 'train'!r}, but {', '.join(splits)}; choose one.")
    return chain(path.name, chosen, [open_file(file, chosen) for file in splits[chosen]])


def _splits(path: Path) -> dict[str, list[Path]]:
    """The files of each split of a folder."""
    if saved := _saved(path):
        return saved
    splits: dict[str, list[Path]] = {}
    folders = [path, path / "data"]
    for file in sorted(file for folder in folders for file in _files(folder)):
        splits.setdefault(_stem(file).partition("-")[0], []).append(file)
    if not splits:
        for folder in sorted(inner for outer in folders if outer.is_dir() for inner in outer.iterdir()):
            if files := [file for found in _saved(folder).values() for file in found] or sorted(_files(folder)):
                splits[folder.name] = files
    return splits


def _saved(folder: Path) -> dict[str, list[Path]]:
    """The split of a folder that `datasets` saved with `save_to_disk`; nothing for any other folder."""
    try:
        state = json.loads((folder / "state.json").read_bytes())
        files = [folder / str(file["filename"]) for file in state["_data_files"]]
        return {str(state.get("_split") or "train"): files}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _files(folder: Path) -> list[Path]:
    return [
        file
        for file in (folder.iterdir() if folder.is_dir() else ())
        if kind_of(file) and file.name not in _NO_DATA and not file.name.startswith(".") and file.is_file()
    ]


def _stem(file: Path) -> str:
    return Path(file.stem).stem if file.suffix.lower() in COMPRESSED else file.stem


def chain(name: str, split: str, parts: Sequence[Rows]) -> Rows:
    """Datasets of one kind, read one after the other."""
    if len(parts) == 1:
        return replace(parts[0], name=name)
    counts = [part.num_rows for part in parts]

    def place(index: int) -> str:
        for part in parts:
            count = sum(1 for _ in part.read(())) if part.num_rows is None else part.num_rows
            if index < count:
                return f"{part.place(index)} of {part.name}"
            index -= count
        raise IndexError(index)

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
        tuple(dict.fromkeys(form for part in parts for form in part.forms)),
        place,
    )


def open_file(path: Path, split: str = "train", option: str = "--dataset") -> Rows:
    """Open a local file; errors name the option that it was given with.

    Raises:
        InputError: the file is absent, empty or of another kind.
        MlxmathError: its contents are damaged.
    """
    if not path.is_file():
        raise AbsentError(f"{option}: {path} does not exist; give a {READABLE} file or a repository's name.")
    if kind_of(path) is None:
        raise InputError(f"{option}: {path} is not a {READABLE} file; convert it to one of these.")
    found = read_contents(path)
    if not found.columns or found.num_rows == 0:
        raise InputError(f"{option}: {path} holds no rows.")
    revision = f"sha256:{sha256(path)}"
    return Rows(path.name, split, revision, found.columns, found.read, found.num_rows, False, found.forms, found.place)
