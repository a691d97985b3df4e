"""The answers of a run, a JSON line each, written as they come; and what they were made with.

A folder `evaluation_results/<run>/` holds `settings.json` (written first) and `samples.jsonl`. Each line names the
fingerprint of what answered it: model, adapter, prompts, sampling, seed and data. Lines of another fingerprint are
never counted.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

from mlxmath.errors import InputError, MlxmathError, OtherRunError
from mlxmath.runtime.console import warn
from mlxmath.runtime.files import atomic_file, disk_errors, write_all
from mlxmath.runtime.sealed import lines_of, read_record, sealed_json, sealed_line, unsealed_json

SETTINGS, SAMPLES = "settings.json", "samples.jsonl"
_FORMAT = 3
_REPORTED = (2, 3)
"""Formats of which a report can be made. In the older one every model was asked in one template, and answers ended at
the tokenizer's end token alone."""
_MOST = 1 << 53
"""No count in settings.json is as large."""
_NUMBERED = re.compile(r"/\d{1,9}$")
"""How ids end: the problem's place in its benchmark."""
_ANSWERS = re.compile(r"samples(\.rank-\d+)?\.jsonl")


@dataclass(frozen=True)
class Sample:
    """One answer of one contestant to one problem, graded."""

    contestant: str
    fingerprint: str
    benchmark: str
    id: str
    sample: int
    """Which of the problem's `--samples`, from 0."""
    level: str | None
    subject: str | None
    question: str
    gold: str
    solution: str | None
    formulas: int
    """Formulas that were added to the prompt."""
    response: str
    extracted: str | None
    rule: str | None
    correct: bool
    finish_reason: str
    truncated: bool
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    """Time since the answer before it: an answer's share of the batch."""

    @property
    def key(self) -> tuple[str, str, int]:
        """What no two samples of a run share."""
        return self.contestant, self.id, self.sample


def fingerprint(value: Any) -> str:
    """16 hex digits of a JSON value."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_sample(file: IO[bytes], sample: Sample) -> None:
    """Append one line and hand it to the system, so that a killed process loses at most the line at hand."""
    write_all(file, sealed_line(asdict(sample)))


def save_samples(path: Path, samples: Iterable[Sample]) -> None:
    """Write all samples in one step."""
    with atomic_file(path) as file:
        for sample in samples:
            file.write(sealed_line(asdict(sample)))


def read_samples(folder: Path, fingerprints: Mapping[str, str]) -> tuple[list[Sample], int]:
    """The samples of a folder (those that other processes of the run left too), each once.

    Args:
        folder: of the run.
        fingerprints: of each contestant; samples of anything else are left out.

    Returns:
        The samples, and the number of lines left out: half-written, foreign or damaged ones.
    """
    found: dict[tuple[str, str, int], Sample] = {}
    left_out = 0
    for path in answer_files(folder):
        for _, sample in placed(path, fingerprints):
            if sample:
                found.setdefault(sample.key, sample)
            else:
                left_out += 1
    return list(found.values()), left_out


class Place(NamedTuple):
    """Where a line stands in a file of answers."""

    path: Path
    start: int
    end: int
    """Behind its line break, if it has one."""

    def sample(self) -> Sample | None:
        """What stands there, as long as the file is what it was."""
        with self.path.open("rb") as file:
            file.seek(self.start)
            return read_record(Sample, file.read(self.end - self.start))


def placed(path: Path, fingerprints: Mapping[str, str], start: int = 0) -> Iterator[tuple[Place, Sample | None]]:
    """The lines of a file of answers, from a place on; None for one that does not count (see `read_samples`)."""
    with path.open("rb") as file:
        file.seek(start)
        for line in lines_of(file):
            sample = read_record(Sample, line)
            is_own = sample is not None and fingerprints.get(sample.contestant) == sample.fingerprint
            is_numbered = sample is not None and _NUMBERED.search(sample.id) is not None
            yield Place(path, start, start + len(line)), sample if is_own and is_numbered else None
            start += len(line)


def answer_files(folder: Path) -> list[Path]:
    """The files of answers in a folder: the run's, and those of its single ranks."""
    return sorted(path for path in folder.glob("samples*.jsonl") if _ANSWERS.fullmatch(path.name) and path.is_file())


