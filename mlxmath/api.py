"""mlxmath from Python: what `import mlxmath` offers. Every command is a thin shell of one of these functions.

Settings are keyword arguments with the names of the command's options, `_` for `-` (`learning_rate=1e-4,
lora_rank=16`); `recipe`, `config` and `set` as there. Nothing is printed unless `verbose`. A wrong setting is an
`InputError`, any other failure a `MlxmathError`, whose text says what was expected, what was found and what to do.

After a call MLX's default device and memory limits are what they were before, whatever happened; `load` alone leaves
them as its model needs them.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import EllipsisType
from typing import TYPE_CHECKING, Any

from mlxmath.config.load import CONVERTED_FROM, TRAINED_FROM, Resolved, in_keywords, settings_from
from mlxmath.config.schema import RunConfig, RuntimeConfig
from mlxmath.errors import InputError, MlxmathError
from mlxmath.runtime.console import shown

if TYPE_CHECKING:
    from mlxmath.distillation.dataset import DistillResult
    from mlxmath.exporting.export import Exported
    from mlxmath.generation.engine import Completion
    from mlxmath.generation.model import LanguageModel
    from mlxmath.training.events import TrainResult
    from mlxmath.training.plan import Objective, RunPlan

Callback = Callable[[dict[str, Any]], object]
"""Given each event of a run as it happens: what events.jsonl holds, a dictionary with "event", "step" and figures."""
Data = str | Path | Sequence[Mapping[str, Any]]
"""A dataset's name, a file or folder, or rows."""


def load(
    model: str | Path | None = None, adapter: str | Path | None = None, *, verbose: bool = False, **settings: Any
) -> "LanguageModel":
    """A model that answers, in the template and with the tool that its adapter was trained with, or in its own.

    Args:
        model: a folder with a converted model; a Hugging Face repository, another folder or "demo", which is converted
            into the folder `mlx_path` first (None: what `mlx_path` holds, of a file or else "mlx_model").
        adapter: a folder with an adapter (None: the base model).
        verbose: print what happens.
        **settings: of the sections model and runtime.

    Raises:
        InputError: a setting is wrong.
        MlxmathError: there is no such model or adapter, or it is damaged.
    """
    from mlxmath.generation.model import open_model
    from mlxmath.generation.placing import stays_on_disk
    from mlxmath.runtime.device import open_backend

    with _called(verbose):
        folder, config = _converted(model, settings)
        _, device = open_backend(config.runtime, 0)
        path = None if adapter is None else Path(adapter)
        on_disk = stays_on_disk(config.runtime, folder, device, path)
        return open_model(folder, device.compute_dtype, path, on_disk=on_disk, tool=None)


def generate(
    model: "LanguageModel | str | Path", problems: str | Sequence[str], *, max_new_tokens: int = 1024,
    temperature: float = 0.0, top_p: float = 1.0, seed: int = 0,
) -> "Completion | list[Completion]":  # fmt: skip
    """The answer to a problem, or to each of several, which are drawn together.

    Args:
        model: what `load` gave, or what it takes.
        problems: texts, put into the model's template.
        max_new_tokens: longest answer.
        temperature: 0 always takes the most likely token.
        top_p: keep the most likely tokens of this total probability.
        seed: of what is drawn.
    """
    from mlxmath.generation.engine import Sampling
    from mlxmath.runtime.device import opened_backend

    sampling = Sampling(max_new_tokens, temperature, top_p, seed)
    with opened_backend(RuntimeConfig(), seed) if isinstance(model, str | Path) else nullcontext():
        opened = load(model) if isinstance(model, str | Path) else model
        found = opened.generate([problems] if isinstance(problems, str) else problems, sampling)
        return found[0] if isinstance(problems, str) else found


def sft(
    data: Data | None = None, *, callback: Callback | None = None, verbose: bool = False, **settings: Any
) -> "TrainResult":
    """Fine-tune adapters on problems and their solutions: `mlxmath train`.

    Args:
        data: as `dataset`, or rows with columns as a file would have them.
        callback: given each event as it happens.
        verbose: print what the command prints.
        **settings: of the sections model, data, lora, training, sft and runtime.

    Returns:
        How it ended and where the adapters are. A run that ended by its deadline or a signal can be resumed with
        `resume=True`.

    Raises:
        InputError: a setting is wrong, or the adapter folder holds another run.
        MlxmathError: the model or the data cannot be had, do not fit into the memory, or are damaged.
    """
    from mlxmath.training.sft import sft as train

    with _called(verbose):
        return train(_settings(("sft",), data, settings), callback=callback)


