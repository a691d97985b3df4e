"""Settings of on-policy distillation."""

from typing import Annotated

from pydantic import Field

from mlxmath.config.section import Section, require

_of_a_dataset = require(
    lambda value, others: value is None or others.get("lmbda") == 0,
    "needs --lmbda 0: what the student draws is new each time",
)


class GkdConfig(Section):
    """Generalized knowledge distillation, named as TRL names it: the student draws, the teacher scores every token."""

    teacher: str | None = Field(None, description="Teacher: MLX model folder, or MODEL:ADAPTER.")
    beta: Annotated[float, Field(ge=0, le=1)] = Field(
        1.0,
        description="Divergence of each token: 1 is the reverse KL, KL(student || teacher); 0 the forward KL; between "
        "them the generalized Jensen-Shannon divergence.",
    )
    lmbda: Annotated[float, Field(ge=0, le=1)] = Field(
        1.0, description="Share of problems whose solution the student draws; of the others it is the dataset's own."
    )
    teacher_top_k: Annotated[int, Field(ge=1), _of_a_dataset] | None = Field(
        None,
        description="With --lmbda 0: keep the teacher's K most likely tokens and the rest's mass in the cache, so that "
        "each solution is scored once (unset: each time, over the whole vocabulary).",
    )
    temperature: Annotated[float, Field(gt=0)] = Field(
        1.0, description="Temperature that completions are drawn at, and that both models' logits are divided by."
    )
    max_completion_length: Annotated[int, Field(ge=1)] = Field(512, description="Longest completion, in tokens.")
    num_generations: Annotated[int, Field(ge=1)] = Field(1, description="Completions drawn of a problem.")
    concurrency: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Completions drawn at a time (unset: as many as pay off, in the memory that learning takes)."
    )
