"""A run's settings with whole paths, so that they mean the same in every folder."""

from pathlib import Path
from typing import Any

from mlxmath.config.schema import RunConfig
from mlxmath.config.section import DEMO
from mlxmath.data.datasets import known
from mlxmath.data.rows import is_file_name
from mlxmath.runtime.files import real
from mlxmath.training.grpo.rewards import MODEL


def absolute(path: str) -> str:
    """A path without `~` and links, from the root on."""
    return str(real(Path(path).expanduser()))


def absolute_model(name: str) -> str:
    """`--model`: a local folder's path; a repository's name and "demo" as they are."""
    return absolute(name) if name != DEMO and Path(name).expanduser().is_dir() else name


def absolute_dataset(name: str) -> str:
    """`--dataset`: a local file's or folder's path; a repository's or a known dataset's name and "demo" as they are."""
    dataset = known(name)
    is_known = dataset is not None and name.lower() in (dataset.name, dataset.repository.lower())
    return absolute(name) if not is_known and is_file_name(name) else name


def absolute_exam(judge: str) -> str:
    """`--judge`: with the path of its file, if it names one."""
    name, colon, number = judge.rpartition(":") if judge.rpartition(":")[2].isdecimal() else (judge, "", "")
    dataset, equals, file = name.rpartition("=")
    is_file = bool(equals) or (known(file) is None and is_file_name(file))
    return f"{dataset}{equals}{absolute(file) if is_file else file}{colon}{number}"


def absolute_settings(config: RunConfig) -> dict[str, Any]:
    """The settings that hold paths, as "section.field", with absolute ones."""
    model, data, training = config.model, config.data, config.training
    found: dict[str, Any] = {
        "model.model": absolute_model(model.model),
        "model.mlx_path": absolute(model.mlx_path),
        "data.cache_dir": absolute(data.cache_dir),
        "data.decontaminate": [absolute(n) if Path(n).expanduser().is_file() else n for n in data.decontaminate],
        "training.adapter_path": absolute(training.adapter_path),
    }
    for name, path in (("data.template_file", data.template_file), ("training.init_adapter", training.init_adapter)):
        if path is not None:
            found[name] = absolute(path)
    if training.validation_dataset is not None:
        found["training.validation_dataset"] = absolute_dataset(training.validation_dataset)
    if training.judge is not None:
        found["training.judge"] = absolute_exam(training.judge)
    if data.sources:
        found["data.sources"] = [
            _absolute_source(source.model_dump(mode="json", exclude_none=True)) for source in data.sources
        ]
    else:
        found["data.dataset"] = absolute_dataset(data.dataset)
    if config.gkd.teacher is not None:
        model_name, _, adapter = config.gkd.teacher.partition(":")
        found["gkd.teacher"] = absolute(model_name) + (f":{absolute(adapter)}" if adapter else "")
    weights = config.grpo.reward_weights
    found["grpo.reward_weights"] = {
        MODEL + absolute(name.removeprefix(MODEL)) if name.startswith(MODEL) else name: weight
        for name, weight in weights.items()
    }
    return found


def _absolute_source(source: dict[str, Any]) -> dict[str, Any]:
    names = {name: absolute_dataset(source[name]) for name in ("dataset", "fallback") if name in source}
    return source | names
