"""Formats that runs leave and read back: caches, checkpoints, evaluations, distilled answers, records for push."""

import contextlib
import hashlib
import json
import shutil
import struct
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

from starlette.testclient import TestClient

from benchmarks.fuzzing.formats import Format
from benchmarks.fuzzing.mutations import damaged_bytes, damaged_json, damaged_lines, damaged_value, written
from benchmarks.fuzzing.tensor_files import damaged_safetensors
from benchmarks.fuzzing.trained import run_folder
from mlxmath import api
from mlxmath.config.load import settings_from
from mlxmath.data.cache import HEADER, HEADER_BYTES, TokenRows, short_digest
from mlxmath.data.prepare import note, prepared
from mlxmath.distillation.responses import Response, identify, open_responses
from mlxmath.evaluation.report import write_report
from mlxmath.evaluation.samples import Sample
from mlxmath.runtime.blas_trials import _read as read_trials
from mlxmath.runtime.files import sha256
from mlxmath.sharing.push import push
from mlxmath.studio.app import create_app
from mlxmath.studio.place import Studio
from mlxmath.training.checkpoint import newest_checkpoint
from mlxmath.training.event_file import read_events
from tests.evaluation.make import sample, settings
from tests.studio.answers import distillation, evaluation, rating

_SETTINGS: dict[str, Any] = {
    "dataset": "demo", "model": "demo", "num_examples": 24, "max_steps": 2, "save_every": 1, "validation_split": 0.2,
    "eval_every": 1, "max_seq_len": 128, "batch_size": 2, "grad_accumulation_steps": 1, "lora_rank": 2,
    "backend": "cpu", "lora_targets": ("q_proj", "v_proj"),
}  # fmt: skip


def _cache(folder: Path) -> None:
    found = next((run_folder() / "cache").glob("*.pkl"))
    shutil.copy(found, folder / "rows.pkl")


def _read_cache(folder: Path) -> None:
    rows = TokenRows.load(folder / "rows.pkl")
    for index in (0, len(rows) - 1):
        rows.row(index)
    _ = rows.lengths, rows.questions_of_rows, rows.num_targets
    dict(rows.stats)


def damaged_cache(random: Random, data: bytes) -> bytes:
    """Bytes of the file, or its contents with the checksums right."""
    if random.random() < 0.4:
        return damaged_bytes(random, data, HEADER_BYTES)
    fields = list(HEADER.unpack_from(data))
    numbers = fields[3:17]
    spans = list(zip(numbers[::2], numbers[1::2], strict=True))
    result = bytearray(data)
    for _ in range(random.choice((1, 1, 2))):
        if random.random() < 0.3:  # places and sizes
            at = random.randrange(1, 17)
            fields[at] = random.choice(
                (0, 1, 64, fields[at] + 1, fields[at] + 64, 2**31, fields[random.randrange(3, 17)])
            )
        else:
            start, size = random.choice(spans)
            part = damaged_bytes(random, bytes(result[start : start + size]))[:size]
            result[start : start + len(part)] = part
    try:
        for at, part in ((17, [6]), (18, [0, 1, 2, 3, 4]), (19, [5])):
            spans = list(zip(fields[3:17:2], fields[4:17:2], strict=True))
            pieces = b"".join(bytes(result[spans[i][0] : spans[i][0] + spans[i][1]]) for i in part)
            fields[at] = hashlib.sha256(pieces).digest() if at == 18 else short_digest(pieces)
        HEADER.pack_into(result, 0, *fields)
    except (struct.error, OverflowError):
        return damaged_bytes(random, data, HEADER_BYTES)
    result[HEADER_BYTES - 16 : HEADER_BYTES] = short_digest(bytes(result[: HEADER_BYTES - 16]))
    return bytes(result)


def _notes(folder: Path) -> None:
    (folder / "cache").mkdir()
    (folder / "mlx_model").mkdir()
    for path in (run_folder() / "cache").glob("*.json"):
        shutil.copy(path, folder / "cache" / path.name)
    _read_notes(folder)


def _read_notes(folder: Path) -> None:
    found = settings_from(cache_dir=str(folder / "cache"), dataset="demo").config
    prepared(found.data, folder / "mlx_model")
    rows = TokenRows.load(next((run_folder_of(folder)).glob("*.pkl")))
    note(found.data, folder / "mlx_model", rows, form="solutions")


def run_folder_of(folder: Path) -> Path:
    """Where the rows of the notes lie."""
    cache = folder / "cache"
    if not list(cache.glob("*.pkl")):
        shutil.copy(next((run_folder() / "cache").glob("*.pkl")), cache / "rows.pkl")
    return cache


def _whole_run(folder: Path) -> None:
    for name in ("mlx_model", "cache", "adapters"):
        shutil.copytree(run_folder() / name, folder / name)


def _newest(folder: Path) -> Path:
    return folder / "adapters" / "checkpoints" / "step-2"


def sealed_damage(random: Random, data: bytes) -> bytes:
    """A file of `sealed_json`, damaged and then perhaps sealed again: as somebody could who knows how."""
    if random.random() < 0.4:
        return damaged_json(random, data)
    value = json.loads(data)
    value.pop("checksum", None)
    changed = damaged_value(random, value)
    try:
        plain = json.loads(written(changed))
        digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
    except (ValueError, RecursionError):
        return written(changed).encode()
    if isinstance(plain, dict):
        changed = changed | {"checksum": digest}
    return written(changed).encode()


def _resume(folder: Path) -> None:
    """As `train --resume`: from the newest whole checkpoint, one step further."""
    with contextlib.chdir(folder):
        if newest_checkpoint(Path("adapters")) is not None:
            api.sft(**(_SETTINGS | {"max_steps": 3}), resume=True, allow_overcommit=True)


