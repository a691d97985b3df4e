"""The rows or pairs that a run trains on, and the problems held out to measure on: one rule for every method.

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
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxmath.config.load import Resolved
from mlxmath.config.schema import DataConfig, RunConfig
from mlxmath.data.batch import Rows
from mlxmath.data.batching import BatchSampler
from mlxmath.data.cache import TokenRows
from mlxmath.data.completions import Completions, CompletionSampler
from mlxmath.data.dedup import mix
from mlxmath.data.mixture import Mixture
from mlxmath.data.pairs import Pairs, PairSampler
from mlxmath.data.prepare import held_out_config, prepare_held_out, prepare_rows
from mlxmath.data.summary import mixture_lines
from mlxmath.data.templates import get_template
from mlxmath.data.tokenize import SKIPPED, Form
from mlxmath.errors import InputError
from mlxmath.runtime.console import say, warn

RULE = "by the hash of the question"
"""What a run records of how its problems were held out; another rule, another name."""
_NOT_OF_PAIRS = ("solution_column", "answer_column", "solutions", "overflow", "train_on_prompt")
"""Settings of the data that have no meaning for pairs."""


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
    def sources(self) -> NDArray[np.int64]:
        """(R,) what of the dataset each row is of; see `TokenRows`."""
        return self.ids if self.rows.sources is None else self.rows.sources[self.ids]

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


@dataclass(frozen=True)
class TrainingData:
    """Sequences or pairs, tokenized."""

    train: Rows
    held_out: Rows | None
    tokens: TokenRows
    """Where they are from."""
    held_out_fingerprint: str | None
    sampler: Callable[..., BatchSampler]
    """Cuts `train`, or `held_out`, into steps."""
    unit: str = "sequences"
    """What batch sizes count."""
    rows_each: int = 1
    """Rows that always share a micro-batch."""

    @property
    def fingerprint(self) -> str:
        """16 hex digits of all of it."""
        return self.tokens.fingerprint

    def unpacked(self) -> "TrainingData":
        """For batches of another kind than packed rows."""
        if not isinstance(self.train, Pairs):
            return self
        held_out = self.held_out.unpacked() if isinstance(self.held_out, Pairs) else None
        return replace(self, train=self.train.unpacked(), held_out=held_out, rows_each=2)

    @property
    def num_tokens(self) -> int:
        """Of all rows to train on."""
        return int(_rows_of(self.train).lengths.sum())

    @property
    def longest(self) -> int:
        """Tokens of the longest row, held-out ones included."""
        return int(max(rows.lengths.max() for rows in (self.train, self.held_out) if rows is not None))

    @property
    def largest_id(self) -> int:
        """The largest token id in it."""
        sources = [self.tokens, *(rows for rows in (_rows_of(self.held_out),) if isinstance(rows, TokenRows))]
        return max(int(rows.tokens.max()) for rows in sources)

    @property
    def facts(self) -> dict[str, Any]:
        """What run.json is to hold of it."""
        counts = {"training_rows": len(self.train), "held_out_rows": len(self.held_out or ())}
        return {"fingerprint": self.fingerprint, **counts, **self.tokens.stats}


def _rows_of(rows: Rows | None) -> Any:
    return rows.rows if isinstance(rows, Pairs | Completions) else rows


def load_rows(config: RunConfig, model_folder: Path) -> TrainingData:
    """Sequences of a problem and its solution, with the model's tokenizer."""
    tokens, train, held_out = _load(config, model_folder)
    return TrainingData(train, held_out, tokens, held_out.fingerprint if held_out else None, BatchSampler)


def load_pairs(config: RunConfig, model_folder: Path, *, scored: bool = False) -> TrainingData:
    """Pairs of completions; `scored`: see `mlxmath.data.pairs.Pairs`."""
    tokens, train, held_out = _load(config, model_folder, "pairs")
    _tell(tokens)
    packed = config.training.batching == "pack"
    first_id = 0 if config.training.validation_dataset is None else len(tokens) // 2
    return TrainingData(
        Pairs(train, packed=packed, scored=scored),
        Pairs(held_out, first_id=first_id, packed=packed, scored=scored) if held_out else None,
        tokens, held_out.fingerprint if held_out else None, PairSampler, "pairs", 1 if packed else 2,
    )  # fmt: skip


