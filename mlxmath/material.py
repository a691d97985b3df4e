"""What a training run on a dataset reads: sequences or pairs, and those of them that are held out."""

from dataclasses import dataclass
from pathlib import Path

from mlxmath.config.load import TRAINED_FROM, Resolved
from mlxmath.config.schema import RunConfig
from mlxmath.console import say
from mlxmath.data.batches import Rows, WindowPlan
from mlxmath.data.cache import TokenRows
from mlxmath.data.holdout import Subset, hold_out
from mlxmath.data.pairs import PairPlan, Pairs
from mlxmath.data.summary import mixture_lines
from mlxmath.data.tokenize import SKIPPED
from mlxmath.errors import InputError
from mlxmath.prepare import prepare_held_out, prepare_rows

_NOT_OF_PAIRS = ("solution_column", "answer_column", "solutions", "overflow", "train_on_prompt")
"""Settings of the data that have no meaning for pairs."""


@dataclass(frozen=True)
class Material:
    """What a run trains and measures on."""

    rows: Rows
    held_out: Rows | None
    data: TokenRows
    """Where the rows are from."""
    held_out_fingerprint: str | None
    plan: type[WindowPlan] | type[PairPlan]
    unit: str = "sequences"
    """What batch sizes count."""
    rows_each: int = 1
    """Rows that one of these takes in a micro-batch."""

    @property
    def num_tokens(self) -> int:
        """Of all rows to train on."""
        rows = self.rows.rows if isinstance(self.rows, Pairs) else self.rows
        return int(rows.lengths.sum())

    @property
    def longest(self) -> int:
        """Tokens of the longest row, held-out ones included."""
        return int(max(rows.lengths.max() for rows in (self.rows, self.held_out) if rows is not None))


def read_sequences(config: RunConfig, model_folder: Path) -> Material:
    """Rows for supervised fine-tuning."""
    data, rows, held_out = _read(config, model_folder)
    return Material(rows, held_out, data, held_out.fingerprint if held_out else None, WindowPlan)


def read_pairs(config: RunConfig, model_folder: Path, *, scored: bool = False) -> Material:
    """Pairs of completions; `scored`: see `mlxmath.data.pairs.Pairs`."""
    data, rows, held_out = _read(config, model_folder, pairs=True)
    for line in mixture_lines(data.stats):
        say(line)
    for name, count in data.stats.items():
        if name.startswith(SKIPPED):
            say(f"left out: {count:,} {name.removeprefix(SKIPPED)}")
    packed = config.training.batching == "pack"
    first_id = 0 if config.training.validation_dataset is None else len(data) // 2
    return Material(
        Pairs(rows, packed=packed, scored=scored),
        Pairs(held_out, first_id=first_id, packed=packed, scored=scored) if held_out else None,
        data, held_out.fingerprint if held_out else None, PairPlan, "pairs", 1 if packed else 2,
    )  # fmt: skip


def check_pairs(resolved: Resolved, section: str) -> None:
    """Refuse settings that a run on pairs, with the objective of a section, would ignore.

    Raises:
        InputError: there are such settings, or no dataset is named.
    """
    training, data = resolved.config.training, resolved.config.data
    for name, origin in resolved.origin.items():
        own = name.split(".")[0]
        if own not in (*TRAINED_FROM, section) and origin != "default":
            raise InputError(f"the settings of [{own}] have no use here; leave them out ({origin}).")
    if resolved.origin["data.dataset"] == "default" and not data.sources:
        raise InputError("--dataset: name one with the columns prompt, chosen and rejected.")
    for name in _NOT_OF_PAIRS:
        if getattr(data, name) != type(data).model_fields[name].default:
            raise InputError(f"{resolved.where(f'data.{name}')} has no meaning for pairs; leave it out.")
    if training.init_adapter and Path(training.init_adapter).resolve() == Path(training.adapter_path).resolve():
        raise InputError(
            f"--init-adapter and --adapter-path are both {training.adapter_path}; write the result to another folder."
        )


def _read(
    config: RunConfig, model_folder: Path, *, pairs: bool = False
) -> tuple[TokenRows, TokenRows | Subset, TokenRows | Subset | None]:
    """All rows, those to train on, and those to measure on if any are asked for."""
    training, trust = config.training, config.model.trust_remote_code
    data = prepare_rows(config.data, model_folder, trust_remote_code=trust, pairs=pairs)
    if training.validation_split is not None:
        rows, held_out = hold_out(data, training.validation_split, training.seed)
        each, what = (2, "pairs") if pairs else (1, "sequences")
        say(f"{len(held_out) // each:,} of {len(data) // each:,} {what} are held out")
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
    return data, data, other
