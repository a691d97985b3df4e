"""What lies in the folder of a run, and how it is gone on with."""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote

from mlxmath.config.load import RUN_FILE, TRAINED_FROM, section_of, settings_from
from mlxmath.errors import InputError, MlxmathError
from mlxmath.runtime.sealed import unsealed_json
from mlxmath.studio.paths import outside, refused
from mlxmath.studio.place import MOST_SETTINGS_BYTES, Studio
from mlxmath.studio.run import Run, told

BEST = "best"
"""The adapters that did best on what is held out: their folder, and what they are called."""
_CHECKPOINTS, _WEIGHTS, _EVALUATION = "checkpoints", "adapters.safetensors", "settings.json"
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
        weights = studio.file(place / _WEIGHTS)
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
    path = studio.file(run.folder / RUN_FILE)
    if path is None:
        return None
    try:
        if path.stat().st_size > MOST_SETTINGS_BYTES:
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


def why_not_here(studio: Studio, run: Run) -> str:
    """What keeps a run from being gone on with by a click; "" if nothing does.

    Its folder may come from somebody else: settings that execute code, send something away or lead out of the studio's
    folder, and links that do, are for the command line alone.
    """
    try:
        studio.whole(run.name, "--adapter-path")
        sections = (*TRAINED_FROM, section_of(run.method))
        config = settings_from(sections, config=run.folder / RUN_FILE, adapter_path=run.name, origin="option").config
    except InputError as error:
        return str(error)
    return "; ".join(f"{name}: {why}" for name, why in {**refused(config), **outside(studio, config)}.items())


def used_in(studio: Studio, run: Run) -> Iterator[tuple[str, str]]:
    """The folders of evaluations that asked adapters of the run, and what an address has for each."""
    for folder in studio.holding(_EVALUATION):
        path = folder / _EVALUATION
        try:
            about = path.stat()
        except OSError:
            continue
        if about.st_size <= MOST_SETTINGS_BYTES:
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
