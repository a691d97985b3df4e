"""Fresh answers to rate: the command line of `mlxmath evaluate` that a form stands for."""

import time
from collections.abc import Mapping
from pathlib import Path

from mlxmath.config.load import settings_from
from mlxmath.config.section import DEMO
from mlxmath.data.datasets import BENCHMARKS
from mlxmath.data.datasets import known as dataset_of
from mlxmath.errors import InputError
from mlxmath.studio.place import Studio
from mlxmath.studio.sent import option

RESULTS = "evaluation_results"
DEFAULTS = {
    "mlx_path": "mlx_model", "adapter": "", "benchmark": DEMO, "limit": "50", "samples": "2", "temperature": "0.8",
    "seed": "0",
}  # fmt: skip
ADAPTER = "adapter_config.json"


def known(studio: Studio) -> dict[str, list[str]]:
    """What may be given: folders that look like models and adapters, and benchmarks."""
    return {
        "mlx_path": [studio.name(folder) for folder in studio.holding("config.json")],
        "adapter": [studio.name(folder) for folder in studio.holding(ADAPTER)], "benchmark": list(BENCHMARKS),
    }  # fmt: skip


def usual(studio: Studio) -> dict[str, str]:
    """What the form begins with."""
    return DEFAULTS | {
        "mlx_path": next(iter(known(studio)["mlx_path"]), DEFAULTS["mlx_path"]),
        "run_name": time.strftime("to-rate-%Y%m%d-%H%M%S", time.gmtime()),
    }


def evaluation(studio: Studio, form: Mapping[str, str]) -> list[str]:
    """The arguments: of a model alone, or with an adapter and without.

    Raises:
        InputError: a value is wrong, or a file or folder lies outside the studio's.
    """
    given = {name: form.get(name, "").strip() or default for name, default in DEFAULTS.items()}
    run_name = form.get("run_name", "").strip()
    if not run_name:
        raise InputError("name: expected the name of a folder for the answers.")
    name, _, file = given["benchmark"].partition("=")
    is_known = (dataset := dataset_of(name)) is not None and dataset.test_split is not None
    path = file if is_known else given["benchmark"]
    if path and not studio.inside(path, "problems").is_file():
        raise InputError(f"problems: expected a benchmark ({', '.join(BENCHMARKS)}) or a file; there is no {path}.")
    for name in filter(None, (given["mlx_path"], given["adapter"])):
        if not studio.inside(name, "model").is_dir():
            raise InputError(f"model: there is no folder {name}; convert a model with `mlxmath convert`.")
    if not given["seed"].isdecimal():
        raise InputError(f"seed: expected a whole number; found {given['seed']!r}.")
    names = {"benchmark": "", "limit": "", "samples": "", "temperature": "", "run_name": run_name}
    settings_from(set=[f"evaluation.{name}={value or given[name]}" for name, value in names.items()])
    who = [*option("--adapter-path", given["adapter"]), "--compare"] if given["adapter"] else ["--no-adapter"]
    return [
        "evaluate", *option("--mlx-path", given["mlx_path"]), *who, *option("--benchmark", given["benchmark"]),
        *option("--limit", given["limit"]), *option("--samples", given["samples"]),
        *option("--temperature", given["temperature"]), *option("--seed", given["seed"]),
        *option("--run-name", run_name),
    ]  # fmt: skip


def folder_of(form: Mapping[str, str]) -> str:
    """Where the answers will be."""
    return (Path(RESULTS) / form["run_name"].strip()).as_posix()
