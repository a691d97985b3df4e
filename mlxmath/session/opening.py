"""The first half of a run: device, folder, data, base, adapters. Nothing is trained or written yet."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import mlx.core as mx
import mlx.nn as nn

from mlxmath import __version__
from mlxmath.commands.plan import Objective, batching_of, check_fits
from mlxmath.config.load import TRAINED_FROM, Resolved
from mlxmath.config.schema import RunConfig
from mlxmath.data.batching import Shape
from mlxmath.data.templates import get_template
from mlxmath.errors import InputError
from mlxmath.models.kernels.base import Kernels
from mlxmath.models.kernels.select import kernels_for
from mlxmath.models.load import load_model
from mlxmath.models.lora.adapter import WEIGHTS, adapter_config, load_initial
from mlxmath.models.lora.inject import Injected, inject, open_blocks
from mlxmath.models.memory import Batching
from mlxmath.models.tuning import tune_for_training
from mlxmath.models.unsupported import refuse_untrainable
from mlxmath.models.vocabulary import check_ids
from mlxmath.objectives import base
from mlxmath.runtime.console import say, warn
from mlxmath.runtime.files import read_json, sha256
from mlxmath.runtime.ranks import Ranks
from mlxmath.runtime.select import open_backend
from mlxmath.session.material import Material
from mlxmath.session.paths import absolute_model
from mlxmath.training import run
from mlxmath.training.checkpoint import Checkpoint, share_adapters, share_checkpoint, with_recorded_targets
from mlxmath.training.gradients import Gradients, choose_gradients
from mlxmath.weights.convert import ensure_model

_COMMANDS = {"distillation": "distill", "evaluation": "evaluate", "reward_model": "reward-model"}
"""That use a section of another name."""
M = TypeVar("M", bound=Material)

_BATCHING = "batching"
UNCHANGING = {"concurrency"}
"""Settings of an objective that change nothing but speed and memory: a resumed run may have others."""


class Session(Generic[M]):
    """A run up to its base model, the same on all ranks.

    Args:
        resolved: its settings.
        ranks: the processes of the run.
        read: reads its data, given the settings and the model folder.
        section: the section of its objective, if that has one.
        fixed: what else a resumed run must share with the run that it continues, by name.
        keep_start: the model at the start is needed later on too, so that it must be there again on a resume.

    Raises:
        InputError: a setting is wrong.
        MlxmathError: the model or the data cannot be had, or do not fit into the memory.
    """

    def __init__(
        self,
        resolved: Resolved,
        ranks: Ranks,
        read: Callable[[RunConfig, Path], M],
        section: str | None = None,
        fixed: Mapping[str, Any] | None = None,
        *,
        keep_start: bool = False,
    ) -> None:
        self.ranks, self.keep_start = ranks, keep_start
        self.sections = (*TRAINED_FROM, section) if section else TRAINED_FROM
        for other in resolved.others(self.sections):
            raise InputError(
                f"the settings of [{other}] have no use in this run, which would ignore them. Leave them out, or use "
                f"`mlxmath {_COMMANDS.get(other, other)}`; `mlxmath train --dry-run` shows where they are set."
            )
        config = resolved.config
        self.backend, self.device = open_backend(config.runtime, config.training.seed, ranks.num_on_host)
        self.folder, model_folder = Path(config.training.adapter_path), Path(config.model.mlx_path)
        self.template = get_template(config.data.template, config.data.template_file)
        self.checkpoint = share_checkpoint(run.claim(config) if ranks.first else None, ranks)
        self.resolved = with_recorded_targets(resolved, self.checkpoint)
        self.config = config = self.resolved.config
        with ranks.in_turn("preparing"):
            self.manifest = ensure_model(config.model)
            self.model_config = read_json(model_folder / "config.json")
            refuse_untrainable(self.model_config)
            self.material = read(config, model_folder)
        self.fixed = run.fixed_settings(
            config, self.manifest.identity, self.material.fingerprint, self.material.held_out_fingerprint
        )
        if section:
            own = getattr(config, section).model_dump(mode="json", exclude=UNCHANGING)
            self.fixed |= {f"{section}.{name}": value for name, value in own.items()}
        self.fixed |= fixed or {}
        run.agree(ranks, config, self.device, self.fixed)

        self.shape = Shape(self.backend.bucket_multiple, target_steps=16 if self.backend.supports("compile") else 0)
        longest = self.shape.width(self.material.longest)
        self.batching = self._batching_before() or batching_of(config, self.model_config, self.device, longest)
        objective = cast(Objective, (section or "train").replace("_", "-"))
        self.planned_bytes = check_fits(
            config, model_folder, self.model_config, self.device, longest, objective, self.batching
        )
        """None for a model that cannot be built without its weights."""
        self.model: nn.Module = load_model(model_folder, self.device.compute_dtype).model
        check_ids(self.model, self.material.largest_id, "the tokenized dataset")
        for tokens, reason in self.manifest.limits:
            if tokens < self.material.longest:
                found = f"the longest text has {self.material.longest:,} tokens"
                warn(f"{reason}; {found}: beyond {tokens:,}, what is trained is not the original model.")
        self.kernels: Kernels = kernels_for(self.device, self.batching.num_workers)
        self.batchings: list[list[int]] = ranks.gather("batching", [self.batching.num_workers, self.batching.tokens])
        """Of each rank. What it is chosen by is measured, so a resumed run has it from its checkpoint."""
        self.max_tokens = min(tokens for _, tokens in self.batchings)
        """Padded tokens in a micro-batch, on every rank the same."""

    @property
    def _asked(self) -> list[int | None]:
        """What of the batching people decide."""
        return [self.config.training.max_batch_tokens, self.config.runtime.workers]

    def _batching_before(self) -> Batching | None:
        """How the run that is resumed was batched; None if it is none, or is to be batched in another way."""
        saved = self.checkpoint.state.get(_BATCHING) if self.checkpoint else None
        if not saved or saved["asked"] != self._asked or len(saved["ranks"]) != self.ranks.size:
            return None
        return Batching(*saved["ranks"][self.ranks.rank])

    def state(self) -> dict[str, Any]:
        """See `mlxmath.training.checkpoint.Stateful`."""
        return {_BATCHING: {"asked": self._asked, "ranks": self.batchings}}

    def files(self) -> dict[str, Path | bytes]:
        """None."""
        return {}

    def restore(self, checkpoint: Checkpoint) -> None:
        """Done when it was opened."""

    def gradients(self, objective: base.Objective) -> Callable[[nn.Module], Gradients]:
        """Makes the loss and gradients of a replica of the model, in the way that is best for the device."""
        return lambda model: choose_gradients(
            model, objective, self.kernels, compiled=self.backend.supports("compile"),
            checkpoint_every=self.config.training.grad_checkpoint,
        )  # fmt: skip


@dataclass(frozen=True)
class Adapters:
    """What trains of a model."""

    injected: Injected
    config: dict[str, Any]
    """adapter_config.json."""
    fixed: dict[str, Any]
    """What a resumed run must share, by name."""


def add_adapters(session: Session[Any], **facts: Any) -> Adapters:
    """Put adapters into the session's model, or open its blocks, and load what they start from.

    Args:
        session: its model is still the base.
        **facts: what adapter_config.json is to hold besides.

    Raises:
        InputError: a target matches nothing, or the initial adapter has another form.
        MlxmathError: the initial adapter is damaged.
    """
    config, training, model, ranks = session.config, session.config.training, session.model, session.ranks
    mx.random.seed(training.seed)  # converting and loading a model draw random numbers
    injected = open_blocks(model, config.lora.num_layers) if training.full else inject(model, config.lora)
    for line in (*injected.notes, str(injected)):
        say(line)
    adapter = adapter_config(
        config.lora, injected.keys, full=training.full, base_model=absolute_model(config.model.model),
        base_fingerprint=session.manifest.identity, template=session.template.name,
        template_definition=session.template.definition, mlxmath_version=__version__, **facts,
    )  # fmt: skip
    initial = Path(training.init_adapter) if training.init_adapter and ranks.first else None
    if initial and (session.keep_start or not session.checkpoint):
        load_initial(model, initial, adapter)
        say(f"starting from the adapter in {initial}")
    fixed = {}
    if session.keep_start:
        fixed["initial adapter"] = sha256(initial / WEIGHTS) if initial else None
        share_adapters(model, ranks)
    tune_for_training(model, session.batching.tokens)
    return Adapters(injected, adapter, fixed)
