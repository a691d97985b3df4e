"""Problems to ask, with their right answers: out of files and evaluations in the folder, and the demo's.

Files are read in a process of its own, within bounds: what lies in a folder may be large, or not what it seems.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from mlxmath.config.section import DEMO
from mlxmath.errors import InputError, MlxmathError
from mlxmath.evaluation.samples import SAMPLES, SETTINGS
from mlxmath.parsing import HALF_A_CHARACTER
from mlxmath.runtime.bounded import OverrunError, Pool, own, serve
from mlxmath.studio.explorer import explorer
from mlxmath.studio.place import Studio

SUFFIXES = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow")
_NO_DATA = ("events.jsonl", "metrics.csv", "ratings.jsonl")
_MOST_BYTES, _MOST_ROWS = 64_000_000, 20_000
_LIMIT_S, _MEMORY_BYTES = 30.0, 8 << 30


@dataclass(frozen=True)
class Drawn:
    """A problem."""

    question: str
    gold: str
    number: int
    """Its place among the source's, from 0."""
    total: int


def sources(studio: Studio) -> list[str]:
    """What problems can be drawn from: "demo", evaluations' folders, files."""
    found = [DEMO]
    found += [studio.name(folder) for folder in studio.holding(SETTINGS) if (folder / SAMPLES).is_file()]
    found += [studio.name(path) for path in data_files(studio)]
    return [name for name in found if not HALF_A_CHARACTER.search(name)]


def data_files(studio: Studio) -> list[Path]:
    """The files of rows that are not too large, without those that runs and evaluations write of themselves."""
    return [
        path for _, inner in studio.folders() for path in sorted(inner)
        if path.name.lower().endswith(SUFFIXES) and path.name not in _NO_DATA and not path.name.startswith("samples")
        and path.is_file() and _size(path) <= _MOST_BYTES
    ]  # fmt: skip


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def draw(studio: Studio, source: str, number: int | None = None) -> Drawn:
    """A problem of a source: any, or that of a number.

    Raises:
        InputError: there is no such source, or no problem with a right answer in it.
        MlxmathError: it is damaged.
    """
    path = studio.inside(source, "problems")
    if source != DEMO and path.is_dir():
        found = explorer(studio, source)
        if not found.problems:
            raise InputError(f"problems: {source} has none that every model has answered yet; choose another one.")
        number = random.randrange(len(found.problems)) if number is None else number % len(found.problems)
        sample = found.samples([next(iter(found.problems[number].shown.values()))])[0]
        return Drawn(sample.question, sample.gold, number, len(found.problems))
    if source != DEMO and not path.is_file():
        raise InputError(f"problems: there is no {source}; choose one of the list.")
    changed_ns = 0 if source == DEMO else path.stat().st_mtime_ns
    try:
        reply = own(_pool).reply({"path": None if source == DEMO else str(path), "at": changed_ns, "number": number})
    except OverrunError:
        raise MlxmathError(f"problems: {source} cannot be read in {_LIMIT_S:.0f} seconds; take a part of it.") from None
    if "error" in reply:
        raise InputError(reply["error"])
    return Drawn(**reply)


def _pool() -> Pool:
    return Pool("mlxmath.studio.questions", 1, _LIMIT_S, _MEMORY_BYTES)


def _work(request: Mapping[str, Any]) -> dict[str, Any]:
    """A problem of a file; see `draw`."""
    try:
        problems = _problems(request["path"], request["at"])
    except MlxmathError as error:
        return {"error": str(error)}
    if not problems:
        return {"error": f"problems: no row of {request['path']} has a problem and a right answer; choose another one."}
    number = request["number"]
    number = random.randrange(len(problems)) if number is None else number % len(problems)
    question, gold = problems[number]
    return {"question": question, "gold": gold, "number": number, "total": len(problems)}


@lru_cache(maxsize=4)
def _problems(path: str | None, _: int) -> list[tuple[str, str]]:
    from mlxmath.data.gold import gold
    from mlxmath.data.rows import open_file
    from mlxmath.data.sources import DEMO_PROBLEMS, problems_of

    file = DEMO_PROBLEMS / "test.jsonl" if path is None else Path(path)
    loaded = problems_of(open_file(file, option="problems"), None, solutions_required=False)
    return [(one.question, right) for one in islice(loaded, _MOST_ROWS) if (right := gold(one))]


if __name__ == "__main__":
    serve(_work, {"path": None, "at": 0, "number": 0})