def dpo(
    data: Data | None = None, *, callback: Callback | None = None, verbose: bool = False, **settings: Any
) -> "TrainResult":
    """Tune adapters on pairs of a preferred and a rejected completion: `mlxmath dpo`; see `sft`.

    Args:
        data: rows with `prompt`, `chosen` and `rejected` (for KTO also with `prompt`, `completion` and `label`).
        callback: given each event as it happens.
        verbose: print what the command prints.
        **settings: as for `sft`, and of the section dpo.

    Raises:
        InputError: a setting is wrong, or the adapter folder holds another run.
        MlxmathError: see `sft`.
    """
    from mlxmath.training.dpo import dpo as train

    with _called(verbose):
        return train(_settings(("dpo",), data, settings), callback=callback)


def reward_model(
    data: Data | None = None, *, callback: Callback | None = None, verbose: bool = False, **settings: Any
) -> "TrainResult":
    """Train a model that scores completions, on pairs: `mlxmath reward-model`; see `dpo`.

    Args:
        data: rows with `prompt`, `chosen` and `rejected`.
        callback: given each event as it happens.
        verbose: print what the command prints.
        **settings: as for `sft`, and of the section reward_model.

    Raises:
        InputError: a setting is wrong, or the adapter folder holds another run.
        MlxmathError: see `sft`.
    """
    from mlxmath.training.reward_model import reward_model as train

    with _called(verbose):
        return train(_settings(("reward_model",), data, settings), callback=callback)


def grpo(
    data: Data | None = None, *, rewards: "Sequence[str | Callable[..., Any]] | Mapping[str, float] | None" = None,
    callback: Callback | None = None, verbose: bool = False, **settings: Any,
) -> "TrainResult":  # fmt: skip
    """Improve an adapter by reinforcement learning with graded answers: `mlxmath grpo`; see `sft`.

    Args:
        data: problems with their answers.
        rewards: names (as `--reward` takes them), weights by name, or functions. A function with one parameter gets the
            rollout's `Sample`s; any other is called as TRL calls it, with `prompts`, `completions`, `completion_ids`,
            `gold` and the dataset's other columns by name, as far as it has parameters for them. It returns a number
            for each completion.
        callback: given each event as it happens.
        verbose: print what the command prints.
        **settings: as for `sft`, and of the section grpo.

    Raises:
        InputError: a setting is wrong, or the adapter folder holds another run.
        MlxmathError: see `sft`; a reward failed.
    """
    from mlxmath.training.grpo.rewards import weights_of
    from mlxmath.training.grpo.train import grpo as train

    with _called(verbose):
        if rewards is not None:
            weights, functions = weights_of(rewards)
            settings = settings | {"reward_weights": weights}
        else:
            functions = {}
        return train(_settings(("grpo",), data, settings), callback=callback, functions=functions)


