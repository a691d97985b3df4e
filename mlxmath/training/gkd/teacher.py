"""The teacher that looks over the student's shoulder: a model on this machine."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.nn as nn

from mlxmath.config.gkd import GkdConfig
from mlxmath.config.schema import RunConfig
from mlxmath.data.codec import load_tokenizer
from mlxmath.data.templates import Template
from mlxmath.errors import InputError
from mlxmath.evaluation.contestants import Contestant, choose_contestants
from mlxmath.models.load import load_model
from mlxmath.models.lora.adapter import load_adapter, weights_file
from mlxmath.models.memory import ModelShape
from mlxmath.models.skeleton import skeleton, weight_bytes
from mlxmath.runtime.console import say, warn
from mlxmath.runtime.device import DeviceInfo
from mlxmath.runtime.files import read_json, real
from mlxmath.training.setup import Run
from mlxmath.weights.manifest import read_fingerprint

_SHOWN = 3
"""Tokens that a message names."""


def find_teacher(spec: str | None) -> tuple[Contestant, dict[str, Any]]:
    """MODEL or MODEL:ADAPTER, and what identifies it; no weights are read.

    Raises:
        InputError: none is named.
        MlxmathError: there is no model or adapter in the folder.
    """
    if not (spec or "").partition(":")[0]:
        raise InputError("--teacher: name the model that the student learns from, a folder or MODEL:ADAPTER.")
    (found,) = choose_contestants(Path(), (), (spec or "",), base=False)
    return found, found.identity()


def load_teacher(run: Run, teacher: Contestant, base: nn.Module) -> nn.Module:
    """The teacher's model in evaluation mode, frozen. On the student's base it shares its weights.

    Args:
        run: of the student.
        teacher: its folders.
        base: the student's, without adapters; it becomes the teacher if that is on it.

    Raises:
        MlxmathError: model or adapter are damaged, or do not belong together.
    """
    fingerprint = read_fingerprint(teacher.model)
    shares = shares_base(teacher.model, run.model_folder)
    model = base if shares else load_model(teacher.model, run.device.compute_dtype).model
    if teacher.adapter:
        load_adapter(model, teacher.adapter, fingerprint)
    model.freeze()
    model.eval()
    say(f"teacher: {teacher.label}{', which shares the weights of the base' if shares else ''}")
    return model


def shares_base(teacher: Path, student: Path) -> bool:
    """Whether two model folders are the same one."""
    return real(teacher) == real(student)


def planned_teacher(config: RunConfig, device: DeviceInfo, tokens: int) -> tuple[int, int]:
    """Bytes that a teacher's weights take beside the student's, and that asking it about so many tokens takes.

    Raises:
        InputError: none is named.
        MlxmathError: there is no model or adapter in the folder, or mlx_lm does not know it.
    """
    teacher, _ = find_teacher(config.gkd.teacher)
    weights = weights_file(teacher.adapter).stat().st_size if teacher.adapter else 0
    model_config = read_json(teacher.model / "config.json")
    if not shares_base(teacher.model, Path(config.model.mlx_path)):
        weights += weight_bytes(skeleton(model_config, device.compute_dtype))
    shape, itemsize = ModelShape.from_config(model_config), 4 if device.compute_dtype == "float32" else 2
    return weights, tokens * itemsize * (4 * shape.hidden + 3 * shape.feed_forward)


def check_teacher(teacher: Contestant, tokenizer: Any, template: Template, config: GkdConfig) -> bool:
    """Whether a teacher's token ids mean other tokens; a warning, if it was tuned in another template.

    Args:
        teacher: who scores.
        tokenizer: the student's.
        template: what prompts are written in.
        config: what is compared.

    Raises:
        InputError: they mean other tokens, and what is asked for compares token by token.
    """
    other = load_tokenizer(teacher.model)
    reason = _differ(tokenizer.get_vocab(), other.get_vocab())
    if reason and (config.beta != 1 or config.lmbda != 1):
        raise InputError(
            f"--teacher {teacher.label}: its token ids are not the student's ({reason}), so that only what the student "
            "draws can be compared, in pieces of text and by the reverse KL. Give --beta 1 and --lmbda 1, take a "
            "teacher of the student's family, or let this one write solutions (mlxmath distill, then mlxmath train)."
        )
    if reason:
        say(f"the teacher has other tokens ({reason}): pieces of text are compared, between ends of tokens of both")
    recorded = teacher.recorded_template()
    if recorded is not None and recorded.definition != template.definition:
        warn(
            f"--teacher {teacher.label} was tuned in the template {recorded.name!r}, and reads this run's prompts in "
            f"{template.name!r}; it scores better in its own (--template)"
        )
    return reason is not None


def _differ(own: Mapping[str, int], other: Mapping[str, int]) -> str | None:
    """How two vocabularies disagree; None if each id that both use is the same token, and neither lacks many."""
    tokens = {number: token for token, number in other.items()}
    wrong = [f"{number} is {token!r} and {tokens[number]!r}" for token, number in own.items()
             if tokens.get(number, token) != token]  # fmt: skip
    if wrong:
        more = f" and {len(wrong) - _SHOWN:,} more" if len(wrong) > _SHOWN else ""
        return f"{', '.join(sorted(wrong)[:_SHOWN])}{more}"
    missing = sum(number not in tokens for number in own.values())
    if missing > len(own) // 100:
        return f"it lacks {missing:,} of {len(own):,} tokens"
    return None
