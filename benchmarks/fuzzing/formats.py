"""What a format is, and how an input of it is made: a whole original of which one file is damaged."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random

from benchmarks.fuzzing.children import Job, Outcome, Watch, judged
from benchmarks.fuzzing.invoking import COMMAND_LIMIT_S, MAY, invoke
from benchmarks.fuzzing.mutations import Damage, other_file

_COPIED_BYTES = 100_000
_NOTHING_OF_THE_KIND = 0.03


@dataclass(frozen=True)
class Format:
    """
    Attributes:
        name: for the table.
        original: writes what is whole into a folder.
        damage: how a file there is damaged, by its path; one of them in each input.
        read: reads what is in a folder, as mlxmath does.
        command: the command line that reads it, in that folder; tried on a few inputs.
        share: how many inputs there are of it, compared with others.
        carried: the file is no format of anybody's: it holds what is given to a function (and is always whole).
    """

    name: str
    original: Callable[[Path], object]
    damage: Mapping[str, Damage]
    read: Callable[[Path], object]
    command: tuple[str, ...] = ()
    share: float = 1.0
    carried: bool = False


def put_original(source: Path, target: Path) -> None:
    """A copy of a folder; large files share their bytes, since readers replace files and do not change them."""

    def copy(one: str, other: str) -> str:
        if Path(one).stat().st_size < _COPIED_BYTES:
            return shutil.copyfile(one, other)
        Path(other).hardlink_to(one)
        return other

    shutil.copytree(source, target, dirs_exist_ok=True, copy_function=copy)


def make(form: Format, seed: int, original: Path, folder: Path) -> int:
    """Write the input of this seed into a folder; the bytes of what was damaged."""
    random = Random(f"{form.name} {seed}")
    put_original(original, folder)
    name = random.choice(sorted(form.damage))
    data = (folder / name).read_bytes()
    damage = other_file if random.random() < _NOTHING_OF_THE_KIND and not form.carried else form.damage[name]
    (folder / name).unlink()
    if form.carried or random.random() > _NOTHING_OF_THE_KIND / 3:
        changed = damage(random, data)
        (folder / name).write_bytes(changed)
        return len(changed)
    if random.random() < 0.5:  # not there at all, or a folder
        (folder / name).mkdir()
    return 0


def attempt(form: Format, job: Job, originals: Path, folder: Path, watch: Watch) -> Outcome:
    """Make an input and read it."""
    num_bytes = make(form, job.seed, originals / form.name, folder)
    return judged(lambda: form.read(folder), watch, num_bytes)


def attempt_by_command(form: Format, job: Job, originals: Path, folder: Path, watch: Watch) -> Outcome:
    """Make an input and give it to the command."""
    num_bytes = make(form, job.seed, originals / form.name, folder)
    watch.may = MAY
    name, *arguments = form.command
    codes: list[int] = []
    found = judged(lambda: codes.append(invoke(name, arguments)), watch, num_bytes, COMMAND_LIMIT_S)
    return found._replace(verdict="refused") if any(codes) and found.verdict == "accepted" else found
