"""What runs, evaluations and sweeps recorded, read for a paper."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxmath.config.load import RUN, RUN_FILE, section_of
from mlxmath.errors import InputError, MlxmathError
from mlxmath.parsing import parse_json
from mlxmath.runtime.files import sha256
from mlxmath.runtime.sealed import unsealed_json
from mlxmath.sharing.contents import last_parts
from mlxmath.sweeps.plan import ADAPTERS
from mlxmath.sweeps.report import RESULTS as SWEEP
from mlxmath.sweeps.runs import State, state_of
from mlxmath.training.event_file import EVENTS, read_events

RESULTS = "results.json"
_NO_METHOD = (
    "adapter_path", "resume", "report_to", "save_every", "keep_checkpoints", "pause_at", "row_losses", "mlx_path",
    "cache_dir", "overwrite", "trust_remote_code", "seed", "judge",
)  # fmt: skip
"""Settings that say nothing about the result, or stand elsewhere."""
_ALWAYS = (
    "model.model", "data.dataset", "lora.variant", "lora.rank", "lora.alpha", "training.optimizer",
    "training.learning_rate", "training.schedule", "training.batch_size", "training.grad_accumulation_steps",
)  # fmt: skip
_SHARED, _OF_METHODS = ("model", "data", "lora", "training"), ("sft", "dpo", "grpo", "gkd", "reward_model")


@dataclass(frozen=True)
class RunFacts:
    """A training run.

    Attributes:
        name: of its folder, unlike all others.
        folder: where it is.
        state: what it came to.
        settings: by "section.field", in words, all that its method uses.
        chosen: those of them that somebody chose, or that always matter.
        joules: of its devices; None where the system told none, or of a part alone.
    """

    name: str
    folder: Path
    state: State
    settings: dict[str, str]
    chosen: tuple[str, ...]
    joules: float | None

    @property
    def record(self) -> dict[str, Any]:
        """run.json."""
        return self.state.record

    def told(self, *path: str) -> Any:
        """A value in run.json, None where there is none."""
        value: Any = self.record
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        return value


@dataclass(frozen=True)
class Facts:
    """Everything that a paper tells of."""

    runs: tuple[RunFacts, ...]
    evaluations: tuple[tuple[str, Path, dict[str, Any]], ...]
    """Name, folder, results.json."""
    sweeps: tuple[tuple[str, Path, dict[str, Any]], ...]
    """Name, folder, sweep.json."""


def read_facts(folders: Sequence[Path]) -> Facts:
    """What is in folders of runs, evaluations and sweeps; a sweep brings its runs and its evaluation.

    Raises:
        InputError: a folder holds none of them.
        MlxmathError: a file is damaged.
    """
    runs: list[Path] = []
    evaluations: dict[Path, dict[str, Any]] = {}
    sweeps: dict[Path, dict[str, Any]] = {}
    for folder in folders:
        found = {name: folder / name for name in (RUN, RESULTS, SWEEP) if (folder / name).is_file()}
        if not found:
            raise InputError(
                f"RUNS: {folder} holds no {RUN}, {RESULTS} or {SWEEP}; expected the folder of a training run, an "
                "evaluation or a sweep."
            )
        if RUN in found:
            unsealed_json(found[RUN], None)
            runs.append(folder)
        if RESULTS in found:
            evaluations[folder] = _checked(found[RESULTS], "settings", "contestants", "comparisons")
        if SWEEP in found:
            sweeps[folder] = _checked(found[SWEEP], "configurations", "search")
            runs += sorted(path.parent for path in (folder / ADAPTERS).glob(f"*/{RUN}"))
            if (inner := folder / "evaluation" / RESULTS).is_file():
                evaluations[inner.parent] = _checked(inner, "settings", "contestants", "comparisons")
    runs = list(dict.fromkeys(runs))
    names = _names(runs)
    return Facts(
        tuple(_run(names[folder], folder) for folder in runs),
        tuple((name, folder, evaluations[folder]) for folder, name in _names(list(evaluations)).items()),
        tuple((name, folder, sweeps[folder]) for folder, name in _names(list(sweeps)).items()),
    )


def _checked(path: Path, *names: str) -> dict[str, Any]:
    found = unsealed_json(path, None)
    if missing := [name for name in names if name not in found]:
        raise MlxmathError(f"{path} is not what mlxmath writes: {missing[0]} is missing.")
    return found


def _names(folders: Sequence[Path]) -> dict[Path, str]:
    """The shortest ends of paths that tell folders apart."""
    whole = {folder: folder.resolve().parts for folder in folders}
    found = {}
    for folder, parts in whole.items():
        length = 1
        while length < len(parts) and any(
            other[-length:] == parts[-length:] for one, other in whole.items() if one is not folder
        ):
            length += 1
        found[folder] = "/".join(parts[-length:])
    return found


def _run(name: str, folder: Path) -> RunFacts:
    state = state_of(folder)
    return RunFacts(name, folder, state, *_settings(state.record), _joules(folder))


def _settings(record: dict[str, Any]) -> tuple[dict[str, str], tuple[str, ...]]:
    config, origin = record.get("config"), record.get("origin")
    config, origin = config if isinstance(config, dict) else {}, origin if isinstance(origin, dict) else {}
    found, chosen = {}, []
    own = {section_of(str(record.get("method"))), *(
        name.partition(".")[0] for name, where in origin.items() if where != "default"
    )}  # fmt: skip
    for section in (*_SHARED, *(name for name in _OF_METHODS if name in own)):
        values = config.get(section)
        for field, value in values.items() if isinstance(values, dict) else ():
            full = f"{section}.{field}"
            idle = full == "data.dataset" and config.get("data", {}).get("sources")
            if field not in _NO_METHOD and value not in (None, []) and not idle:
                found[full] = last_parts(in_words(value))
                chosen += [full] if origin.get(full, "default") != "default" or full in _ALWAYS else []
    return found, tuple(chosen)


def in_words(value: Any) -> str:
    """A setting's value."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return ", ".join(map(in_words, value))
    if isinstance(value, dict):
        return " ".join(f"{key}={in_words(inner)}" for key, inner in value.items() if inner not in (None, []))
    return str(value)


