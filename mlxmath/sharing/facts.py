"""What a card tells: the base, the data, the settings, how the run ended, what an evaluation found."""

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxmath.config.load import RUN_FILE
from mlxmath.config.section import DEMO
from mlxmath.data.datasets import known
from mlxmath.errors import InputError, MlxmathError
from mlxmath.models.lora.adapter import WEIGHTS
from mlxmath.runtime.console import duration, harmless
from mlxmath.runtime.files import sha256
from mlxmath.runtime.markdown import cell, code
from mlxmath.runtime.sealed import unsealed_json
from mlxmath.sharing.contents import Contents, is_local_path, last_parts, without_paths
from mlxmath.weights.manifest import FILE_NAME

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_MARKUP = re.compile(r"<[^\s<]{0,40}|(?<!\\)\]\s?[(\[:]")
"""HTML, links and images."""
_SECTIONS = ("lora", "training", "dpo", "grpo", "gkd", "reward_model")
_NO_METHOD = ("adapter_path", "init_adapter", "resume", "report_to", "save_every", "keep_checkpoints",
              "validation_dataset", "reward_weights", "teacher")  # fmt: skip
"""Settings that say nothing about the result, or hold paths."""
_ALWAYS = ("lora.variant", "lora.rank", "lora.alpha", "training.learning_rate", "training.batch_size",
           "training.grad_accumulation_steps", "training.num_epochs", "training.optimizer",
           "training.seed")  # fmt: skip
"""Settings that are told even where nobody chose them."""


@dataclass(frozen=True)
class Origin:
    """A model or a dataset that something was made from.

    Attributes:
        name: for people.
        repository: on the hub; None for anything else.
        revision: its commit, as far as is known.
        detail: what was used of it.
    """

    name: str
    repository: str | None = None
    revision: str | None = None
    detail: str = ""
    option: str = "BASE"
    """What `--model` takes for it."""

    @property
    def shown(self) -> str:
        """In Markdown."""
        return code(self.name) if self.repository else cell(self.name)


def base_of(contents: Contents) -> Origin | None:
    """The base model; None where nothing tells it."""
    record = contents.record.get("config", {}).get("model", {})
    name: Any = contents.config.get("base_model") or contents.config.get("base_model_name_or_path")
    revision = contents.config.get("revision")
    manifest = contents.folder / FILE_NAME
    if not contents.is_adapter and manifest.is_file():
        found = unsealed_json(manifest, None)
        name, revision = found.get("source"), found.get("revision")
    name = name or record.get("model")
    if not isinstance(name, str):
        return None
    if name == record.get("model") and contents.run_folder:
        revision = revision or _recorded_revision(contents.run_folder)
    if not _is_repository(name):
        is_demo = name == DEMO
        told = "the model bundled with mlxmath" if is_demo else f"a local model ({Path(name).name})"
        return Origin(told, option=DEMO if is_demo else "BASE")
    return Origin(name, name, revision if isinstance(revision, str) else None, option=name)


def _is_repository(name: str) -> bool:
    return bool(_REPOSITORY.fullmatch(name)) and not Path(name).exists()


