"""Settings of the objectives other than supervised fine-tuning."""

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from mlxmath.config.section import Section


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
    concurrency: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Completions drawn at a time (unset: as many as pay off, in the memory that learning takes)."
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
