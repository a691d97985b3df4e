"""Every setting of a run, once: its type, its limits, its default and the sentence that `--help` shows for it."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field
from pydantic.fields import FieldInfo

from mlxmath.config.gkd import GkdConfig
from mlxmath.config.losses import DpoConfig, RewardModelConfig, SftConfig
from mlxmath.config.methods import (
    AugmentationConfig,
    DistillationConfig,
    EvaluationConfig,
    ExportConfig,
    GrpoConfig,
    Tool,
)
from mlxmath.config.quantization import quantization
from mlxmath.config.section import Folder, Names, Section, parts, plain_type, require
from mlxmath.config.training import TrainingConfig

DEFAULT_MODEL = "deepseek-ai/deepseek-math-7b-instruct"
DEFAULT_DATASET = "open-r1/OpenR1-Math-220k"

Revision = Annotated[str, Field(max_length=200)]
Filters = Annotated[tuple[str, ...], BeforeValidator(partial(parts, separator=";"))]
Benchmarks = Annotated[tuple[str, ...], BeforeValidator(lambda value: () if value == "none" else parts(value))]


_no_count = require(
    lambda value, others: value is None or others.get("count") is None,
    "give a source a count or a weight, not both",
)
_some = require(lambda value, _: value != (), "name at least one layer, for example q_proj,v_proj")
_own_tokens = require(
    lambda value, others: value is None or not others.get("train_on_prompt"),
    "leaves tokens out of the loss, and --train-on-prompt none; give one of them",
)
_no_own_groups = require(
    lambda value, others: value is None or not isinstance(others.get("quantize"), str),
    "belongs to --quantize 2 to 8; mxfp4, nvfp4 and mxfp8 have their own, auto chooses by layer",
)


class ModelConfig(Section):
    """Where the base model comes from and the form in which it is kept."""

    model: str = Field(
        DEFAULT_MODEL,
        description="Hugging Face repository, local folder or .gguf file, or ollama:NAME; 'demo' is the bundled one.",
    )
    revision: Revision | None = Field(None, description="Branch, tag or commit of the model repository.")
    mlx_path: Folder = Field("mlx_model", description="Folder for the converted model.")
    quantize: Annotated[str | int | None, BeforeValidator(quantization)] = Field(
        None,
        description="Pack the weights of linear layers: in 2, 3, 4, 5, 6 or 8 bits, as floats (mxfp4, nvfp4, mxfp8), "
        "or, with auto:4.5, in that many bits a weight in all, chosen by layer on problems of --dataset (unset: not).",
    )
    group_size: Annotated[Literal[32, 64, 128] | None, _no_own_groups] = Field(
        None, description="Weights that share one quantization scale, with 2 to 8 bits (unset: 64)."
    )
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        "auto", description="Type of the stored weights; 'auto' keeps the source's."
    )
    overwrite: bool = Field(False, description="Replace results that were made from something else.")
    trust_remote_code: bool = Field(False, description="Let the tokenizer run code from its repository.")


class RowsConfig(Section):
    """How the rows of a dataset are read."""

    dataset: str = Field(
        DEFAULT_DATASET,
        description="Hugging Face dataset, known dataset's short name, or local .jsonl, .json, .csv, .tsv, .parquet or "
        ".arrow file or folder; 'demo' is the bundled one.",
    )
    split: str | None = Field(None, description="Split of the dataset (unset: train).")
    question_column: str | None = Field(None, description="Column with the problem (unset: found by its usual names).")
    solution_column: str | None = Field(None, description="Column with the solution (unset: found likewise).")
    answer_column: str | None = Field(None, description="Column with the final answer (unset: found likewise).")
    solutions: Literal["own", "first", "all", "shortest"] = Field(
        "own", description="A row's own solution, or its verified generations: the first, all of them, or the shortest."
    )
    filters: Filters = Field(
        (), description="Conditions that a row must meet, separated by ';', for example 'level <= 3; length <= 4000'."
    )
    balance: str | None = Field(None, description="Take equally many rows of each value of this field.")


class SourceConfig(RowsConfig):
    """One dataset of a mixture, `[[data.sources]]` in a file."""

    dataset: str = Field(description="As without a mixture.")
    config: str | None = Field(None, description="Configuration (subset) of the dataset (unset: the usual one).")
    revision: Revision | None = Field(None, description="Branch, tag or commit of the dataset.")
    count: Annotated[int, Field(ge=1)] | None = Field(None, description="Take this many rows, drawn at random.")
    weight: Annotated[Annotated[float, Field(gt=0)] | None, _no_count] = Field(
        None, description="Take this share of the mixture, relative to the other sources' weights."
    )
    fallback: str | None = Field(None, description="Dataset to use, and to name, where this one cannot be had.")


class DataConfig(RowsConfig):
    """Which rows are trained on and how they become tokens.

    `sources` replaces `dataset` and the settings that say how to read it; without it these make the only source.
    """

    dataset_config: str | None = Field(None, description="Configuration (subset) of the dataset.")
    dataset_revision: Revision | None = Field(None, description="Branch, tag or commit of the dataset.")
    sources: tuple[SourceConfig, ...] = Field(
        (), description="A mixture of datasets, instead of the one above ([[data.sources]] in a file)."
    )
    num_examples: Annotated[int, Field(ge=1)] | None = Field(None, description="Use only N rows of the mixture.")
    mixture_seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(0, description="Seed of the rows drawn from sources.")
    deduplicate: Literal["off", "exact", "near"] = Field(
        "exact", description="Leave out repeated problems: the same but for spelling, or near-identical ones too."
    )
    decontaminate: Benchmarks = Field(
        ("gsm8k", "math500"),
        description="Leave out problems that occur in these benchmarks: known names or files, separated by commas; "
        "'none' checks nothing.",
    )
    curriculum: Literal["none", "easy-to-hard"] = Field(
        "none", description="Order of training: random, or by difficulty, level or, without these, solution length."
    )
    template: str = Field("tutor", description="How a problem and its solution become text.")
    template_file: Folder | None = Field(None, description="File with a template of your own, instead of a named one.")
    max_seq_len: Annotated[int, Field(ge=8)] = Field(1024, description="Longest sequence, in tokens.")
    overflow: Literal["chunk", "truncate", "drop"] = Field(
        "chunk", description="What becomes of longer rows: split into chunks, cut, or left out."
    )
    train_on_prompt: bool = Field(False, description="Train on the problem's tokens too, not only the solution's.")
    tools: Annotated[Tool | None, _own_tokens] = Field(
        None,
        description="What solutions and completions call: a calculator (<<12*7=84>>), or programs in Python with "
        "SymPy; the results are not learned (unset: nothing).",
    )
    cache_dir: Folder = Field("cache", description="Folder for the tokenized dataset.")

    @property
    def mixture(self) -> tuple[SourceConfig, ...]:
        """The sources to read: `sources`, or the one that the flat settings describe."""
        rows = self.model_dump(include=set(RowsConfig.model_fields))
        return self.sources or (SourceConfig(**rows, config=self.dataset_config, revision=self.dataset_revision),)


class LoraConfig(Section):
    """The adapter: y = W x + scale B A x with scale = alpha / rank."""

    variant: Literal["lora", "dora"] = Field(
        "lora", description="Kind of adapter: lora, or dora, which also trains each output's magnitude."
    )
    rank: Annotated[int, Field(ge=1)] = Field(8, description="Rank of the adapters.")
    alpha: Annotated[float, Field(gt=0)] = Field(16.0, description="Numerator of the adapter's scale, alpha / rank.")
    rslora: bool = Field(False, description="Scale by alpha / sqrt(rank) instead, which keeps high ranks learning.")
    plus_ratio: Annotated[float, Field(gt=0)] = Field(
        1.0, description="LoRA+: learning rate of B over that of A (its paper suggests 16)."
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="Dropout on the adapter's input.")
    targets: Annotated[Names | None, _some] = Field(
        None,
        description="Layers that get an adapter: names or globs, several separated by commas (unset: those that make "
        "queries and values, q_proj and v_proj by most models' names).",
    )
    num_layers: Annotated[int, Field(ge=-1)] = Field(-1, description="Train only the last N blocks (-1: all).")

    @property
    def scale(self) -> float:
        """alpha / rank, or alpha / √rank for rsLoRA."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


