"""Opens rows, before their columns have a meaning: of local files and folders, and of dataset repositories."""

import itertools
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlxmath.config.schema import SourceConfig
from mlxmath.data.columns import near
from mlxmath.data.datasets import DATASETS
from mlxmath.data.readers import COMPRESSED, READABLE, SUFFIXES, Row, Rows, kind_of, read_file
from mlxmath.errors import InputError, MlxmathError
from mlxmath.runtime.console import say
from mlxmath.runtime.files import sha256

STREAM_UP_TO = 10_000
"""If the first rows of a repository up to this many are wanted, they are streamed; it is not downloaded whole."""
SHUFFLE_BUFFER = 10_000
"""Rows among which those of a stream are drawn."""

_NO_DATA = ("state.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json")
"""What `datasets` writes beside a dataset's rows."""


_MOST_FILES = 10_000


class AbsentError(InputError):
    """There is no dataset of that name; a declared fall-back may take its place."""


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


def files_of(path: Path) -> list[Path]:
    """The files that `open_path` may read, whichever the split; of very many the first."""
    files = [file for found in _splits(path).values() for file in found] if path.is_dir() else [path]
    return [file for file in files[:_MOST_FILES] if file.is_file()]


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

    return Rows(
        name,
        columns=tuple(dict.fromkeys(column for part in parts for column in part.columns)),
        read=lambda used: itertools.chain.from_iterable(part.read(used) for part in parts),
        forms=tuple(dict.fromkeys(form for part in parts for form in part.forms)),
        num_rows=None if None in counts else sum(count or 0 for count in counts),
        place=place,
        split=split,
        revision="+".join(part.revision for part in parts),
        streamed=any(part.streamed for part in parts),
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
    found = read_file(path)
    if not found.columns or found.num_rows == 0:
        raise InputError(f"{option}: {path} holds no rows.")
    return replace(found, split=split, revision=f"sha256:{sha256(path)}")


def open_repository(source: SourceConfig, *, first: int | None = None, shuffle_seed: int | None = None) -> Rows:
    """Open a dataset repository at one commit; its Arrow files stay on disk.

    Args:
        source: which repository, commit, configuration and split.
        first: only the first so many rows are wanted; a few are streamed if the dataset is not on disk.
        shuffle_seed: stream the dataset in a seeded order, whatever its size.

    Raises:
        InputError: the dataset, its revision, configuration or split does not exist.
        MlxmathError: the hub cannot be reached and there is no local copy, or the data cannot be read.
    """
    import datasets

    name = source.dataset
    say(f"opening {name} on the hub")
    with _clear_errors(source):
        builder = datasets.load_dataset_builder(name, source.config, revision=source.revision)
    asked = source.revision
    commit = builder.hash
    if asked is not None and re.fullmatch("[0-9a-f]{40}", asked) and commit != asked:
        raise MlxmathError(
            f"--dataset-revision: the hub cannot be reached, and the local copy of {name} is {commit}, not {asked}."
        )
    few = first is not None and first <= STREAM_UP_TO and not Path(builder.cache_dir).is_dir()
    with _clear_errors(source):
        streams = builder.as_streaming_dataset() if few or shuffle_seed is not None else {}
        splits = list(streams or builder.info.splits or ())
        split = choose_split(source, splits) if splits else ""  # an unknown split is told before the download
        if split in streams:
            data = streams[split]
            if shuffle_seed is not None:
                data = data.shuffle(seed=shuffle_seed, buffer_size=SHUFFLE_BUFFER)
        else:
            builder.download_and_prepare()
            split = choose_split(source, list(builder.info.splits))
            data = builder.as_dataset(split=split)
    columns = data.column_names
    if columns is None:  # a stream without metadata
        with _clear_errors(source):
            columns = list(next(iter(data), {}))

    def read(used: tuple[str, ...]) -> Iterator[Row]:
        with _clear_errors(source):
            yield from _rows(data.select_columns(_wanted(data.features, columns, used)))

    num_rows = len(data) if isinstance(data, datasets.Dataset) else None
    revision = f"{builder.config.name}@{commit}"
    return Rows(
        name, tuple(columns), read, num_rows=num_rows, split=split, revision=revision, streamed=num_rows is None
    )


def choose_split(source: SourceConfig, splits: Sequence[str]) -> str:
    """The split asked for, or the training split under one of the names that it goes by.

    Raises:
        InputError: there is no such split.
    """
    if source.split is not None:
        unknown = [part for part in re.split(r"\[[^]]*]|\+", source.split) if part and part not in splits]
        if unknown:
            raise InputError(f"--split: {source.dataset} has no split {unknown[0]!r}, but {', '.join(splits)}.")
        return source.split
    if "train" in splits:
        return "train"
    if {"default", "extended"} <= set(splits):
        return "default+extended"
    if len(splits) == 1:
        return splits[0]
    raise InputError(f"--split: {source.dataset} has no split 'train', but {', '.join(splits)}; choose one of these.")


def _wanted(features: Any, columns: Sequence[str], used: tuple[str, ...]) -> list[str]:
    """The columns used, and the plain ones beside them (a list of ten generations a row is not read)."""
    import datasets

    if features is None:
        return [name for name in columns if name in used]
    return [name for name, feature in features.items() if name in used or isinstance(feature, datasets.Value)]


def _rows(data: Any) -> Iterator[Row]:
    for batch in data.iter(batch_size=1000):
        names = list(batch)
        for values in zip(*batch.values(), strict=True):
            yield dict(zip(names, values, strict=True))


def _network_errors() -> tuple[type[Exception], ...]:
    """What the hub's client raises when there is no network; its HTTP library is not the same in every version."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError  # type: ignore[attr-defined]

    return (OSError, HfHubHTTPError, HTTPError)


@contextmanager
def _clear_errors(source: SourceConfig) -> Iterator[None]:
    """One clear error for each way in which opening a dataset can fail."""
    from datasets.exceptions import DatasetNotFoundError, DatasetsError

    name = source.dataset
    hint = ("" if "/" in name else near(name, DATASETS)) or "."
    try:
        yield
    except DatasetNotFoundError as error:
        option = "--dataset-revision" if "evision" in str(error) else "--dataset"
        raise AbsentError(f"{option}: {error} Check its name; a gated dataset needs `hf auth login`{hint}") from None
    except (ValueError, RuntimeError) as error:  # an unknown or missing configuration; a dataset that is a script
        reason = " ".join(str(error).split())
        option = "--dataset-config" if "onfig" in reason else "--dataset"
        raise InputError(f"{option}: {name}: {reason}") from None
    except DatasetsError as error:
        raise MlxmathError(f"{name} cannot be read: {type(error).__name__}: {error}") from error
    except _network_errors() as error:
        raise MlxmathError(
            f"{name} cannot be fetched: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}. "
            f"Check the network and the name, or give a local file to --dataset{hint}"
        ) from None