def load_completions(config: RunConfig, model_folder: Path) -> TrainingData:
    """Completions, each desirable or not: rows with a label, and both of each pair."""
    tokens, train, held_out = _load(config, model_folder, "completions")
    _tell(tokens)
    first_id = 0 if config.training.validation_dataset is None else len(tokens)
    return TrainingData(
        Completions.of(train), Completions.of(held_out, first_id) if held_out else None, tokens,
        held_out.fingerprint if held_out else None, CompletionSampler, "completions",
    )  # fmt: skip


def _tell(tokens: TokenRows) -> None:
    """What was read, and what was left out."""
    for line in mixture_lines(tokens.stats):
        say(line)
    for name, count in tokens.stats.items():
        if name.startswith(SKIPPED):
            say(f"left out: {count:,} {name.removeprefix(SKIPPED)}")


def look_at_data(config: RunConfig, method: str) -> None:
    """Open what a method reads, before anything long is done for it; rows are not read yet.

    Raises:
        InputError: no such dataset, column, split, filter or template.
        MlxmathError: the data cannot be fetched.
    """
    get_template(config.data.template, config.data.template_file)
    wanted = [config.data]
    if config.training.validation_dataset is not None:
        wanted.append(held_out_config(config.data, config.training.validation_dataset)[0])
    for data in wanted:
        mixture_for(method, config, data)


def mixture_for(method: str, config: RunConfig, data: DataConfig) -> Mixture:
    """What a method reads of a dataset, opened."""
    return Mixture(
        data, solutions_required=method not in ("grpo", "gkd"), pairs=method in ("dpo", "reward-model"),
        labels=method == "dpo" and config.dpo.loss_type == "kto",
    )  # fmt: skip


def check_pairs(settings: Resolved) -> None:
    """Refuse settings of the data that a run on pairs would ignore.

    Raises:
        InputError: there are such settings, or no dataset is named.
    """
    data = settings.config.data
    if settings.origin["data.dataset"] == "default" and not data.sources:
        raise InputError("--dataset: name one with the columns prompt, chosen and rejected.")
    for name in _NOT_OF_PAIRS:
        if getattr(data, name) != type(data).model_fields[name].default:
            raise InputError(f"{settings.where(f'data.{name}')} has no meaning for pairs; leave it out.")


def _load(
    config: RunConfig, model_folder: Path, form: Form = "solutions"
) -> tuple[TokenRows, TokenRows | Subset, TokenRows | Subset | None]:
    """All rows, those to train on, and those to measure on if any are asked for."""
    training, trust = config.training, config.model.trust_remote_code
    data = prepare_rows(config.data, model_folder, trust_remote_code=trust, form=form)
    if training.validation_split is not None:
        rows, held_out = hold_out(data, training.validation_split, training.seed)
        each, what = 2 if form == "pairs" else 1, "sequences" if form == "solutions" else form
        say(
            f"{len(held_out) // each:,} of {len(data) // each:,} {what} are held out, "
            f"{num_problems(held_out.questions_of_rows):,} of {num_problems(data.questions_of_rows):,} problems"
        )
        return data, rows, held_out
    if training.validation_dataset is None:
        return data, data, None
    other = prepare_held_out(config.data, training.validation_dataset, model_folder, trust_remote_code=trust, form=form)
    if other.fingerprint == data.fingerprint:
        raise InputError(
            f"--validation-dataset {training.validation_dataset} is the training data itself; name another dataset or "
            "split, or hold out some of it with --validation-split."
        )
    warn_of_shared(data.questions_of_rows, other.questions_of_rows, training.validation_dataset)
    return data, data, other
