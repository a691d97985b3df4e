"""The settings of what is learned from rows: of fine-tuning, of preferences, of a reward model."""

from typing import Annotated, Literal

from pydantic import Field

from mlxmath.config.section import Section, require

_with_smoothing = require(
    lambda value, others: not value or others.get("loss_type") in ("sigmoid", "simpo", "cpo"),
    "needs --loss-type sigmoid, simpo or cpo",
)
_kto_only = require(lambda value, others: value == 1 or others.get("loss_type") == "kto", "needs --loss-type kto")
_with_nll = require(
    lambda value, others: value is None or others.get("loss_type") in ("cpo", "simpo"), "needs --loss-type cpo or simpo"
)


class SftConfig(Section):
    """Fine-tuning on texts, named as transformers and torch name it."""

    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0,
        description="Probability that is spread over all tokens in place of the right one; not in what is held out.",
    )
    neftune_noise_alpha: Annotated[float, Field(ge=0)] = Field(
        0.0, description="NEFTune: strength of the noise on embeddings while training; 5 is usual (0: none)."
    )


class DpoConfig(Section):
    """Preference tuning, named as TRL names it."""

    loss_type: Literal["sigmoid", "ipo", "orpo", "simpo", "cpo", "kto"] = Field(
        "sigmoid",
        description="The loss: sigmoid is DPO's own; ipo; kto, which takes single completions with a label too; orpo, "
        "simpo and cpo need no reference model.",
    )
    beta: Annotated[float, Field(gt=0)] = Field(
        0.1,
        description="How strongly the reference holds (ipo: its tau; orpo: weight of the odds ratio; simpo, cpo: "
        "factor of the margin).",
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5), _with_smoothing] = Field(
        0.0, description="Share of pairs taken to be labelled the wrong way round (sigmoid, simpo, cpo)."
    )
    simpo_gamma: Annotated[float, Field(ge=0)] = Field(
        0.5,
        description="simpo: margin by which beta times the chosen completion's mean log-probability is to be ahead.",
    )
    cpo_alpha: Annotated[Annotated[float, Field(ge=0)] | None, _with_nll] = Field(
        None, description="Weight of the chosen completion's loss a token (unset: 1 with cpo, 0 with simpo)."
    )
    desirable_weight: Annotated[float, Field(gt=0), _kto_only] = Field(
        1.0, description="kto: weight of desirable completions, for data with fewer or more of them."
    )
    undesirable_weight: Annotated[float, Field(gt=0), _kto_only] = Field(
        1.0, description="kto: weight of undesirable completions."
    )

    @property
    def needs_reference(self) -> bool:
        """Whether the loss compares with the model at the start."""
        return self.loss_type in ("sigmoid", "ipo", "kto")

    @property
    def nll_weight(self) -> float:
        """`cpo_alpha`, or what it is where nothing is said."""
        return float(self.loss_type == "cpo") if self.cpo_alpha is None else self.cpo_alpha


class RewardModelConfig(Section):
    """Training of a reward model, named as TRL names it."""

    center_rewards_coefficient: Annotated[float, Field(ge=0)] = Field(
        0.0, description="Weight of what keeps the scores of a pair around 0; 0.01 is usual (0: nothing does)."
    )
