"""Which problems are held out of training, to measure on: one rule for every method.

A problem is its question: all rows with the same normalised question (`mlxmath.data.dedup.normalise`) are on
one side, whether they are chunks, several solutions, several pairs or repetitions. Of a conversation the question is
what the user says first.

A fraction f holds out the questions whose seeded hash lies in the first f of all possible hashes, so about that
fraction of them. It depends on nothing but the question and the seed: with the same of both, fine-tuning, preferences
and reinforcement learning hold out the same problems, whatever else their datasets hold and whichever rows they leave
out.
A number N holds out the N questions of the dataset with the smallest hashes, those without a row included.

Shapes: R rows, Q questions of a dataset, repetitions included.
"""

import hashlib
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mlxmath.data.cache import TokenRows
from mlxmath.data.dedup import mix
from mlxmath.errors import InputError
from mlxmath.runtime.console import warn

RULE = "by the hash of the question"
"""What a run records of how its problems were held out; another rule, another name."""


class Subset:
    """Some rows of a dataset, numbered from 0; `ids` are their numbers there."""

    def __init__(self, rows: TokenRows, ids: NDArray[np.int64]) -> None:
        self.rows, self.ids = rows, ids

    def __len__(self) -> int:
        return len(self.ids)

    def row(self, index: int) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
        """Tokens (L,) and loss mask (L,) of a row."""
        return self.rows.row(int(self.ids[index]))

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits: the same for the same choice of the same rows."""
        chosen = np.ascontiguousarray(self.ids, "<i8").tobytes()
        return hashlib.sha256(self.rows.fingerprint.encode() + chosen).hexdigest()[:16]

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """(R,) tokens of each row."""
        return self.rows.lengths[self.ids]

    @cached_property
    def questions_of_rows(self) -> NDArray[np.uint64]:
        """(R,) hash of each row's question."""
        return self.rows.questions_of_rows[self.ids]

    @cached_property
    def ranks(self) -> NDArray[np.int32] | None:
        """(R,) the lower, the earlier in training."""
        return None if self.rows.ranks is None else self.rows.ranks[self.ids]


def held_out(
    questions: NDArray[np.uint64], amount: float, seed: int, among: NDArray[np.uint64] | None = None
) -> NDArray[np.bool_]:
    """Which rows are held out. The choice is the same on every machine; a larger amount holds out the same and more.

    At least one question is held out. A fraction leaves at least one to train on.

    Args:
        questions: (R,) hash of each row's question.
        amount: about this fraction of the questions if below 1, else their number.
        seed: another seed, another choice.
        among: (Q,) hashes of all the dataset's questions, of which a number is taken (None: those of the rows).

    Returns:
        (R,) true where a row is held out.

    Raises:
        InputError: nothing would be left to train on.
    """
    seeded = mix(np.array([seed], np.uint64))
    keys = mix(questions ^ seeded)
    own = np.unique(keys)
    whole = own if among is None else np.unique(mix(among ^ seeded))
    count = int(amount)
    if amount < 1:
        held = keys < np.uint64(int(amount * 2**64))
        if len(own) > 1:
            held &= keys < own[-1]
    else:
        held = keys <= whole[min(count, len(whole)) - 1]
    if not held.any():
        held = keys == own[0]
    if held.all():
        raise InputError(
            f"--validation-split {amount:g} holds out {count or len(own):,} of {len(whole):,} problems and leaves none "
            "to train on; give a smaller one."
        )
    return np.asarray(held)


def hold_out(rows: TokenRows, amount: float, seed: int) -> tuple[Subset, Subset]:
    """The rows to train on and those held out, each in the dataset's order; see `held_out`.

    Raises:
        InputError: nothing would be left to train on.
    """
    held = held_out(rows.questions_of_rows, amount, seed, rows.questions)
    return Subset(rows, np.flatnonzero(~held)), Subset(rows, np.flatnonzero(held))


def num_problems(questions: NDArray[np.uint64]) -> int:
    """How many different problems there are, by their questions' hashes (R,)."""
    return len(np.unique(questions))


def warn_of_shared(questions: NDArray[np.uint64], measured: NDArray[np.uint64], name: str) -> None:
    """Say how many of the problems that are measured on (hashes of their questions) are trained on too."""
    distinct = np.unique(measured)
    if shared := int(np.isin(distinct, questions).sum()):
        warn(
            f"--validation-dataset {name}: {shared:,} of its {len(distinct):,} problems are in the training data too; "
            "the validation loss says nothing about unseen problems there."
        )
