"""Every setting of a run, once: its type, its limits, its default and the sentence that `--help` shows for it."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

DEFAULT_MODEL = "deepseek-ai/deepseek-math-7b-instruct"
DEFAULT_DATASET = "open-r1/OpenR1-Math-220k"
DEMO = "demo"


class Section(BaseModel):
    """A group of settings. Unknown keys are errors; values do not change after the run has started."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class ModelConfig(Section):
    """Where the base model comes from and the form in which it is kept."""

    model: str = Field(DEFAULT_MODEL, description="Hugging Face repository or local folder; 'demo' is the bundled one.")
    revision: str | None = Field(None, description="Branch, tag or commit of the model repository.")
    mlx_path: str = Field("mlx_model", description="Folder for the converted model.")
    quantize: Literal[4, 8] | None = Field(None, description="Bits a weight of the linear layers (unset: none).")
    group_size: Literal[32, 64, 128] = Field(64, description="Weights that share one quantization scale.")
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        "auto", description="Type of the stored weights; 'auto' keeps the source's."
    )
    overwrite: bool = Field(False, description="Replace results that were made from something else.")
    trust_remote_code: bool = Field(False, description="Let the tokenizer run code from its repository.")


class DataConfig(Section):
    """Which rows are trained on and how they become tokens."""

    dataset: str = Field(
        DEFAULT_DATASET,
        description="Hugging Face dataset, or a local .jsonl, .json or .parquet file; 'demo' is the bundled one.",
    )
    dataset_config: str | None = Field(None, description="Configuration (subset) of the dataset.")
    dataset_revision: str | None = Field(None, description="Branch, tag or commit of the dataset.")
    split: str | None = Field(None, description="Split of the dataset (unset: train).")
    question_column: str | None = Field(None, description="Column with the problem (unset: found by its usual names).")
    solution_column: str | None = Field(None, description="Column with the solution (unset: found likewise).")
    template: str = Field("tutor", description="How a problem and its solution become text.")
    max_seq_len: Annotated[int, Field(ge=8)] = Field(1024, description="Longest sequence, in tokens.")
    overflow: Literal["chunk", "truncate", "drop"] = Field(
        "chunk", description="What becomes of longer rows: split into chunks, cut, or left out."
    )
    train_on_prompt: bool = Field(False, description="Train on the problem's tokens too, not only the solution's.")
    num_examples: Annotated[int, Field(ge=1)] | None = Field(None, description="Use only the first N rows.")
    cache_dir: str = Field("cache", description="Folder for the tokenized dataset.")


class LoraConfig(Section):
    """The adapter: y = W x + (alpha / rank) B A x."""

    rank: Annotated[int, Field(ge=1)] = Field(8, description="Rank of the adapters.")
    alpha: Annotated[float, Field(gt=0)] = Field(16.0, description="Numerator of the adapter's scale, alpha / rank.")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="Dropout on the adapter's input.")
    targets: tuple[str, ...] = Field(
        ("q_proj", "v_proj"), description="Layers that get an adapter: names or globs, several separated by commas."
    )
    num_layers: Annotated[int, Field(ge=-1)] = Field(-1, description="Adapt only the last N blocks (-1: all).")

    @field_validator("targets", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("targets")
    @classmethod
    def _some(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("name at least one layer, for example q_proj,v_proj")
        return value

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return self.alpha / self.rank


class TrainingConfig(Section):
    """The loop: how much, how fast, for how long."""

    adapter_path: str = Field("adapters", description="Folder for the adapters, checkpoints and curves.")
    learning_rate: Annotated[float, Field(gt=0)] = Field(1e-5, description="Peak learning rate.")
    batch_size: Annotated[int, Field(ge=1)] = Field(1, description="Sequences in a micro-batch.")
    grad_accumulation_steps: Annotated[int, Field(ge=1)] = Field(8, description="Micro-batches an optimizer step.")
    num_epochs: Annotated[int, Field(ge=1)] = Field(1, description="Passes over the data.")
    max_steps: Annotated[int, Field(ge=1)] | None = Field(None, description="Stop after N optimizer steps in all.")
    max_training_time_hours: Annotated[float, Field(gt=0)] = Field(
        16.0, description="Stop, saved, within this many hours of training; a resumed run gets them anew."
    )
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="Learning rate after the warm-up: held, or decayed to zero over the planned steps."
    )
    warmup_steps: Annotated[int, Field(ge=0)] = Field(0, description="Steps over which the learning rate rises from 0.")
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.0, description="AdamW's decoupled weight decay.")
    max_grad_norm: Annotated[float, Field(gt=0)] = Field(1.0, description="Gradients are clipped to this global norm.")
    save_every: Annotated[int, Field(ge=1)] = Field(100, description="Optimizer steps between checkpoints.")
    resume: bool = Field(False, description="Continue from the newest checkpoint in the adapter folder.")
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(0, description="Seed of the order, the adapters and dropout.")


class RuntimeConfig(Section):
    """The device."""

    backend: Literal["auto", "metal", "cuda", "cpu"] = Field("auto", description="Device to compute on.")
    memory_limit_gb: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Most device memory MLX may hold, in GB (unset: the device's recommendation)."
    )


class RunConfig(Section):
    """All sections of one run."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    lora: LoraConfig = LoraConfig()
    training: TrainingConfig = TrainingConfig()
    runtime: RuntimeConfig = RuntimeConfig()
