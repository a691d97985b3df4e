"""Worked examples that are not ours: the published eight of Wei et al. 2022, or a file's.

The eight are the chain-of-thought prompt for grade-school problems of arXiv:2201.11903 (table 20), with which most
figures of GSM8K are published. They are not part of this package; lm-evaluation-harness (MIT) brings them along as its
task `gsm8k_cot`, and they are read there.
"""

import importlib.util
from pathlib import Path

import yaml

from mlxmath.data.datasets import Kind
from mlxmath.data.problem import Problem
from mlxmath.data.rows import open_file
from mlxmath.data.sources import problems_of
from mlxmath.errors import InputError

STANDARD = "standard"
NUM_STANDARD = 8
_TASK = Path("tasks", "gsm8k", "gsm8k-cot.yaml")
_NOT_THERE = "lm-eval is not installed; install mlxmath[lm-eval], or name a file of problems and solutions instead."

Shots = tuple[Problem, ...]
"""Each a question with its solution and, where a column says it, its answer."""


def examples(spec: str, kinds: dict[str, Kind]) -> Shots:
    """The problems and solutions that `--few-shot` names.

    Args:
        spec: 'standard', or a file as `--dataset` reads it.
        kinds: of each benchmark that is asked.

    Raises:
        InputError: there is no such file, it holds no example, lm-eval is absent or has the examples elsewhere, or
            'standard' is asked for a benchmark that the field does not show them before.
    """
    if spec != STANDARD:
        found = _of_file(spec)
    else:
        if others := [name for name, kind in kinds.items() if kind != "word"]:
            raise InputError(
                f"--few-shot standard: the eight examples are of grade-school problems, {others[0]} asks others; "
                "name a file, or leave the option out."
            )
        found = _of_lm_eval()
    if not found:
        raise InputError(f"--few-shot: {spec} holds no problem with a solution.")
    return found


def _of_file(spec: str) -> Shots:
    rows = open_file(Path(spec).expanduser(), option="--few-shot")
    try:
        problems = problems_of(rows, None)
    except InputError:
        raise InputError(
            f"--few-shot {spec}: expected rows with a problem and its solution (`question` and `solution`), found "
            f"{', '.join(rows.columns)}."
        ) from None
    return tuple(Problem("", p.question, p.answer, p.solution) for p in problems if p.solution)


def _of_lm_eval() -> Shots:
    package = importlib.util.find_spec("lm_eval")
    if package is None or not package.submodule_search_locations:
        raise InputError(f"--few-shot standard: {_NOT_THERE}")
    path = Path(next(iter(package.submodule_search_locations))) / _TASK
    try:
        task = yaml.safe_load(path.read_text(encoding="utf-8"))
        samples = task["fewshot_config"]["samples"]
        found = [(sample["question"], sample["target"]) for sample in samples]
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError):
        found = []
    if len(found) != NUM_STANDARD or not all(isinstance(text, str) and text for pair in found for text in pair):
        raise InputError(f"--few-shot standard: {path} does not hold the eight examples; name a file of them.")
    return tuple(Problem("", question, solution=solution) for question, solution in found)
