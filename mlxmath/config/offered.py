"""Which settings are options of which commands."""

from collections.abc import Mapping

from mlxmath.config.schema import SECTIONS


def _of(section: str, *but: str) -> tuple[str, ...]:
    """The settings of a section, but for some."""
    return tuple(f"{section}.{name}" for name in SECTIONS[section].model_fields if name not in but)


MODEL = _of("model", "overwrite", "trust_remote_code")
MODEL_WRITE = ("model.overwrite",)
DATA = _of("data", "sources")
PAIRS = _of("data", "sources", "solution_column", "answer_column", "solutions", "overflow", "train_on_prompt")
"""The part of `DATA` that has a meaning for pairs of a chosen and a rejected completion."""
PROMPTS = _of("data", "sources", "solutions", "overflow", "train_on_prompt", "cache_dir", "curriculum")
"""The part of `DATA` that has a meaning where completions are drawn and no solution is trained on."""
PROBLEMS = tuple(name for name in PROMPTS if name not in ("data.template", "data.template_file", "data.max_seq_len"))
"""The part of `DATA` that decides which problems there are."""
LORA, TRAINING, EVALUATION, DISTILLATION, AUGMENTATION, EXPORT = map(
    _of, ("lora", "training", "evaluation", "distillation", "augmentation", "export")
)
TEACHER = tuple(f"distillation.teacher{part}" for part in ("", "_url", "_model", "_key_env", "_extra"))
RUNTIME = ("runtime.backend", "runtime.memory_limit_gb")
SCHEDULING = ("runtime.workers", "runtime.offload", "runtime.allow_overcommit")


def _trains(data: tuple[str, ...], own: tuple[str, ...]) -> tuple[str, ...]:
    """The options of a command that trains: those of its data, its objective, and all that they share."""
    return (*MODEL, *MODEL_WRITE, *data, *LORA, *TRAINING, *own, *RUNTIME, *SCHEDULING)


TRAINS: Mapping[str, tuple[str, ...]] = {
    "train": _trains(DATA, _of("sft")),
    "dpo": _trains(PAIRS, _of("dpo")),
    "reward-model": _trains(PAIRS, _of("reward_model")),
    "grpo": _trains(PROMPTS, _of("grpo", "reward_weights")),
    "gkd": _trains(tuple(name for name in PROMPTS if name != "data.tools"), _of("gkd")),
}
"""The settings that the commands that train have as options, in the order of their help."""