class RuntimeConfig(Section):
    """The device."""

    backend: Literal["auto", "metal", "cuda", "cpu"] = Field("auto", description="Device to compute on.")
    memory_limit_gb: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Most device memory MLX may hold, in GB (unset: the device's recommendation)."
    )
    workers: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Micro-batches computed at once (unset: on the CPU one a core, if memory allows; else one)."
    )
    offload: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Train adapters, or answer, while the base's blocks stay on the disk: 'auto' where it would not "
        "fit into the memory otherwise.",
    )
    allow_overcommit: bool = Field(False, description="Start a run even if its planned memory exceeds the device's.")


class RunConfig(Section):
    """All sections of one run."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    lora: LoraConfig = LoraConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    distillation: DistillationConfig = DistillationConfig()
    sft: SftConfig = SftConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    grpo: GrpoConfig = GrpoConfig()
    gkd: GkdConfig = GkdConfig()
    dpo: DpoConfig = DpoConfig()
    reward_model: RewardModelConfig = RewardModelConfig()
    export: ExportConfig = ExportConfig()
    runtime: RuntimeConfig = RuntimeConfig()


SECTIONS: Mapping[str, type[Section]] = {
    name: plain_type(field.annotation) for name, field in RunConfig.model_fields.items()
}
SETTINGS: Mapping[str, FieldInfo] = {
    f"{section}.{name}": field for section, model in SECTIONS.items() for name, field in model.model_fields.items()
}


def keyword(name: str) -> str:
    """The argument of a "section.field": `rank` of the LoRA section is `lora_rank`, any other its field's name."""
    section, _, field = name.rpartition(".")
    return f"lora_{field}" if section == "lora" else field


def option_name(name: str) -> str:
    """The same as an option: `--lora-rank`."""
    return f"--{keyword(name)}".replace("_", "-")
