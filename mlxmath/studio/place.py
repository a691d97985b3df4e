"""The folder that the studio was opened on: nothing outside it is read, and commands run in it."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mlxmath.errors import InputError
from mlxmath.runtime.files import real
from mlxmath.studio.jobs import Jobs

OWN = "studio"
"""What the studio itself writes, within the folder: logs of what it started, and ratings."""
_MOST_DEPTH, _MOST_FOLDERS = 5, 20_000
MOST_SETTINGS_BYTES = 1_000_000
"""Of a run.toml, and of an evaluation's settings where they are only looked through."""
_MOST_READ = 4_000_000_000
"""Bytes of a file that a page is made of."""
_MOST_BYTES, _MOST_BYTES_PART = 900, 255
"""Of a path, and of each of its parts, on all file systems in use (a path of macOS has 1,024)."""
_NEVER = ("checkpoints", "best", "cache", "node_modules", "site-packages", "__pycache__", OWN)


@dataclass(frozen=True)
class Studio:
    """What all pages share."""

    folder: Path
    """Absolute, without links."""
    read_only: bool = False
    jobs: Jobs = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "jobs", Jobs(self.folder, self.inside(f"{OWN}/jobs", "FOLDER")))

    def inside(self, name: str, option: str = "path") -> Path:
        """The file or folder that `name` says, relative to the folder.

        Args:
            name: relative, or absolute and within the folder.
            option: what named it, for the error.

        Raises:
            InputError: it leads out of the folder (by `..`, by a link, by an absolute path), or is no name of a file.
        """
        if "\0" in name:
            raise InputError(f"{option}: expected the name of a file or folder; found a zero byte in it.")
        if not _is_name(name):
            raise InputError(f"{option}: expected the name of a file or folder; no file can have {name[:80]!a}.")
        path = real(self.folder / name)
        if not path.is_relative_to(self.folder):
            raise InputError(
                f"{option}: {name} lies outside {self.folder}, which the studio was opened on; use what is in it, or "
                "open the studio on a folder that holds both."
            )
        return path

    def whole(self, name: str, option: str = "path") -> Path:
        """The same of what a command is to read or write: in a folder nothing may be a link that leads out either.

        Raises:
            InputError: see `inside`; or something in it does.
        """
        path = self.inside(name, option)
        for place, folders, files in os.walk(path):  # which follows no link
            for each in (*folders, *files):
                if os.path.islink(inner := os.path.join(place, each)):  # noqa: PTH114, PTH118  many
                    self.inside(inner, option)
        return path

    def check_readable(self, path: Path, option: str) -> None:
        """Refuse a file, if it is there, of which no page is made.

        Raises:
            InputError: it is a link that leads out, no file, or would fill the memory.
        """
        found = self.inside(str(path), option)
        if not found.exists():
            return
        if not found.is_file():
            raise InputError(f"{option}: expected a file, found none in {self.name(path)}; remove it.")
        if (num_bytes := found.stat().st_size) > _MOST_READ:
            raise InputError(f"{option}: {self.name(path)} has {num_bytes:,} bytes, too many to be shown here.")

    def file(self, path: Path) -> Path | None:
        """A file in the folder; None if there is none, or it is a link that leads out."""
        try:
            found = self.inside(str(path))
        except InputError:
            return None
        return found if found.is_file() else None

    def name(self, path: Path) -> str:
        """A path within the folder as pages and command lines have it: relative to the folder, "." for itself."""
        return path.relative_to(self.folder).as_posix()

    def holding(self, *names: str) -> Iterator[Path]:
        """The folders within this one, itself included, that hold a file of one of these names; links are not followed.

        Folders of checkpoints, caches and hidden ones are left out, as is what lies deeper than five folders.
        """
        return (folder for folder, inner in self.folders() if any(entry.name in names for entry in inner))

    def files(self, *suffixes: str) -> Iterator[Path]:
        """The files in these folders whose names end so."""
        for _, inner in self.folders():
            yield from (entry for entry in inner if entry.name.lower().endswith(suffixes) and entry.is_file())

    def folders(self) -> Iterator[tuple[Path, list[Path]]]:
        """Each folder with what is in it; at most `_MOST_FOLDERS`."""
        waiting, count = [(self.folder, 0)], 0
        while waiting and count < _MOST_FOLDERS:
            count += 1
            folder, depth = waiting.pop()
            try:
                with os.scandir(folder) as found:
                    inner = sorted((each for each in found if not each.is_symlink()), key=lambda each: each.name)
                places = [
                    each for each in inner
                    if each.name not in _NEVER and not each.name.startswith(".") and each.is_dir()
                ] if depth < _MOST_DEPTH else []  # fmt: skip
            except OSError:
                continue  # gone meanwhile, or not for us
            yield folder, [folder / each.name for each in inner]
            waiting += [(folder / each.name, depth + 1) for each in reversed(places)]


def _is_name(name: str) -> bool:
    """Whether the system can look for it."""
    try:
        parts = os.fsencode(name).split(b"/")
    except UnicodeEncodeError:  # half a character
        return False
    return sum(map(len, parts)) <= _MOST_BYTES and all(len(part) <= _MOST_BYTES_PART for part in parts)
