"""The rows or pairs that a run trains on, and those held out to measure on."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlxmath.config.load import Resolved
from mlxmath.config.schema import RunConfig
from mlxmath.data.batch import Rows
from mlxmath.data.batching import BatchSampler
from mlxmath.data.cache import TokenRows
from mlxmath.data.pairs import Pairs, PairSampler
from mlxmath.data.prepare import prepare_held_out, prepare_rows
from mlxmath.data.split import Subset, hold_out, num_problems, warn_of_shared
from mlxmath.data.summary import mixture_lines
from mlxmath.data.tokenize import SKIPPED
from mlxmath.errors import InputError
from mlxmath.runtime.console import say

_NOT_OF_PAIRS = ("solution_column", "answer_column", "solutions", "overflow", "train_on_prompt")
"""Settings of the data that have no meaning for pairs."""


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
    return rows.rows if isinstance(rows, Pairs) else rows


def load_rows(config: RunConfig, model_folder: Path) -> TrainingData:
    """Sequences of a problem and its solution, with the model's tokenizer."""
    tokens, train, held_out = _load(config, model_folder)
    return TrainingData(train, held_out, tokens, held_out.fingerprint if held_out else None, BatchSampler)


def load_pairs(config: RunConfig, model_folder: Path, *, scored: bool = False) -> TrainingData:
    """Pairs of completions; `scored`: see `mlxmath.data.pairs.Pairs`."""
    tokens, train, held_out = _load(config, model_folder, pairs=True)
    for line in mixture_lines(tokens.stats):
        say(line)
    for name, count in tokens.stats.items():
        if name.startswith(SKIPPED):
            say(f"left out: {count:,} {name.removeprefix(SKIPPED)}")
    packed = config.training.batching == "pack"
    first_id = 0 if config.training.validation_dataset is None else len(tokens) // 2
    return TrainingData(
        Pairs(train, packed=packed, scored=scored),
        Pairs(held_out, first_id=first_id, packed=packed, scored=scored) if held_out else None,
        tokens, held_out.fingerprint if held_out else None, PairSampler, "pairs", 1 if packed else 2,
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
    config: RunConfig, model_folder: Path, *, pairs: bool = False
) -> tuple[TokenRows, TokenRows | Subset, TokenRows | Subset | None]:
    """All rows, those to train on, and those to measure on if any are asked for."""
    training, trust = config.training, config.model.trust_remote_code
    data = prepare_rows(config.data, model_folder, trust_remote_code=trust, pairs=pairs)
    if training.validation_split is not None:
        rows, held_out = hold_out(data, training.validation_split, training.seed)
        each, what = (2, "pairs") if pairs else (1, "sequences")
        say(
            f"{len(held_out) // each:,} of {len(data) // each:,} {what} are held out, "
            f"{num_problems(held_out.questions_of_rows):,} of {num_problems(data.questions_of_rows):,} problems"
        )
        return data, rows, held_out
    if training.validation_dataset is None:
        return data, data, None
    other = prepare_held_out(
        config.data, training.validation_dataset, model_folder, trust_remote_code=trust, pairs=pairs
    )
    if other.fingerprint == data.fingerprint:
        raise InputError(
            f"--validation-dataset {training.validation_dataset} is the training data itself; name another dataset or "
            "split, or hold out some of it with --validation-split."
        )
    warn_of_shared(data.questions_of_rows, other.questions_of_rows, training.validation_dataset)
    return data, data, other
