"""Are the files that a disturbed run left whole, and does its result equal an undisturbed one's?"""

import json
import re
import struct
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from mlxmath.errors import MlxmathError
from mlxmath.runtime.files import sha256
from mlxmath.runtime.sealed import unsealed_json, unsealed_line


@dataclass(frozen=True)
class Difference:
    """What may differ between two undisturbed runs, too."""

    files: str
    """Pattern of their names."""
    fields: tuple[str, ...]
    """Names in JSON, wherever they stand; none: any bytes."""
    why: str
    ordered: bool = True


MAY_DIFFER = (
    Difference("run.json", ("started", "updated", "seconds", "planned_bytes", "active_bytes", "peak_bytes",
                            "cache_bytes", "resume", "training.resume"), "clock, memory, and whether it was resumed"),
    Difference("run.toml", ("resume",), "whether it was resumed"),
    Difference("events.jsonl", ("time", "seconds", "peak_bytes", "joules", "left_s", "tokens_per_second"),
               "clock and memory; a resumed run tells that it is"),
    Difference("results.json", ("seconds", "tokens_per_second"), "clock"),
    Difference("samples.jsonl", ("seconds",), "clock; answers stand in the order in which they came", ordered=False),
    Difference("responses.jsonl", ("seconds", "attempts"), "the same, of a teacher", ordered=False),
    Difference("report.html", (), "shows the seconds of results.json"),
    Difference("prepared.json", (), "knows a pipeline's own dataset by the time of its file"),
    Difference("*.verified", (), "holds the time of the file that it speaks of"),
)  # fmt: skip
"""Everything else is equal byte for byte, but for checksums over what may differ; each fits its file or line."""
NEVER_REWRITTEN = ("samples.jsonl", "responses.jsonl")
"""Lines are only added to these: the part of one that a kill leaves stays there, and readers pass over it."""
APPENDED = ("events.jsonl", *NEVER_REWRITTEN)
"""Files whose last line a kill may leave in part."""
_EARLIER = {"earlier", "earlier-2"}
"""Where a run that begins anew keeps the adapters that it finds."""
_TEMPORARY = re.compile(r"\..+\.(tmp|old)|\.lock")


def leftovers(folder: Path) -> list[str]:
    """Temporary files and folders, and locks."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob(".*") if _TEMPORARY.fullmatch(path.name))


def files(folder: Path) -> dict[str, Path]:
    """All files but temporary ones, by their path in the folder."""
    found = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {str(name): path for name, path in found.items() if not any(map(_TEMPORARY.fullmatch, name.parts))}


def broken(folder: Path) -> list[str]:
    """Each file that is not whole, and how; checkpoints whose files are not those that were written with them."""
    found = []
    for name, path in files(folder).items():
        try:
            _READERS.get(path.suffix, Path.read_bytes)(path)
            if path.name == "state.json":
                check_checkpoint(path.parent)
        except (ValueError, KeyError, struct.error, MlxmathError) as error:
            found.append(f"{name}: {error}"[:200])
    return found


def check_checkpoint(folder: Path) -> None:
    """Compare a checkpoint's files with the hashes that were written with them.

    Raises:
        ValueError: one differs.
    """
    for name, digest in json.loads((folder / "state.json").read_text())["sha256"].items():
        if sha256(folder / name) != digest:
            raise ValueError(f"{folder / name} is not whole")


def check_safetensors(path: Path) -> None:
    """Raises ValueError unless the header's tensors fill the file exactly."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
    if 8 + length + max(ends, default=0) != path.stat().st_size:
        raise ValueError(f"{path.stat().st_size} bytes, its header needs {8 + length + max(ends, default=0)}")


def _check_lines(path: Path) -> None:
    for _ in _rows(path, may_end_early=path.name in APPENDED):
        pass


def _rows(path: Path, *, may_end_early: bool = False) -> Iterator[Any]:
    """The objects of JSON lines, without their checksums. Raises ValueError if one is none, or not what was written."""
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            json.loads(line)
            if (row := unsealed_line(line)) is None:
                raise ValueError("a line is not what was written")
            yield row
        except ValueError:
            if path.name not in NEVER_REWRITTEN and (line.endswith(b"\n") or not may_end_early):
                raise


def _check_end(end: bytes) -> Callable[[Path], None]:
    def check(path: Path) -> None:
        if not path.read_bytes().rstrip().endswith(end):
            raise ValueError("its end is missing")

    return check


def _object(path: Path) -> Any:
    """What a JSON file holds, without its checksum. Raises MlxmathError if that is not of what it holds."""
    value = json.loads(path.read_bytes())
    return unsealed_json(path, None) if isinstance(value, dict) else value


_READERS: dict[str, Callable[[Path], Any]] = {
    ".json": _object,
    ".jsonl": _check_lines,
    ".toml": lambda path: tomllib.loads(path.read_text()),
    ".safetensors": check_safetensors,
    ".png": _check_end(b"IEND\xaeB`\x82"),
    ".html": _check_end(b"</html>"),
}


def differences(folder: Path, reference: Path) -> list[str]:
    """What differs between a run's result and an undisturbed one's, but for `MAY_DIFFER`."""
    ours, theirs = files(folder), files(reference)
    ours = {name: path for name, path in ours.items() if not _EARLIER & set(Path(name).parts)}
    found = [f"{name} is missing" for name in theirs if name not in ours]
    found += [f"{name} is there" for name in ours if name not in theirs]
    found += [f"{name} is left over" for name in leftovers(folder)]
    for name in ours.keys() & theirs.keys():
        if ours[name].read_bytes() != theirs[name].read_bytes() and (what := _difference(ours[name], theirs[name])):
            found.append(f"{name}: {what}")
    return sorted(found)


def _difference(one: Path, other: Path) -> str | None:
    rule = next((rule for rule in MAY_DIFFER if fnmatch(one.name, rule.files)), None)
    if rule is None:
        return "other bytes"
    if not rule.fields:
        return None
    first, second = (_read(path, rule) for path in (one, other))
    return next(_unequal(first, second), None)


def _unequal(one: Any, other: Any, where: str = "") -> Iterator[str]:
    """Where two values of JSON differ, and how."""
    if isinstance(one, dict) and isinstance(other, dict):
        for name in sorted(one.keys() | other.keys()):
            yield from _unequal(one.get(name), other.get(name), f"{where}.{name}")
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for number, (a, b) in enumerate(zip(one, other, strict=True)):
            yield from _unequal(a, b, f"{where}[{number}]")
    elif one != other:
        yield f"{where}: {str(one)[:150]} instead of {str(other)[:150]}"


def _read(path: Path, rule: Difference) -> Any:
    """A file's objects without what may differ."""
    if path.suffix == ".jsonl":
        rows = [_without(row, rule.fields) for row in _rows(path)]
        rows = list(_final(rows)) if path.name == "events.jsonl" else rows
        return rows if rule.ordered else sorted(rows, key=json.dumps)
    value = tomllib.loads(path.read_text()) if path.suffix == ".toml" else _object(path)
    return _without(value, rule.fields)


def _without(value: Any, fields: tuple[str, ...]) -> Any:
    if isinstance(value, dict):
        return {name: _without(part, fields) for name, part in value.items() if name not in fields}
    return [_without(part, fields) for part in value] if isinstance(value, list) else value


def _final(events: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """What a run has told of each step last: a killed one tells the steps since its checkpoint twice."""
    last = {(event["event"], event.get("step")): event for event in events}
    for (kind, _), event in sorted(last.items(), key=str):
        if kind in ("step", "validation"):
            yield event