def _recorded_revision(folder: Path) -> str | None:
    """The commit of the base in run.toml."""
    try:
        revision = tomllib.loads((folder / RUN_FILE).read_text(encoding="utf-8"))["model"]["revision"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return revision if isinstance(revision, str) else None


def data_of(contents: Contents) -> list[Origin]:
    """The datasets that the run read."""
    data = contents.record.get("data", {})
    try:
        reports = json.loads(data["mixture"])
    except (KeyError, ValueError, TypeError):
        reports = []
    found = []
    for report in reports if isinstance(reports, list) else ():
        name, split, taken = str(report.get("name")), report.get("split"), report.get("taken")
        rows = f"{taken:,} problems" if isinstance(taken, int) else ""
        detail = ", ".join(filter(None, (split and f"split {split}", rows)))
        entry = known(name)
        repository = entry.repository if entry and name != DEMO else name if _is_repository(name) else None
        if name == DEMO:
            found.append(Origin("the problems bundled with mlxmath", detail=detail))
        elif repository is None or Path(name).suffix or is_local_path(name):
            found.append(Origin(f"a local file ({Path(name).name})", detail=detail))
        else:
            found.append(Origin(repository, repository, report.get("revision"), detail))
    return found


def settings_of(contents: Contents) -> list[tuple[str, str]]:
    """The settings that people or recipes chose, and those that always matter."""
    config, origin = contents.record.get("config", {}), contents.record.get("origin", {})
    found = []
    for section in _SECTIONS:
        for name, value in config.get(section, {}).items():
            full = f"{section}.{name}"
            chosen = origin.get(full, "default") != "default" or full in _ALWAYS
            if chosen and name not in _NO_METHOD and value is not None:
                found.append((full, last_parts(", ".join(map(str, value)) if isinstance(value, list) else str(value))))
    keys = contents.record.get("adapter", {}).get("keys")
    if isinstance(keys, list) and keys:
        found.append(("adapted layers", ", ".join(map(str, keys))))
    return found


def outcome_of(contents: Contents) -> list[str]:
    """How the run went, a sentence each without its end."""
    record = contents.record
    if not record:
        return []
    told = [f"{record.get('status', 'unknown')} after {record.get('steps', 0):,} optimizer steps"]
    if isinstance(record.get("seconds"), int | float):
        told[0] += f" in {duration(record['seconds'])}"
    device = record.get("device", {})
    told.append(f"on {str(device.get('device', 'unknown')).partition(' (')[0]} ({device.get('backend', 'unknown')})")
    tokens = record.get("data", {}).get("tokens")
    if isinstance(tokens, int):
        told.append(f"{tokens:,} tokens an epoch")
    validation = record.get("validation")
    best = validation.get("best") if isinstance(validation, dict) else None
    if isinstance(best, dict) and isinstance(best.get("value"), int | float):
        told.append(f"best held-out value {best['value']:.4f}, at step {best.get('step')}")
    return told


@dataclass(frozen=True)
class Figures:
    """What an evaluation found of what is pushed.

    Attributes:
        text: the section of the card.
        accuracy: by benchmark, between 0 and 1.
    """

    text: str
    accuracy: Mapping[str, float]


def figures_of(contents: Contents, folders: Sequence[Path]) -> list[Figures]:
    """What evaluations found.

    Raises:
        InputError: a folder holds none, or one of something else.
        MlxmathError: its files are damaged.
    """
    found = []
    for folder in folders:
        if not (folder / "results.json").is_file() or not (folder / "model_card.md").is_file():
            raise InputError(
                f"--evaluation {folder}: results.json and model_card.md are not there; expected the folder of an "
                "evaluation (`mlxmath report` makes them from its samples)."
            )
        results = unsealed_json(folder / "results.json", None)
        text = harmless((folder / "model_card.md").read_text(encoding="utf-8"))
        if found_markup := _MARKUP.search(text):
            raise MlxmathError(
                f"{folder / 'model_card.md'} is not what an evaluation writes: it has {found_markup[0]!r} in it; "
                "`mlxmath report` makes it again."
            )
        try:
            label = _label(contents, results["settings"]["contestants"], folder)
            own = results["contestants"][label]
            names = [benchmark["name"] for benchmark in results["settings"]["benchmarks"]]
            by = own["by"].get("benchmark") or {names[0]: own["accuracy"]}
            accuracy = {str(without_paths(name)): float(by[name]["value"]) for name in names if name in by}
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise MlxmathError(f"{folder / 'results.json'} is not what an evaluation writes ({error!r}).") from None
        found.append(Figures(last_parts(text.strip()), accuracy))
    return found


def _label(contents: Contents, contestants: list[dict[str, Any]], folder: Path) -> str:
    """What the evaluation calls what is pushed; of an export, what it was made from.

    Raises:
        InputError: it has measured something else.
    """
    adapters = [contents.folder, *([contents.run_folder] if contents.run_folder else [])]
    if contents.run_folder:
        adapters.append(contents.run_folder / "best")
    sums = [sha256(each / WEIGHTS)[:16] for each in adapters if (each / WEIGHTS).is_file()]
    if contents.kind == "mlx adapter":
        sums = sums[:1]
    tuned = [one for one in contestants if one.get("adapter")]
    for one in tuned:
        if one["adapter"][:16] in sums:
            return str(one["label"])
    if not sums:
        fingerprint = unsealed_json(contents.folder / FILE_NAME, None).get("fingerprint") if (
            contents.folder / FILE_NAME).is_file() else None  # fmt: skip
        for one in contestants:
            if fingerprint and one.get("model") == fingerprint and not one.get("adapter"):
                return str(one["label"])
    raise InputError(
        f"--evaluation {folder}: what it measured is not what lies in {contents.folder} (the weights differ); evaluate "
        "this one, or name its run with --run."
    )
