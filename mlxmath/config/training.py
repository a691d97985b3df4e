"""The settings of [training], which all methods share: how much, how fast, for how long, and what is measured."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from mlxmath.config.section import Folder, Names, Section, require

TRACKERS = ("tensorboard", "wandb", "trackio")


def _is_measured(others: Mapping[str, object]) -> bool:
    """Whether something is held out, or asked for in a wrong way."""
    return any(others.get(name, "wrong itself") is not None for name in ("validation_split", "validation_dataset"))


_no_warmup_steps = require(
    lambda value, others: not value or not others.get("warmup_steps"),
    "give --warmup-steps or --warmup-ratio, not both",
)
_whole_or_fraction = require(
    lambda value, _: value is None or value < 1 or value.is_integer(),
    "give a fraction below 1 or a whole number of problems",
)
_trackers = require(
    lambda value, _: set(value) <= set(TRACKERS), f"expected some of {', '.join(TRACKERS)}, separated by commas"
)
_no_split = require(
    lambda value, others: value is None or others.get("validation_split") is None,
    "give either this or --validation-split, not both",
)
_measured = require(
    lambda value, others: not value or _is_measured(others), "needs --validation-split or --validation-dataset"
)
_some_problems = require(
    lambda value, _: value is None or (value.partition(":")[0].strip() and not value.endswith((":", ":0"))),
    "expected a benchmark or file and how many problems, for example gsm8k:200",
)


class TrainingConfig(Section):
    """The loop: how much, how fast, for how long."""

    adapter_path: Folder = Field("adapters", description="Folder for the adapters, checkpoints and curves.")
    init_adapter: Folder | None = Field(
        None, description="Start from the weights in this adapter folder, of the same base, rank and targets."
    )
    full: bool = Field(
        False, description="Train the blocks' own weights, not adapters (of the lora settings, num_layers counts)."
    )
    optimizer: Literal["adamw", "adamw8bit", "adafactor", "lion", "muon"] = Field(
        "adamw", description="Optimizer; adamw8bit keeps its state in 8 bits, muon is for matrices (vectors: adamw)."
    )
    learning_rate: Annotated[float, Field(gt=0)] = Field(1e-5, description="Peak learning rate.")
    batch_size: Annotated[int, Field(ge=1)] = Field(1, description="Sequences in a micro-batch.")
    grad_accumulation_steps: Annotated[int, Field(ge=1)] = Field(8, description="Micro-batches an optimizer step.")
    batching: Literal["bucket", "pack", "pad"] = Field(
        "bucket",
        description="Rows of like length together in micro-batches of --max-batch-tokens; laid end to end; or as they "
        "come.",
    )
    max_batch_tokens: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Padded tokens in a micro-batch (unset: as many as pay off and fit the device's memory)."
    )
    grad_checkpoint: Annotated[int, Field(ge=0)] = Field(
        0, description="Recompute every n-th block in the backward pass to save memory (1: all, 0: none)."
    )
    num_epochs: Annotated[int, Field(ge=1)] = Field(1, description="Passes over the data.")
    max_steps: Annotated[int, Field(ge=1)] | None = Field(
        None, description="N optimizer steps in all, over as many epochs as that takes (unset: those of --num-epochs)."
    )
    pause_at: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="Stop, measured and saved, after N steps of the whole run, with its learning rates; --resume "
        "with a later one, or none, goes on.",
    )
    max_training_time_hours: Annotated[float, Field(gt=0)] = Field(
        16.0, description="Stop, saved, within this many hours of training; a resumed run gets them anew."
    )
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant",
        description="Learning rate after the warm-up: held, or decayed over the planned steps, or over those that the "
        "deadline allows.",
    )
    warmup_steps: Annotated[int, Field(ge=0)] = Field(0, description="Steps over which the learning rate rises from 0.")
    warmup_ratio: Annotated[float, Field(ge=0, lt=1), _no_warmup_steps] = Field(
        0.0, description="The same as a fraction of the planned steps, or of those that the deadline allows."
    )
    min_learning_rate_ratio: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="Where a decaying learning rate ends, as a fraction of its peak."
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(
        0.0, description="Decoupled weight decay of matrices; norms, biases and other vectors have none."
    )
    max_grad_norm: Annotated[float, Field(gt=0)] = Field(1.0, description="Gradients are clipped to this global norm.")
    save_every: Annotated[int, Field(ge=1)] = Field(100, description="Optimizer steps between checkpoints.")
    keep_checkpoints: Annotated[int, Field(ge=1)] = Field(2, description="Keep the newest N checkpoints.")
    validation_split: Annotated[Annotated[float, Field(gt=0)] | None, _whole_or_fraction] = Field(
        None,
        description="Hold out problems to measure the loss on: about a fraction of them if below 1, else their number.",
    )
    validation_dataset: Annotated[str | None, _no_split] = Field(
        None,
        description="Measure the loss on another dataset: a file, a Hugging Face dataset as NAME or NAME:SPLIT (unset: "
        "its validation split), or 'demo'.",
    )
    eval_every: Annotated[Annotated[int, Field(ge=1)] | None, _measured] = Field(
        None,
        description="Optimizer steps between validations (unset: each epoch's end, or each eighth of a run of few); "
        "the start and the end are always ones, and a run that its deadline ends has six in between.",
    )
    row_losses: Annotated[bool, _measured] = Field(
        False,
        description="At the end, write the best adapters' loss (or verdict) on each held-out row: held_out.json, by "
        "which runs are compared row by row; a run that a signal ends is then not measured once more.",
    )
    validation_metric: Annotated[Literal["loss", "answers"] | None, _measured] = Field(
        None,
        description="What the best adapters are the best by: the held-out loss, or how many held-out problems are "
        "answered rightly, beside which the loss is measured too (unset: loss; of grpo and gkd answers).",
    )
    early_stopping_patience: Annotated[Annotated[int, Field(ge=1)] | None, _measured] = Field(
        None, description="Stop after N validations in a row without improvement (unset: never)."
    )
    early_stopping_min_delta: Annotated[float, Field(ge=0)] = Field(
        0.0, description="By how much a validation must be better to count as an improvement."
    )
    judge: Annotated[str | None, _some_problems] = Field(
        None,
        description="When the run has ended, say whether the model got better at a benchmark or file, on all its "
        "problems that were not trained on or on N of them: BENCHMARK[:N], for example gsm8k:200.",
    )
    report_to: Annotated[Names, _trackers] = Field(
        (), description="Also follow the run in tensorboard, wandb or trackio; several separated by commas."
    )
    resume: bool = Field(False, description="Continue from the newest checkpoint in the adapter folder.")
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(0, description="Seed of the order, the adapters and dropout.")

    def unpacked(self) -> "TrainingConfig":
        """The same, with buckets in the place of packed rows: what is drawn, and what is scored, is not packed."""
        return self.model_copy(update={"batching": "bucket"}) if self.batching == "pack" else self
