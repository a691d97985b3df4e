"""What methods that draw completions take of the memory before they learn from them; see `mlxmath.training.plan`."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlxmath.config.gkd import GkdConfig
    from mlxmath.config.methods import GrpoConfig
    from mlxmath.config.schema import RunConfig
    from mlxmath.models.memory import Batching, MemoryPlan
    from mlxmath.runtime.device import DeviceInfo


def drawn_by(config: "RunConfig", method: str) -> "GrpoConfig | GkdConfig | None":
    """The settings by which a method draws; None of one that does not."""
    if method == "grpo":
        return config.grpo
    return config.gkd if method == "gkd" else None


def with_drawing(
    plan: "MemoryPlan", config: "RunConfig", drawn: "GrpoConfig | GkdConfig", model_config: Mapping[str, Any],
    device: "DeviceInfo", prompt: int, batching: "Batching",
) -> "MemoryPlan":  # fmt: skip
    """The plan with what drawing takes, and a teacher's weights and what asking it takes.

    Args:
        plan: of learning.
        config: of the run.
        drawn: of its method.
        model_config: the student's config.json.
        device: where it runs.
        prompt: tokens of the longest prompt.
        batching: micro-batches, in which the teacher is asked.
    """
    from mlxmath.config.gkd import GkdConfig
    from mlxmath.generation.slots import choose_slots
    from mlxmath.models.memory import ModelShape, slot_bytes

    own, size, training = drawn.max_completion_length, drawn.num_generations, config.training
    asking = 0
    if isinstance(drawn, GkdConfig):
        from mlxmath.training.gkd.teacher import planned_teacher

        weights, asking = planned_teacher(config, device, batching.num_workers * max(batching.tokens, prompt + own))
        plan = replace(plan, reference=weights)
    slots, _ = choose_slots(
        model_config, device, held_bytes=plan.steady, longest=prompt + own, prompt=prompt, group_size=size,
        needed_bytes=plan.total, asked=drawn.concurrency,
    )  # fmt: skip
    itemsize = 4 if device.compute_dtype == "float32" else 2
    each = slot_bytes(ModelShape.from_config(model_config), itemsize, prompt=prompt, own=own, group_size=size)
    at_once = min(slots, training.batch_size * training.grad_accumulation_steps)
    return replace(plan, drawing=max(at_once * each, asking))
