"""Ratings of people: `studio/ratings.jsonl`, a line each, written as it comes, never rewritten.

Each line stands alone: who, when, what was shown on which side, who had written it, the verdict. A later line of the
same rater about the same pair replaces the earlier one; one that says "undone" takes it back. If the rating that is
undone had replaced one, that is written again as it was, with its time.
"""

import contextlib
import os
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from mlxmath.runtime.files import disk_errors, fsync_path, own_file, write_all
from mlxmath.runtime.locks import making
from mlxmath.runtime.sealed import lines_of, read_record, sealed_line
from mlxmath.studio.place import OWN, Studio
from mlxmath.studio.sources import Answer

FILE = f"{OWN}/ratings.jsonl"
SAME, BOTH_BAD, UNDONE = "same", "both bad", "undone"
Side = Literal["left", "right"]
SIDES: tuple[Side, Side] = ("left", "right")
VERDICTS = (*SIDES, SAME, BOTH_BAD)
"""What a rater can say: which side is better, or neither."""


@dataclass(frozen=True)
class Rating:
    """A line."""

    rater: str
    time: str
    """UTC, as ISO 8601 has it."""
    pair: str
    """`Pair.key`."""
    kind: str
    """Of the source: evaluation or distillation."""
    source: str
    """Its folder, in that of the studio."""
    benchmark: str
    problem: str
    """Its id."""
    question: str
    gold: str
    left_label: str
    left_fingerprint: str
    left_sample: int
    left_text: str
    left_correct: bool | None
    left_wrong_step: int | None
    """The first wrong one as the rater has it, from 1; see `mlxmath.studio.steps`."""
    left_wrong_text: str
    right_label: str
    right_fingerprint: str
    right_sample: int
    right_text: str
    right_correct: bool | None
    right_wrong_step: int | None
    right_wrong_text: str
    verdict: str
    comment: str
    gold_seen: bool
    """Whether the gold answer was looked at before the verdict."""
    seconds: float
    """From when the pair was shown."""

    def side(self, side: Side) -> Answer:
        """What stood there."""
        label, mark, sample, text, correct = (
            getattr(self, f"{side}_{part}") for part in ("label", "fingerprint", "sample", "text", "correct")
        )
        return Answer(label, mark, sample, text, correct)

    @property
    def winner(self) -> Side | None:
        """The better side; None of "same" and "both bad"."""
        return next((side for side in SIDES if side == self.verdict), None)

    @property
    def judged(self) -> str:
        """The verdict, whatever the order was: who is better, of one writer with the sample; or "same", "both bad"."""
        if self.winner is None:
            return self.verdict
        better = self.side(self.winner)
        return f"{better.label} {better.fingerprint} {better.sample}"

    @property
    def right_by_grader(self) -> Side | None:
        """The side that alone is right, as the grader has it."""
        found = [side for side in SIDES if self.side(side).correct]
        is_graded = None not in (self.left_correct, self.right_correct)
        return found[0] if is_graded and len(found) == 1 else None


class Ratings:
    """The ratings in a file, which others may be writing to as well."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._begin()

    def _begin(self) -> None:
        self._file_id, self._offset, self.left_out = 0, 0, 0
        self._given: dict[tuple[str, str], list[Rating]] = {}  # each has replaced the one before

    def all(self) -> list[Rating]:
        """Those that stand, in the order in which they were given."""
        with self._lock:
            self._read_on()
            return sorted((own[-1] for own in self._given.values() if own), key=lambda rating: rating.time)

    def replaced_by(self, rating: Rating) -> Rating | None:
        """The one that stands again if this one, which stands, is undone."""
        with self._lock:
            own = self._given.get((rating.rater, rating.pair), [])
            return own[-2] if len(own) > 1 else None

    def _read_on(self) -> None:
        """Read what was added; half a line, of a kill or of somebody who is writing it now, is left out."""
        if not self._path.is_file():  # a pipe would be waited for
            self._begin()
            return
        with self._path.open("rb") as file:
            found = os.fstat(file.fileno())
            if found.st_ino != self._file_id or found.st_size < self._offset:
                self._begin()  # it is another file than before
                self._file_id = found.st_ino
            file.seek(self._offset)
            for line in lines_of(file):
                if not line.endswith(b"\n"):
                    break
                self._offset += len(line)
                rating = read_record(Rating, line)
                if rating is None or rating.verdict not in (*VERDICTS, UNDONE):
                    self.left_out += bool(line.strip())
                    continue
                own = self._given.pop((rating.rater, rating.pair), [])
                own = own[: own.index(rating)] if rating in own else own  # what had replaced it is undone
                self._given[rating.rater, rating.pair] = [] if rating.verdict == UNDONE else [*own, rating]

    def add(self, rating: Rating) -> None:
        """Append a rating; the disk has it afterwards.

        Raises:
            MlxmathError: the disk is full, or the file cannot be written. Nothing was added.
        """
        with making(self._path, "mlxmath studio"), disk_errors(self._path), own_file(self._path) as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - 1))
            begun = b"" if file.read(1) in (b"", b"\n") else b"\n"  # killed while writing the line before
            try:
                write_all(file, begun + sealed_line(asdict(rating)))
                os.fsync(file.fileno())
            except OSError:
                with contextlib.suppress(OSError):
                    file.truncate(end)
                raise
            if not end:
                fsync_path(self._path.parent)


def ratings_of(studio: Studio) -> Ratings:
    """Of a studio's folder."""
    return Ratings(studio.inside(FILE, "ratings"))