def _log(folder: Path) -> None:
    (folder / "adapters").mkdir()
    shutil.copy(run_folder() / "adapters" / "events.jsonl", folder / "adapters" / "events.jsonl")


def write_evaluation(folder: Path) -> None:
    """Samples of two contestants, and their settings."""
    found = settings("base", "tuned")
    (folder / "settings.json").write_text(json.dumps(found))
    samples: list[Sample] = [
        sample(name, number, answer=str(number), gold=str(number), question="q" * number, level="1", subject="a")
        for name in ("base", "tuned")
        for number in range(4)
    ]
    (folder / "samples.jsonl").write_text("".join(json.dumps(asdict(one)) + "\n" for one in samples))


_IDENTITY = {"url": "http://localhost/v1", "model": "m", "temperature": 0.0}


def _distilled(folder: Path) -> None:
    with open_responses(folder / "distilled", _IDENTITY) as responses:
        for number in range(4):
            responses.append(
                Response(
                    identify(_IDENTITY), f"k{number}", 0, f"p{number}", "q?", "4", "It is 4.", "stop", 1, 2, 0.5, 1
                )
            )


def _reread(folder: Path) -> None:
    with open_responses(folder / "distilled", _IDENTITY, resume=True) as responses:
        for number in range(4):
            responses.get((f"k{number}", 0))


def _to_push(folder: Path) -> None:
    (folder / "adapters").mkdir()
    for path in (run_folder() / "adapters").iterdir():
        if path.is_file():
            shutil.copy(path, folder / "adapters" / path.name)
    _evaluation_with_results(folder / "evaluation")


def _evaluation_with_results(folder: Path) -> None:
    folder.mkdir()
    write_evaluation(folder)
    weights = run_folder() / "adapters" / "adapters.safetensors"
    found = json.loads((folder / "settings.json").read_text())
    found["contestants"][1]["adapter"] = sha256(weights)
    (folder / "settings.json").write_text(json.dumps(found))
    write_report(folder)


def _push(folder: Path) -> None:
    push(folder / "adapters", "me/tuned", evaluations=[folder / "evaluation"], licence="mit", dry_run=True)


def _to_rate(folder: Path) -> None:
    """An evaluation, judged responses, and ratings without checksums, which damage would only fail."""
    evaluation(folder / "evaluation", num=4)
    distillation(folder / "distilled")
    (folder / "studio").mkdir()
    lines = (
        json.dumps(asdict(rating(number, "left", left_wrong_step=1, rater="ab"[number % 2]))) for number in range(4)
    )
    (folder / "studio" / "ratings.jsonl").write_text("\n".join(lines) + "\n")


def _rate(folder: Path) -> None:
    """What the pages of ratings show; an error that nobody foresaw is raised here."""
    pages = TestClient(create_app(Studio(folder)))
    for source in ("evaluation", "distilled"):
        pages.get("/rate/next", params={"source": source, "rater": "a", "disagree": "on"})
    for place in ("/rate", "/rate/results", "/rate/pairs.jsonl", "/rate/pairs.jsonl?form=labels"):
        assert pages.get(place).status_code == 200


_TRIALS = {"trials": [{"library": "x.so", "asked": None, "kernels": "Haswell", "flops_per_s": 1e9}]}


def _file(name: str, value: Any) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(json.dumps(value))


FORMATS = (
    Format("cache", _cache, {"rows.pkl": damaged_cache}, _read_cache, (), 3.0),
    Format("notes of the cache", _notes, {"cache/prepared.json": damaged_json}, _read_notes),
    Format("checkpoint", _whole_run,
           {"adapters/checkpoints/step-2/state.json": sealed_damage,
            "adapters/checkpoints/step-2/adapters.safetensors": damaged_safetensors,
            "adapters/checkpoints/step-2/optimizer.safetensors": damaged_safetensors},
           _resume, (), 0.7),
    Format("a run to go on with", _whole_run,
           {"adapters/run.json": damaged_json, "adapters/events.jsonl": damaged_lines,
            "adapters/adapter_config.json": damaged_json, "mlx_model/mlxmath.json": damaged_json}, _resume, (), 0.5),
    Format("events", _log, {"adapters/events.jsonl": damaged_lines},
           lambda f: list(read_events(f / "adapters" / "events.jsonl"))),
    Format("evaluation", write_evaluation, {"settings.json": damaged_json, "samples.jsonl": damaged_lines},
           lambda f: write_report(f), ("report", "."), 0.7),
    Format("distilled answers", _distilled,
           {"distilled/settings.json": sealed_damage, "distilled/responses.jsonl": damaged_lines}, _reread),
    Format("what is rated", _to_rate,
           {"studio/ratings.jsonl": damaged_lines, "evaluation/settings.json": damaged_json,
            "evaluation/samples.jsonl": damaged_lines, "distilled/settings.json": sealed_damage,
            "distilled/responses.jsonl": damaged_lines, "distilled/solutions.jsonl": damaged_lines}, _rate),
    Format("what is pushed", _to_push,
           {"adapters/run.json": damaged_json, "adapters/adapter_config.json": damaged_json,
            "evaluation/results.json": damaged_json, "evaluation/settings.json": damaged_json}, _push,
           ("push", "adapters", "me/tuned", "--dry-run", "--evaluation", "evaluation"), 1.0),
    Format("BLAS that were tried", _file("blas.json", _TRIALS), {"blas.json": sealed_damage},
           lambda f: read_trials(f / "blas.json")),
)  # fmt: skip
