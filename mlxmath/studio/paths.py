"""Settings that name files: each must lie in the studio's folder."""

import os.path
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import PurePath
from typing import Any

from mlxmath.config.schema import SETTINGS, RunConfig, option_name
from mlxmath.config.section import DEMO
from mlxmath.errors import InputError, MlxmathError
from mlxmath.runtime.files import read_json, real
from mlxmath.studio.place import Studio

FOLDERS = (
    "model.mlx_path", "data.template_file", "data.cache_dir", "training.adapter_path", "training.init_adapter",
)  # fmt: skip
"""Settings that are always a path."""
_ELSEWHERE = ("ollama:", "lmstudio:")
"""Models that other programs keep."""
_SUFFIXES = (
    ".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".gz", ".bz2", ".zst", ".txt", ".gguf", ".toml",
)  # fmt: skip


def outside(studio: Studio, config: RunConfig) -> dict[str, str]:
    """What is wrong with the settings that lead out of the folder, by "section.field"."""
    wrong = {}
    for name, text in _names(config):
        try:
            check_name(studio, name, text)
        except InputError as error:
            wrong[name] = str(error).removeprefix(f"{option_name(name)}: ") if name in SETTINGS else str(error)
    return wrong


def check_name(studio: Studio, name: str, text: str) -> None:
    """Refuse a path that leads out of the folder; names of the hub, of known datasets and benchmarks are none.

    Args:
        studio: whose folder it is.
        name: "section.field".
        text: its value, or a part of it that is one name.

    Raises:
        InputError: that is where it leads.
    """
    option = option_name(name)
    if text.startswith(_ELSEWHERE):
        raise InputError(f"{option}: {text} lies outside {studio.folder}; convert it there with `mlxmath convert`.")
    path = os.path.expanduser(text)  # noqa: PTH111  a home that is not there stays as it is
    parts = PurePath(path).parts
    is_path = (
        name in FOLDERS
        or path.startswith((".", "/", "~"))
        or "\\" in path
        or ".." in parts
        or path.lower().endswith(_SUFFIXES)
        or os.path.lexists(studio.folder / path)
    )
    if is_path:
        studio.whole(path, option)


def _names(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Each name of a file that settings hold, or of what may be one."""
    values: dict[str, Any] = {name: _value(config, name) for name in FOLDERS}
    yield from ((name, value) for name, value in values.items() if value is not None)
    yield from _with_part("model.model", config.model.model)
    for source in config.data.mixture:
        yield "data.dataset", source.dataset
        if source.fallback is not None:
            yield "data.dataset", source.fallback
    for benchmark in config.data.decontaminate:
        yield from _exam("data.decontaminate", benchmark)
    if config.training.validation_dataset is not None:
        yield from _with_part("training.validation_dataset", config.training.validation_dataset)
    if config.training.judge is not None:
        yield from _exam("training.judge", config.training.judge)
    if config.gkd.teacher is not None:
        yield from _with_part("gkd.teacher", config.gkd.teacher)
    for reward in config.grpo.reward_weights:
        if reward.startswith("model:"):
            yield "grpo.reward_weights", reward.removeprefix("model:")


def _with_part(name: str, text: str) -> Iterator[tuple[str, str]]:
    """A name, and both sides of a colon in it: NAME:SPLIT, MODEL:ADAPTER, FOLDER:KIND."""
    yield name, text
    before, colon, after = text.partition(":")
    if colon and not text.startswith(_ELSEWHERE):
        yield name, before
        yield name, after


def _exam(name: str, text: str) -> Iterator[tuple[str, str]]:
    """A benchmark: NAME, FILE or NAME=FILE, with a number of problems after a colon."""
    yield from _with_part(name, text.rpartition("=")[2])


def _value(config: RunConfig, name: str) -> str | None:
    section, field = name.split(".")
    found: str | None = getattr(getattr(config, section), field)
    return found


def refused(config: RunConfig) -> Mapping[str, str]:
    """Settings of a file that the studio passes on to no command, by "section.field", with why."""
    wrong = {}
    if config.model.trust_remote_code:
        wrong["model.trust_remote_code"] = "would run code of the model's repository"
    if config.model.overwrite:
        wrong["model.overwrite"] = "would replace what is there"
    if config.training.report_to:
        wrong["training.report_to"] = "would send the run's figures elsewhere"
    own = [name for name in config.grpo.reward_weights if ":" in name and not name.startswith("model:")]
    if own:
        wrong["grpo.reward_weights"] = f"would run code of yours ({', '.join(own)}), which the command line alone does"
    return wrong


def written(config: RunConfig) -> Mapping[str, str]:
    """The folders that a run makes, by "section.field"."""
    return {"training.adapter_path": config.training.adapter_path, "model.mlx_path": config.model.mlx_path}


def taken(studio: Studio, config: RunConfig) -> Mapping[str, str]:
    """Those of them that hold something else, each with a name that is free; --overwrite deletes what they hold."""
    is_taken: Mapping[str, Callable[[Studio, str], bool]] = {
        "training.adapter_path": holds_run, "model.mlx_path": partial(holds_other_model, config.model.model),
    }  # fmt: skip
    return {
        name: next_free(studio, studio.name(studio.inside(text)))
        for name, text in written(config).items() if is_taken[name](studio, text)
    }  # fmt: skip


def next_free(studio: Studio, text: str) -> str:
    """A name like `text` that nothing has yet: adapters-2."""
    stem, dash, number = text.rstrip("/").rpartition("-")
    stem, begin = (stem, int(number) + 1) if dash and number.isdecimal() and len(number) < 6 else (text.rstrip("/"), 2)
    return next(
        name for name in (f"{stem}-{i}" for i in range(begin, begin + 100_000))
        if not os.path.lexists(studio.folder / name)
    )  # fmt: skip


def holds_run(studio: Studio, text: str) -> bool:
    """Whether a run's folder is there already."""
    return any((studio.folder / text / name).exists() for name in ("run.json", "adapters.safetensors", "checkpoints"))


def holds_other_model(model: str, studio: Studio, text: str) -> bool:
    """Whether a folder holds the conversion of another model (the demo's is replaced unasked)."""
    folder = studio.folder / text
    try:
        manifest = read_json(folder / "mlxmath.json")
    except (OSError, MlxmathError):
        return False
    source = manifest.get("source") if isinstance(manifest, dict) else None
    path = studio.folder / model
    return source not in (DEMO, model, str(real(path)), str(path), None) and real(path) != real(folder)
