"""Every setting of a run, once: its type, its limits, its default and the sentence that `--help` shows for it."""

import json
import math
import os.path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator

DEFAULT_MODEL = "deepseek-ai/deepseek-math-7b-instruct"
DEFAULT_DATASET = "open-r1/OpenR1-Math-220k"
DEMO = "demo"

Folder = Annotated[str, AfterValidator(os.path.expanduser)]
Solutions = Literal["own", "first", "all", "shortest"]
Filters = tuple[str, ...]


class Section(BaseModel):
    """A group of settings. Unknown keys are errors; values do not change after the run has started."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)


class ModelConfig(Section):
    """Where the base model comes from and the form in which it is kept."""

    model: str = Field(DEFAULT_MODEL, description="Hugging Face repository or local folder; 'demo' is the bundled one.")
    revision: str | None = Field(None, description="Branch, tag or commit of the model repository.")
    mlx_path: Folder = Field("mlx_model", description="Folder for the converted model.")
    quantize: Literal[4, 8] | None = Field(None, description="Bits a weight of the linear layers (unset: none).")
    group_size: Literal[32, 64, 128] = Field(64, description="Weights that share one quantization scale.")
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        "auto", description="Type of the stored weights; 'auto' keeps the source's."
    )
    overwrite: bool = Field(False, description="Replace results that were made from something else.")
    trust_remote_code: bool = Field(False, description="Let the tokenizer run code from its repository.")


class SourceConfig(Section):
    """One dataset of a mixture, `[[data.sources]]` in a file."""

    dataset: str = Field(
        description="Known dataset's short name, Hugging Face dataset, or local file or folder; 'demo' is bundled."
    )
    config: str | None = Field(None, description="Configuration (subset) of the dataset (unset: the usual one).")
    revision: str | None = Field(None, description="Branch, tag or commit of the dataset.")
    split: str | None = Field(None, description="Split of the dataset (unset: its training split).")
    question_column: str | None = Field(None, description="Column with the problem (unset: found by its usual names).")
    solution_column: str | None = Field(None, description="Column with the solution (unset: found likewise).")
    answer_column: str | None = Field(None, description="Column with the final answer (unset: found likewise).")
    solutions: Solutions = Field(
        "own", description="A row's own solution, or its verified generations: the first, all of them, or the shortest."
    )
    filters: Filters = Field((), description="Conditions that a row must meet, for example 'level <= 3'.")
    balance: str | None = Field(None, description="Take equally many rows of each value of this field.")
    count: Annotated[int, Field(ge=1)] | None = Field(None, description="Take this many rows, drawn at random.")
    weight: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Take this share of the mixture, relative to the other sources' weights."
    )
    fallback: str | None = Field(None, description="Dataset to use, and to name, where this one cannot be had.")

    @field_validator("filters", mode="before")
    @classmethod
    def _split_filters(cls, value: object) -> object:
        return _parts(value, ";")

    @field_validator("weight")
    @classmethod
    def _count_or_weight(cls, value: float | None, info: ValidationInfo) -> float | None:
        if value is not None and info.data.get("count") is not None:
            raise ValueError("give a source a count or a weight, not both")
        return value


class DataConfig(Section):
    """Which rows are trained on and how they become tokens.

    `sources` replaces `dataset` and the settings that say how to read it; without it these make the only source.
    """

    dataset: str = Field(
        DEFAULT_DATASET,
        description="Hugging Face dataset, known dataset's short name, or local .jsonl, .json or .parquet file or "
        "folder; 'demo' is the bundled one.",
    )
    dataset_config: str | None = Field(None, description="Configuration (subset) of the dataset.")
    dataset_revision: str | None = Field(None, description="Branch, tag or commit of the dataset.")
    split: str | None = Field(None, description="Split of the dataset (unset: train).")
    question_column: str | None = Field(None, description="Column with the problem (unset: found by its usual names).")
    solution_column: str | None = Field(None, description="Column with the solution (unset: found likewise).")
    answer_column: str | None = Field(None, description="Column with the final answer (unset: found likewise).")
    solutions: Solutions = Field(
        "own", description="A row's own solution, or its verified generations: the first, all of them, or the shortest."
    )
    filters: Filters = Field(
        (), description="Conditions that a row must meet, separated by ';', for example 'level <= 3; length <= 4000'."
    )
    balance: str | None = Field(None, description="Take equally many rows of each value of this field.")
    sources: tuple[SourceConfig, ...] = Field(
        (), description="A mixture of datasets, instead of the one above ([[data.sources]] in a file)."
    )
    num_examples: Annotated[int, Field(ge=1)] | None = Field(None, description="Use only N rows of the mixture.")
    mixture_seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(0, description="Seed of the rows drawn from sources.")
    deduplicate: Literal["off", "exact", "near"] = Field(
        "exact", description="Leave out repeated problems: the same but for spelling, or near-identical ones too."
    )
    decontaminate: tuple[str, ...] = Field(
        ("gsm8k", "math-500"),
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
    cache_dir: Folder = Field("cache", description="Folder for the tokenized dataset.")

    @field_validator("filters", mode="before")
    @classmethod
    def _split_filters(cls, value: object) -> object:
        return _parts(value, ";")

    @field_validator("decontaminate", mode="before")
    @classmethod
    def _split_benchmarks(cls, value: object) -> object:
        return () if value == "none" else _parts(value, ",")

    @property
    def mixture(self) -> tuple[SourceConfig, ...]:
        """The sources to read: `sources`, or the one that the flat settings describe."""
        if self.sources:
            return self.sources
        return (
            SourceConfig(
                dataset=self.dataset,
                config=self.dataset_config,
                revision=self.dataset_revision,
                split=self.split,
                question_column=self.question_column,
                solution_column=self.solution_column,
                answer_column=self.answer_column,
                solutions=self.solutions,
                filters=self.filters,
                balance=self.balance,
            ),
        )


def _parts(value: object, separator: str) -> object:
    """The parts of a text that lists several; a list of parts as it is."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(separator) if part.strip())
    return tuple(value) if isinstance(value, list) else value


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
    targets: tuple[str, ...] = Field(
        ("q_proj", "v_proj"), description="Layers that get an adapter: names or globs, several separated by commas."
    )
    num_layers: Annotated[int, Field(ge=-1)] = Field(-1, description="Train only the last N blocks (-1: all).")

    @field_validator("targets", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return _parts(value, ",")

    @field_validator("targets")
    @classmethod
    def _some(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("name at least one layer, for example q_proj,v_proj")
        return value

    @property
    def scale(self) -> float:
        """alpha / rank, or alpha / √rank for rsLoRA."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


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
    max_steps: Annotated[int, Field(ge=1)] | None = Field(None, description="Stop after N optimizer steps in all.")
    max_training_time_hours: Annotated[float, Field(gt=0)] = Field(
        16.0, description="Stop, saved, within this many hours of training; a resumed run gets them anew."
    )
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="Learning rate after the warm-up: held, or decayed over the planned steps."
    )
    warmup_steps: Annotated[int, Field(ge=0)] = Field(0, description="Steps over which the learning rate rises from 0.")
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="The same as a fraction of the planned steps."
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
    validation_split: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Hold out rows to measure the loss on: a fraction of them if below 1, else their number."
    )
    validation_dataset: str | None = Field(
        None,
        description="Measure the loss on another dataset: a file, a Hugging Face dataset as NAME or NAME:SPLIT (unset: "
        "its validation split), or 'demo'.",
    )
    eval_every: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Optimizer steps between validations (unset: each epoch's end); the run's end is always one."
    )
    early_stopping_patience: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Stop after N validations in a row without improvement (unset: never)."
    )
    early_stopping_min_delta: Annotated[float, Field(ge=0)] = Field(
        0.0, description="By how much a validation loss must be lower to count as an improvement."
    )
    resume: bool = Field(False, description="Continue from the newest checkpoint in the adapter folder.")
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(0, description="Seed of the order, the adapters and dropout.")

    @field_validator("warmup_ratio")
    @classmethod
    def _one_warmup(cls, value: float, info: ValidationInfo) -> float:
        if value and info.data.get("warmup_steps"):
            raise ValueError("give --warmup-steps or --warmup-ratio, not both")
        return value

    @field_validator("validation_split")
    @classmethod
    def _whole(cls, value: float | None) -> float | None:
        if value is not None and value >= 1 and not value.is_integer():
            raise ValueError("give a fraction below 1 or a whole number of rows")
        return value

    @field_validator("validation_dataset")
    @classmethod
    def _one_source(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.data.get("validation_split") is not None:
            raise ValueError("give either this or --validation-split, not both")
        return value

    @field_validator("eval_every", "early_stopping_patience")
    @classmethod
    def _measured(cls, value: int | None, info: ValidationInfo) -> int | None:
        wrong = "one of these was given, and is wrong itself"
        sources = [info.data.get(name, wrong) for name in ("validation_split", "validation_dataset")]
        if value is not None and sources == [None, None]:
            raise ValueError("needs --validation-split or --validation-dataset")
        return value


class EvaluationConfig(Section):
    """What models are asked, how they answer, how answers are put together."""

    benchmark: tuple[str, ...] = Field(
        (DEMO,),
        description="Benchmarks, separated by commas: demo, gsm8k, math500, math, gsm-hard, svamp, aime24, minerva, a "
        "local file, or NAME=FILE for a benchmark's rows in a local file.",
    )
    limit: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Ask only N problems of each benchmark: always the same ones, spread over the whole."
    )
    shots: Annotated[int, Field(ge=0)] = Field(0, description="Worked examples before each problem.")
    samples: Annotated[int, Field(ge=1)] = Field(1, description="Answers to each problem, for pass@k and maj@k.")
    max_tokens: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Longest answer, in tokens (unset: the benchmark's)."
    )
    temperature: Annotated[float, Field(ge=0)] = Field(
        0.0,
        validate_default=True,
        description="0 always takes the most likely token; several samples need more than 0.",
    )
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="Keep the most likely tokens of this total probability."
    )
    retrieve: str | None = Field(
        None, description="Add the best-matching formulas of this .jsonl file to each problem; 'bundled' is ours."
    )
    retrieve_count: Annotated[int, Field(ge=1)] = Field(3, description="Formulas added to a problem, at most.")
    vote: Literal["equal", "weighted"] | None = Field(
        None, description="Let the tuned models vote together, each answer counting the same or by --weights."
    )
    weights: tuple[float, ...] = Field(
        (), description="A voting model's weight each (unset: its accuracy on the other problems)."
    )
    concurrency: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Answers generated together (unset: as many as pay off and fit the memory)."
    )
    results_path: Folder = Field("evaluation_results", description="Folder for the runs' folders.")
    run_name: str | None = Field(None, description="Name of this run's folder (unset: made from its settings).")

    @field_validator("temperature")
    @classmethod
    def _different(cls, value: float, info: ValidationInfo) -> float:
        if value == 0 and info.data.get("samples", 1) > 1:
            raise ValueError("several --samples would all be the same at 0; give for example 0.7")
        return value

    @field_validator("benchmark", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return _parts(value, ",")

    @field_validator("weights", mode="before")
    @classmethod
    def _numbers(cls, value: object) -> object:
        if not isinstance(value, str):
            return _parts(value, ",")
        try:
            return tuple(float(part) for part in value.split(",") if part.strip())
        except ValueError:
            raise ValueError("give numbers separated by commas") from None

    @field_validator("weights")
    @classmethod
    def _positive(cls, value: tuple[float, ...], info: ValidationInfo) -> tuple[float, ...]:
        if value and info.data.get("vote") != "weighted":
            raise ValueError("needs --vote weighted")
        if any(not 0 <= weight < math.inf for weight in value) or (value and not any(value)):
            raise ValueError("give numbers from 0, not all of them 0")
        return value

    @field_validator("run_name")
    @classmethod
    def _one_folder(cls, value: str | None) -> str | None:
        if value is not None and (not value.strip(". ") or "/" in value or "\\" in value):
            raise ValueError("give the name of a folder, without a path")
        return value


class DistillationConfig(Section):
    """Who writes solutions, how it is asked, and which of its solutions are kept."""

    teacher: str | None = Field(None, description="Local teacher: MLX model folder, or MODEL:ADAPTER.")
    teacher_url: str | None = Field(
        None, description="Teacher behind an OpenAI-compatible endpoint, for example https://api.deepseek.com/v1."
    )
    teacher_model: str | None = Field(None, description="The endpoint's name of the teacher.")
    teacher_key_env: str | None = Field(
        None, description="Environment variable that holds the endpoint's key (unset: no key is sent)."
    )
    teacher_extra: str | None = Field(
        None, description="JSON object merged into each request to the endpoint; null takes a field out."
    )
    teacher_template: str | None = Field(
        None, description="Prompt template of a local teacher (unset: its adapter's, else its chat template)."
    )
    instruction: str = Field(
        "Solve the problem step by step. Write out every calculation, and put the final answer within \\boxed{}.",
        description="What follows the problem in the question to the teacher ('': nothing).",
    )
    samples: Annotated[int, Field(ge=1)] = Field(4, description="Solutions asked for to each problem.")
    temperature: Annotated[float, Field(ge=0)] = Field(
        0.7, description="Temperature that solutions are drawn at; several samples need more than 0."
    )
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="Keep the most likely tokens of this total probability."
    )
    max_tokens: Annotated[int, Field(ge=1)] = Field(4096, description="Longest solution, in tokens.")
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = Field(
        None, description="Seed of the samples (unset: 0 for a local teacher, none is sent to an endpoint)."
    )
    concurrency: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Solutions written at once (unset: 8 by an endpoint, as many as pay off by a local teacher)."
    )
    requests_per_minute: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Most requests a minute to the endpoint (unset: no limit)."
    )
    timeout_s: Annotated[float, Field(gt=0)] = Field(600.0, description="Seconds to wait for one answer.")
    retries: Annotated[int, Field(ge=0)] = Field(6, description="How often a failed request is made again.")
    backoff_s: Annotated[float, Field(ge=0)] = Field(
        1.0, description="Seconds before the first repetition; doubled for each further one, up to 60."
    )
    price_in: Annotated[float, Field(ge=0)] = Field(0.0, description="Price of a million prompt tokens.")
    price_out: Annotated[float, Field(ge=0)] = Field(0.0, description="Price of a million tokens written.")
    keep: Literal["best", "all"] = Field(
        "best", description="Accepted solutions of a problem that are kept: the most faithful, shortest one, or all."
    )
    thinking: Literal["keep", "drop"] = Field(
        "keep", description="What becomes of a solution's <think> part in what is kept."
    )
    min_validity: Annotated[float, Field(ge=0, le=1)] = Field(
        1.0, description="Least share of true equations, where any can be decided."
    )
    min_provenance: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="Least share of operands that come from the problem or an earlier result."
    )
    min_liveness: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="Least share of equations that the answer was computed from."
    )
    require_support: bool = Field(
        False, description="Keep only solutions with an equation whose result is the final answer."
    )
    allow_doubt: bool = Field(False, description="Keep solutions that go round in circles.")
    min_characters: Annotated[int, Field(ge=0)] = Field(20, description="Shortest solution kept, in characters.")
    max_characters: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Longest solution kept, in characters (unset: any)."
    )
    output_path: Folder = Field("distilled", description="Folder for responses, solutions and their card.")

    @field_validator("teacher_url")
    @classmethod
    def _endpoint(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("give a URL that begins with http:// or https://")
        if parts.username or parts.password:
            raise ValueError("a key does not belong into the URL; name its environment variable (--teacher-key-env)")
        return value.rstrip("/")

    @field_validator("teacher_extra")
    @classmethod
    def _object(cls, value: str | None) -> str | None:
        try:
            wrong = value is not None and not isinstance(json.loads(value), dict)
        except ValueError:
            wrong = True
        if wrong:
            raise ValueError('give a JSON object, for example \'{"reasoning_effort": "high"}\'')
        return value

    @field_validator("temperature")
    @classmethod
    def _different(cls, value: float, info: ValidationInfo) -> float:
        if value == 0 and info.data.get("samples", 1) > 1:
            raise ValueError("several --samples would all be the same at 0; give for example 0.7")
        return value

    @field_validator("max_characters")
    @classmethod
    def _some_length(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and value < info.data.get("min_characters", 0):
            raise ValueError("is less than --min-characters")
        return value


class GrpoConfig(Section):
    """Reinforcement learning by group-relative policy optimization, named as TRL names it."""

    num_generations: Annotated[int, Field(ge=2)] = Field(8, description="Completions of a prompt, compared as a group.")
    max_completion_length: Annotated[int, Field(ge=1)] = Field(512, description="Longest completion, in tokens.")
    temperature: Annotated[float, Field(gt=0)] = Field(1.0, description="Temperature that completions are drawn at.")
    beta: Annotated[float, Field(ge=0)] = Field(
        0.0, description="Weight of the divergence from the model at the start (0: none)."
    )
    epsilon: Annotated[float, Field(gt=0, lt=1)] = Field(0.2, description="How far a probability ratio may fall.")
    epsilon_high: Annotated[float, Field(gt=0)] | None = Field(
        None, description="How far a probability ratio may rise (unset: as far as it may fall)."
    )
    num_iterations: Annotated[int, Field(ge=1)] = Field(1, description="Optimizer passes over each set of completions.")
    loss_type: Literal["dapo", "grpo", "dr_grpo", "bnpo"] = Field("dapo", description="How token losses are averaged.")
    scale_rewards: Literal["group", "batch", "none"] = Field(
        "group", description="Standard deviation that advantages are divided by: the group's, the batch's, or none."
    )
    importance_sampling_level: Literal["token", "sequence"] = Field(
        "token", description="Whether probability ratios are of tokens or of whole completions."
    )
    mask_truncated_completions: bool = Field(
        False, description="Leave completions that reached the longest length out of the loss."
    )
    dynamic_sampling: bool = Field(
        False, description="Draw other problems in place of groups whose rewards are all the same."
    )
    reward_weights: dict[str, float] = Field(
        {"correctness": 1.0}, description="Rewards that count, each with its weight."
    )


class DpoConfig(Section):
    """Preference tuning, named as TRL names it."""

    loss_type: Literal["sigmoid", "ipo", "orpo"] = Field(
        "sigmoid", description="The loss: sigmoid is DPO's own; ipo; orpo, which needs no reference model."
    )
    beta: Annotated[float, Field(gt=0)] = Field(
        0.1, description="How strongly the reference holds (ipo: its tau; orpo: weight of the odds ratio)."
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = Field(
        0.0, description="Share of pairs taken to be labelled the wrong way round (sigmoid only)."
    )

    @field_validator("label_smoothing")
    @classmethod
    def _sigmoid_only(cls, value: float, info: ValidationInfo) -> float:
        if value and info.data.get("loss_type") != "sigmoid":
            raise ValueError("needs --loss-type sigmoid")
        return value


class RewardModelConfig(Section):
    """Training of a reward model, named as TRL names it."""

    center_rewards_coefficient: Annotated[float, Field(ge=0)] = Field(
        0.0, description="Weight of what keeps the scores of a pair around 0; 0.01 is usual (0: nothing does)."
    )


class RuntimeConfig(Section):
    """The device."""

    backend: Literal["auto", "metal", "cuda", "cpu"] = Field("auto", description="Device to compute on.")
    memory_limit_gb: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Most device memory MLX may hold, in GB (unset: the device's recommendation)."
    )
    workers: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Micro-batches computed at once (unset: on the CPU one a core, if memory allows; else one)."
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
    grpo: GrpoConfig = GrpoConfig()
    dpo: DpoConfig = DpoConfig()
    reward_model: RewardModelConfig = RewardModelConfig()
    runtime: RuntimeConfig = RuntimeConfig()