def _joules(folder: Path) -> float | None:
    """Of all processes that the run had; None if one of them did not tell."""
    total, open_ends, told = 0.0, 0, False
    for event in read_events(folder / EVENTS):
        if event["event"] in ("start", "resume"):
            open_ends += 1
        if event["event"] == "end":
            open_ends -= 1
            joules = event.get("joules")
            if not isinstance(joules, dict) or not all(isinstance(one, int | float) for one in joules.values()):
                return None
            total, told = total + sum(joules.values()), True
    return total if told and open_ends == 0 else None


def data_of(run: RunFacts) -> list[str]:
    """What a run read, a line a dataset with what identifies it."""
    try:
        reports = parse_json(run.told("data", "mixture").encode())
    except (AttributeError, ValueError):
        reports = []
    lines = []
    for report in reports if isinstance(reports, list) else ():
        if isinstance(report, dict):
            parts = [f"{key} {report[key]}" for key in ("split", "revision", "taken") if report.get(key) is not None]
            lines.append(last_parts(f"{report.get('name')} ({', '.join(parts)})"))
    return lines


def hashes_of(run: RunFacts) -> dict[str, str]:
    """What identifies what a run came from and what it came to."""
    found = {
        "base model": run.told("base", "fingerprint"), "revision of the base": run.told("base", "revision"),
        "tokenized data": run.told("data", "fingerprint"),
    }  # fmt: skip
    for name in (RUN_FILE, "adapters.safetensors"):
        if (run.folder / name).is_file():
            found[f"SHA-256 of {name}"] = sha256(run.folder / name)
    return {name: str(value) for name, value in found.items() if value is not None}
