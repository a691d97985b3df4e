"""What lies in the folder of a run, and how it is gone on with."""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote

from mlxmath.config.load import RUN_FILE
from mlxmath.errors import MlxmathError
from mlxmath.parsing import parse_toml
from mlxmath.runtime.sealed import unsealed_json
from mlxmath.studio.place import Studio
from mlxmath.studio.run import Run, told
from mlxmath.studio.runs import file_of

BEST = "best"
"""The adapters that did best on what is held out: their folder, and what they are called."""
_CHECKPOINTS, _WEIGHTS, _EVALUATION = "checkpoints", "adapters.safetensors", "settings.json"
_OF_A_REWARD_MODEL = "model:"
_MOST_BYTES = 1_000_000
_MOST_CHECKPOINTS = 20


@dataclass(frozen=True)
class Adapters:
    """Adapters of a run that can be asked or compared."""

    name: str
    """Their folder, within the studio's."""
    address: str
    """What an address has for it."""
    label: str
    num_bytes: int
    written: str


def adapters(studio: Studio, run: Run) -> list[Adapters]:
    """The last ones, the best, those of the newest checkpoints."""
    steps = [path for path in (run.folder / _CHECKPOINTS).glob("step-*") if path.name[5:].isdecimal()]
    steps = sorted(steps, key=lambda path: int(path.name[5:]), reverse=True)[:_MOST_CHECKPOINTS]
    places = [(run.folder, "last"), (run.folder / BEST, BEST)]
    places += [(path, f"checkpoint at step {int(path.name[5:]):,}") for path in steps]
    found = []
    for place, label in places:
        weights = file_of(studio, place, _WEIGHTS)
        if weights is not None:
            about = weights.stat()
            written = time.strftime("%Y-%m-%d %H:%M", time.localtime(about.st_mtime))
            name = studio.name(place)
            found.append(Adapters(name, quote(os.fsencode(name)), label, about.st_size, written))
    return found


def settings_text(studio: Studio, run: Run) -> str | None:
    """run.toml; None if there is none.

    Raises:
        MlxmathError: it cannot be read.
    """
    path = file_of(studio, run.folder, RUN_FILE)
    if path is None:
        return None
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise MlxmathError(f"{run.name}/{RUN_FILE} is too long to be one of ours.")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MlxmathError(f"{run.name}/{RUN_FILE} cannot be read: {error}") from None


def resume_arguments(run: Run) -> list[str]:
    """The command that goes on with a run, after `mlxmath`."""
    place = run.name if run.name == "." else f"{run.name}/"
    return [
        run.method, f"--config={'' if run.name == '.' else place}{RUN_FILE}", f"--adapter-path={run.name}", "--resume"
    ]  # fmt: skip


def why_not_here(text: str) -> str:
    """What in a run.toml executes code or sends something away; "" if nothing does.

    The folder may come from somebody else: nobody starts that by a click.
    """
    try:
        settings = parse_toml(text)
    except ValueError as error:
        return f"{RUN_FILE} is no TOML: {error}"
    weights = told(settings, "grpo", "reward_weights")
    rewards = list(weights) if isinstance(weights, dict) else []
    if told(settings, "model", "trust_remote_code"):
        return "its model brings code of its own (--trust-remote-code)"
    if any(":" in name and not name.startswith(_OF_A_REWARD_MODEL) for name in rewards):
        return "one of its rewards is code of your own"
    if told(settings, "training", "report_to"):
        return "it reports to a service (--report-to)"
    return ""


def used_in(studio: Studio, run: Run) -> Iterator[tuple[str, str]]:
    """The folders of evaluations that asked adapters of the run, and what an address has for each."""
    for folder in studio.holding(_EVALUATION):
        path = folder / _EVALUATION
        try:
            about = path.stat()
        except OSError:
            continue
        if about.st_size <= _MOST_BYTES:
            for used in _adapters_in(path, about.st_mtime_ns):
                if (studio.folder / used).is_relative_to(run.folder):
                    yield studio.name(folder), quote(os.fsencode(studio.name(folder)))
                    break


@lru_cache(1024)
def _adapters_in(path: Path, _: int) -> tuple[str, ...]:
    """The adapter folders that an evaluation notes."""
    try:
        contestants = unsealed_json(path, None).get("contestants")
    except MlxmathError:
        return ()
    found = (told(one, "adapter_folder") for one in (contestants if isinstance(contestants, list) else ()))
    return tuple(each for each in found if isinstance(each, str) and "\0" not in each)
