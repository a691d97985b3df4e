"""Reads rows from a dataset repository, through `datasets`."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlxmath.config.schema import SourceConfig
from mlxmath.data.local import AbsentError, Rows
from mlxmath.data.readers import Row
from mlxmath.errors import InputError, MlxmathError
from mlxmath.runtime.console import say

STREAM_UP_TO = 10_000
"""If the first rows up to this many are wanted, they are streamed and the dataset is not downloaded whole."""
SHUFFLE_BUFFER = 10_000
"""Rows among which those of a stream are drawn."""


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
    return Rows(name, split, f"{builder.config.name}@{commit}", tuple(columns), read, num_rows, num_rows is None)


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
    try:
        yield
    except DatasetNotFoundError as error:
        option = "--dataset-revision" if "evision" in str(error) else "--dataset"
        raise AbsentError(f"{option}: {error} Check its name; a gated dataset needs `hf auth login`.") from None
    except (ValueError, RuntimeError) as error:  # an unknown or missing configuration; a dataset that is a script
        reason = " ".join(str(error).split())
        option = "--dataset-config" if "onfig" in reason else "--dataset"
        raise InputError(f"{option}: {name}: {reason}") from None
    except DatasetsError as error:
        raise MlxmathError(f"{name} cannot be read: {type(error).__name__}: {error}") from error
    except _network_errors() as error:
        raise MlxmathError(
            f"{name} cannot be fetched: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}. "
            "Check the network and the name, or give a local file to --dataset."
        ) from None