def gkd(
    data: Data | None = None, *, teacher: str | Path, callback: Callback | None = None, verbose: bool = False,
    **settings: Any,
) -> "TrainResult":  # fmt: skip
    """Distil on-policy: the student draws, a teacher scores every token of it: `mlxmath gkd`; see `sft`.

    Args:
        data: problems with their answers.
        teacher: a model folder, or MODEL:ADAPTER.
        callback: given each event as it happens.
        verbose: print what the command prints.
        **settings: as for `sft`, and of the section gkd.

    Raises:
        InputError: a setting is wrong, the adapter folder holds another run, or the teacher's tokens are others.
        MlxmathError: see `sft`.
    """
    from mlxmath.training.gkd.train import gkd as train

    with _called(verbose):
        return train(_settings(("gkd",), data, settings | {"teacher": str(teacher)}), callback=callback)


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` gives; `folder` holds results.json, samples.jsonl, report.html and charts."""

    folder: Path
    results: dict[str, Any]
    """What results.json holds."""

    @cached_property
    def accuracy(self) -> dict[str, float]:
        """The share of right answers by model: "base", "tuned" or a folder's name."""
        return {name: found["accuracy"]["value"] for name, found in self.results["contestants"].items()}

    @property
    def comparisons(self) -> list[dict[str, Any]]:
        """Of each model with the first: the difference, its 95 % interval, and what was fixed and broken."""
        found: list[dict[str, Any]] = self.results["comparisons"]
        return found


def evaluate(
    benchmark: str | Sequence[str] | None = None, *, model: str | Path | None = None,
    adapters: str | Path | Sequence[str | Path] | None = None, compare: bool = True, template: str | None = None,
    resume: bool = False, overwrite: bool = False, seed: int = 0, verbose: bool = False, **settings: Any,
) -> Evaluation:  # fmt: skip
    """Ask benchmarks, grade the answers and compare the tuned model with its base: `mlxmath evaluate`.

    Args:
        benchmark: names ("gsm8k", "math500", "demo") or files.
        model: as for `load`.
        adapters: folders; none (an empty list): the base alone (None: the file's `training.adapter_path`, else
            "adapters").
        compare: ask the base too.
        template: prompt template of all (None: each one's own).
        resume: go on with the answers that are there.
        overwrite: remove them.
        seed: of the samples.
        verbose: print what the command prints.
        **settings: of the sections model, evaluation and runtime.

    Raises:
        InputError: a setting is wrong.
        MlxmathError: a model or an adapter is missing or damaged.
    """
    from mlxmath.evaluation.contestants import choose_contestants, equipped
    from mlxmath.evaluation.runner import evaluate as run
    from mlxmath.runtime.ranks import Ranks

    names = [benchmark] if isinstance(benchmark, str) else list(benchmark or ())
    with _called(verbose):
        if names:
            settings = settings | {"benchmark": ",".join(names)}
        folder, config = _converted(model, settings, "evaluation")
        adapters = config.training.adapter_path if adapters is None else adapters
        folders = [adapters] if isinstance(adapters, str | Path) else list(adapters)
        chosen = choose_contestants(folder, tuple(map(Path, folders)), (), base=compare or not folders)
        chosen = equipped(chosen, config.evaluation, beside=compare)
        found = run(config, chosen, Ranks(), template=template, seed=seed, resume=resume, overwrite=overwrite)
    assert found is not None
    return Evaluation(Path(found.pop("folder")), found)


def convert(model: str | Path, data: Data | None = None, *, verbose: bool = False, **settings: Any) -> Path:
    """Turn Hugging Face weights (.bin or safetensors) into an MLX model: `mlxmath convert`.

    Args:
        model: a Hugging Face repository, a local folder or "demo".
        data: problems on which `quantize="auto:..."` measures, as `dataset`, or rows as a file would have them.
        verbose: print what the command prints.
        **settings: of the section model, and of data and runtime for that measurement.

    Returns:
        The folder, `mlx_path`.

    Raises:
        InputError: a setting is wrong, or the folder holds something else.
        MlxmathError: the weights cannot be had, or are damaged.
    """
    from mlxmath.training.convert import convert_model

    with _called(verbose):
        found = _settings((), data, {"model": str(model), **settings}, CONVERTED_FROM)
        convert_model(found)
    return Path(found.config.model.mlx_path)


def export(
    to: str, model: str | Path | None = None, adapter: str | Path | EllipsisType | None = ..., *,
    overwrite: bool = False, verbose: bool = False, **settings: Any,
) -> "Exported":  # fmt: skip
    """Write a tuned model for another program: `mlxmath export`.

    Args:
        to: "peft", "mlx", "hf", "gguf" or "ollama".
        model: a folder with a converted model (None: the file's `mlx_path`, else "mlx_model").
        adapter: its folder (None: the base alone; left out: the file's `training.adapter_path`, else "adapters").
        overwrite: replace an earlier export.
        verbose: print what the command prints.
        **settings: of the sections export and runtime.

    Raises:
        InputError: a setting is wrong, the folder holds something else, or the target cannot express the adapter.
        MlxmathError: the model or the adapter is missing or damaged.
    """
    from mlxmath.exporting.export import export as run

    with _called(verbose):
        path = None if model is None else str(model)
        config = settings_from(("model", "export", "runtime"), to=to, mlx_path=path, **settings).config
        chosen = config.training.adapter_path if isinstance(adapter, EllipsisType) else adapter
        return run(config, None if chosen is None else Path(chosen), overwrite=overwrite)


def distill(
    *, rank_only: str | Path | None = None, resume: bool = False, overwrite: bool = False, verbose: bool = False,
    **settings: Any,
) -> "DistillResult":  # fmt: skip
    """Have a teacher write solutions, and keep the right and faithful ones as a dataset: `mlxmath distill`.

    Args:
        rank_only: judge the solutions in this file; no teacher is asked.
        resume: use the answers in the folder, and ask for what is missing.
        overwrite: start anew, whatever the folder holds.
        verbose: print what the command prints.
        **settings: of the sections distillation, data and runtime.

    Raises:
        InputError: a setting is wrong, or the folder holds other answers.
        MlxmathError: the data cannot be read, or the teacher does not answer.
    """
    from mlxmath.distillation.distill import distill as run

    with _called(verbose):
        config = settings_from(("distillation", "data", "runtime"), **settings).config
        path = None if rank_only is None else Path(rank_only).expanduser()
        return run(config, rank_only=path, resume=resume, overwrite=overwrite)


def plan(
    method: "Objective" = "train", *, memory: str | None = None, verbose: bool = False, **settings: Any
) -> "RunPlan":
    """What memory and time a run takes, before anything but the model's configuration is fetched: `mlxmath plan`.

    Args:
        method: "train", "dpo", "reward-model", "grpo" or "gkd".
        memory: of the machine, such as "16GB" (None: this one's).
        verbose: print what happens.
        **settings: as for the method.

    Raises:
        InputError: a setting is wrong, or the model cannot be trained.
        MlxmathError: there is no such model.
    """
    from mlxmath.training.plan import parse_size, plan_run
    from mlxmath.weights.held import with_held_model

    with _called(verbose):
        own = "sft" if method == "train" else method.replace("-", "_")
        config = with_held_model(settings_from((*TRAINED_FROM, own), **settings)).config
        return plan_run(config, method, None if memory is None else parse_size(memory))


def _settings(
    sections: tuple[str, ...], data: Data | None, settings: dict[str, Any], common: tuple[str, ...] = TRAINED_FROM
) -> Resolved:
    """The settings of a run of these sections besides those of every training; `data` is its dataset."""
    found = settings_from((*common, *sections), **settings)
    if data is None:
        return found
    name = str(data) if isinstance(data, str | Path) else _written(data, Path(found.config.data.cache_dir))
    return settings_from((*common, *sections), **{**settings, "dataset": name})


def _written(rows: Sequence[Mapping[str, Any]], cache: Path) -> str:
    """Rows as a file in the cache, named by what they hold: a resumed run finds the same."""
    import hashlib

    from mlxmath.runtime.files import atomic_write

    try:
        text = "".join(json.dumps(dict(row), ensure_ascii=False) + "\n" for row in rows)
    except (TypeError, ValueError) as error:
        raise InputError(f"data=: expected rows of plain values, as JSON has them; found {error}.") from None
    if not text:
        raise InputError("data=: expected at least one row, found none.")
    path = cache / f"rows-{hashlib.sha256(text.encode()).hexdigest()[:16]}.jsonl"
    if not path.exists():
        atomic_write(path, text)
    return str(path)


def _converted(model: str | Path | None, settings: dict[str, Any], *sections: str) -> tuple[Path, RunConfig]:
    """The folder of the converted model, which is made if need be, and the settings; None: the model of these."""
    from mlxmath.weights.convert import ensure_model
    from mlxmath.weights.manifest import FILE_NAME

    names = ("model", "runtime", *sections)
    if model is None:
        model = settings_from(names, **settings).config.model.mlx_path
    folder = Path(model).expanduser()
    if (folder / FILE_NAME).is_file():
        return folder, settings_from(names, **settings | {"mlx_path": str(folder)}).config
    config = settings_from(names, model=str(model), **settings).config
    ensure_model(config.model)
    return Path(config.model.mlx_path), config


@contextmanager
def _called(verbose: bool) -> Iterator[None]:
    """A call from Python: what is said is shown if asked for, and errors name arguments, not options."""
    with shown() if verbose else nullcontext():
        try:
            yield
        except MlxmathError as error:
            error.args = (in_keywords(str(error)),)
            raise