def identity(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What runs must share for their answers to be the same: everything that an answer depends on, no place or name."""
    contestants = [
        {name: contestant.get(name) for name in ("label", "against", "fingerprint")}
        for contestant in settings["contestants"]
    ]
    return {"contestants": contestants, "benchmarks": settings["benchmarks"]}


def fingerprints_of(settings: Mapping[str, Any]) -> dict[str, str]:
    """Whose answers count, by label: the contestants', and those of the model that reads them, if one has begun."""
    found = [*settings["contestants"], *filter(None, [settings.get("synthesis")])]
    return {one["label"]: one["fingerprint"] for one in found}


def note_decoding(folder: Path, decoding: Mapping[str, str]) -> None:
    """Add to the settings of a run how answers of contestants, by their labels, are decoded."""
    settings = unsealed_json(folder / SETTINGS, None)
    sealed_json(folder / SETTINGS, settings | {"decoding": settings.get("decoding", {}) | decoding})


def note_synthesis(folder: Path, synthesis: Mapping[str, Any]) -> None:
    """Add to the settings of a run which model reads the others' answers."""
    sealed_json(folder / SETTINGS, unsealed_json(folder / SETTINGS, None) | {"synthesis": dict(synthesis)})


def claim(folder: Path, settings: Mapping[str, Any], *, resume: bool, overwrite: bool) -> None:
    """Make the folder this run's own: write its settings, or check that those found there are the same.

    Raises:
        InputError: the folder holds another run, or this one or answers of nobody knows what, and neither `resume` nor
            `overwrite` is given.
    """
    path = folder / SETTINGS
    record = {"format": _FORMAT, **settings}
    found = None if overwrite else _found(path)
    if found is not None:
        if found["format"] != _FORMAT:
            raise InputError(
                f"{folder} holds an evaluation of an earlier version, which asked all models in one template and ended "
                "answers at the tokenizer's end token alone: its answers do not mix with today's. Choose another "
                "--run-name, or replace it with --overwrite; `mlxmath report` shows what is there."
            )
        if identity(found) != identity(record):
            raise OtherRunError(
                f"{folder} holds an evaluation with other settings ({_difference(found, record)}); choose another "
                "--run-name, or replace it with --overwrite.",
                (name for name, value in identity(record).items() if identity(found)[name] != value),
            )
        if not resume:
            raise InputError(
                f"{folder} holds answers of this evaluation already; continue with --resume, or start anew with "
                "--overwrite."
            )
        record["decoding"] = found.get("decoding", {})
        if found.get("synthesis") and record["vote"] == found["vote"]:
            record["synthesis"] = found["synthesis"]
        sealed_json(path, record)  # how the answers are put together may change
        return
    answers = answer_files(folder)
    if answers and not (resume or overwrite):
        raise InputError(
            f"{folder} holds answers ({answers[0].name}) without whole {SETTINGS}; use those that are of this "
            "evaluation with --resume, choose another --run-name, or replace them with --overwrite."
        )
    if answers and resume and not overwrite:
        _check_own(folder, {one["label"]: one["fingerprint"] for one in settings["contestants"]})
    with disk_errors(folder):
        for old in answers if overwrite else ():
            old.unlink()
        folder.mkdir(parents=True, exist_ok=True)
    sealed_json(path, record)


def _found(path: Path) -> dict[str, Any] | None:
    """The settings in a folder, if they are whole; each answer says by itself what it belongs to."""
    if not path.exists():
        return None
    try:
        found = unsealed_json(path, None)
        if _is_whole(found):
            return found
        warn(f"{path} is damaged")
    except MlxmathError as error:
        warn(str(error))
    return None


def _check_own(folder: Path, fingerprints: Mapping[str, str]) -> None:
    """Refuse whole answers of which none is this evaluation's: they would be removed, as half lines are.

    Raises:
        InputError: the folder holds nothing else.
    """
    found = [sample for path in answer_files(folder) for sample in _whole(path)]
    if found and not any(fingerprints.get(sample.contestant) == sample.fingerprint for sample in found):
        raise InputError(
            f"{folder} holds answers of another evaluation alone; choose another --run-name, or replace them with "
            "--overwrite."
        )


def _whole(path: Path) -> Iterator[Sample]:
    with path.open("rb") as file:
        yield from filter(None, (read_record(Sample, line) for line in lines_of(file)))


def read_settings(folder: Path) -> dict[str, Any]:
    """settings.json of a run.

    Raises:
        InputError: the folder is not an evaluation's.
        MlxmathError: the file is damaged.
    """
    if not (folder / SETTINGS).is_file():
        raise InputError(f"{folder} holds no evaluation: {SETTINGS} is missing; name a folder of `mlxmath evaluate`.")
    settings = unsealed_json(folder / SETTINGS, None)
    if not _is_whole(settings):
        raise MlxmathError(f"{folder / SETTINGS} is damaged or of another version; run `mlxmath evaluate` again.")
    return settings


def _is_whole(settings: Any) -> bool:
    """Whether settings.json holds what a report needs; of what earlier versions did not note, nothing or the same."""
    if not _holds(settings, format=int, contestants=list, benchmarks=list, device=dict, samples=int, shots=int,
                  temperature=float | int, seed=int, template=str, retrieve=str | None, mlxmath=str):  # fmt: skip
        return False
    unsaid: dict[str, Any] = {"vote": None, "voters": [], "weights": [], "decoding": {}}
    unsaid |= {"synthesis": None, "until_decided": None, "few_shot": None, "perturb": None}
    may = unsaid | settings
    unnoted = {"asked_in": "", "adapter": None, "adapter_folder": None, "varied": None}
    contestants = [unnoted | one if isinstance(one, dict) else one for one in settings["contestants"]]
    if not contestants or not all(
        _holds(one, label=str, fingerprint=str, against=str | None, asked_in=str, adapter=str | None,
               adapter_folder=str | None, varied=str | None)
        for one in contestants
    ) or not _holds(may, vote=str | None, voters=list, weights=list, decoding=dict, synthesis=dict | None,
                    until_decided=float | int | None, few_shot=str | None, perturb=str | None):  # fmt: skip
        return False
    if may["synthesis"] and not _holds(may["synthesis"], label=str, fingerprint=str, name=str):
        return False
    labels = [one["label"] for one in contestants]
    return (
        settings["format"] in _REPORTED
        and 1 <= settings["samples"] < _MOST
        and 0 <= settings["temperature"] < _MOST
        and all(_holds({"max_tokens": None} | one if isinstance(one, dict) else one, name=str, max_tokens=int | None)
                for one in settings["benchmarks"])
        and _holds(settings["device"], name=str, dtype=str)
        and all(one["against"] in (None, *labels) for one in contestants)
        and all(isinstance(label, str) and label in labels for label in may["voters"])
        and all(isinstance(text, str) for text in may["decoding"].values())
        and all(_holds({"weight": weight}, weight=float | int) and 0 <= weight < _MOST for weight in may["weights"])
        and any(may["weights"] or [1])
        and len(may["weights"]) in (0, len(may["voters"]))
        and (may["vote"] is None or (may["vote"] in ("equal", "weighted") and len(may["voters"]) > 1)
             or (may["vote"] == "synthesize" and len(may["voters"]) > 0))
        and (may["until_decided"] is None or 0 < may["until_decided"] <= 100)
    )  # fmt: skip


def _holds(value: Any, **kinds: Any) -> bool:
    """Whether a JSON value is an object with these types under these names, and maybe others."""
    return isinstance(value, dict) and all(
        name in value and isinstance(value[name], kind) and not isinstance(value[name], bool)
        for name, kind in kinds.items()
    )


_PLACES = ("format", "fingerprint", "folder", "adapter_folder", "asked_in", "decoding")
"""Of settings.json, what answers do not depend on."""


def _difference(found: Any, wanted: Any, name: str = "") -> str:
    """The first place where two JSON values differ."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in {**wanted, **found}:
            if found.get(key) != wanted.get(key) and key not in _PLACES:
                return _difference(found.get(key), wanted.get(key), f"{name}.{key}".strip("."))
    if isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted):
        for one, other in zip(found, wanted, strict=True):
            if one != other:
                return _difference(one, other, name)
    return f"{name}: {_shown(found)} there, {_shown(wanted)} here"


def _shown(value: Any) -> str:
    """A value in brief; of a list of contestants or benchmarks their names."""
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        return ", ".join(str(item.get("label", item.get("name"))) for item in value)
    return repr(str(value)[:60])
