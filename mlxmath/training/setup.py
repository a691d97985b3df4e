"""What every method does before its first step: device, folder, data, base, adapters."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol, Self, TypeVar

import mlx.core as mx
import mlx.nn as nn

from mlxmath import __version__
from mlxmath.config.load import TRAINED_FROM, Resolved, section_of
from mlxmath.config.schema import RunConfig
from mlxmath.data.batch import Shape
from mlxmath.data.batching import StepBatch
from mlxmath.data.codec import load_tokenizer
from mlxmath.data.load import look_at_data
from mlxmath.data.render import adds_bos
from mlxmath.data.templates import get_template
from mlxmath.errors import InputError
from mlxmath.evaluation.benchmarks import LoadedBenchmark
from mlxmath.models.kernels import kernels_for
from mlxmath.models.load import check_ids, load_model, refuse_untrainable
from mlxmath.models.lora.adapter import adapter_config, load_initial, weights_file
from mlxmath.models.lora.inject import inject, open_blocks
from mlxmath.models.memory import Batching
from mlxmath.models.offload import HEAD, Offloaded
from mlxmath.models.tuning import lines_of, tune, use
from mlxmath.runtime.console import say, warn
from mlxmath.runtime.device import opened_backend
from mlxmath.runtime.files import read_json, sha256
from mlxmath.runtime.ranks import Ranks
from mlxmath.training import record
from mlxmath.training.absolute import absolute_model
from mlxmath.training.bits import chooser
from mlxmath.training.checkpoint import Part, as_written, share_adapters, share_checkpoint, with_recorded_targets
from mlxmath.training.gradients import Gradients, Loss, choose_gradients
from mlxmath.training.held_out import check_metric
from mlxmath.training.judge import choose_exam, open_exam
from mlxmath.training.offloaded import OffloadedGradients
from mlxmath.training.placing import cannot_offload, settled
from mlxmath.training.plan import batching_of, check_fits
from mlxmath.training.trackers import check_installed
from mlxmath.weights.convert import ensure_model
from mlxmath.weights.held import with_held_model

Method = Literal["train", "dpo", "reward-model", "grpo", "gkd"]
_COMMANDS = {"distillation": "distill", "evaluation": "evaluate", "reward_model": "reward-model", "sft": "train"}
"""That use a section of another name."""
_BATCHING, _TUNING = "batching", "tuning"
_UNCHANGING = {"concurrency", "teacher"}
"""Settings of a method that a resumed run may have others of: what changes nothing but speed and memory; a folder, what
is in which is compared."""


class Data(Protocol):
    """What a run trains and measures on."""

    @property
    def fingerprint(self) -> str:
        """16 hex digits of all of it."""

    @property
    def held_out_fingerprint(self) -> str | None:
        """16 hex digits of what is measured on."""

    @property
    def longest(self) -> int:
        """Tokens of the longest row, held-out ones included."""

    @property
    def largest_id(self) -> int:
        """The largest token id in it."""

    @property
    def facts(self) -> dict[str, Any]:
        """What run.json is to hold of it."""


class Batches(Protocol):
    """Where a run's steps come from."""

    steps_per_epoch: int

    def steps(self, epoch: int, index: int) -> Iterator[StepBatch]:
        """All from number `index` of `epoch` on."""


D = TypeVar("D", bound=Data)


class Run(Part):
    """A run up to its first step, the same on all ranks. Nothing is written but the converted model and the cache.

    Inside `with` the device is open, and the adapter folder is nobody else's.

    Args:
        method: what trains it.
        settings: its settings, with where each came from.
        ranks: the processes of the run.
        keep_start: the model at the start is needed later on too, so that it must be there again on a resume.

    Raises:
        InputError: a setting is wrong, or has no use here; the adapter folder holds another run, or is in use.
    """

    closing: ExitStack
    """What ends with the run."""
    model: nn.Module
    """The base, then with adapters."""
    adapter_config: dict[str, Any]
    injected: Any
    planned_bytes: int | None
    """None for a model that cannot be built without its weights."""
    exam: LoadedBenchmark | None = None
    """What is asked when the run has ended."""

    def __init__(self, method: Method, settings: Resolved, ranks: Ranks, *, keep_start: bool = False) -> None:
        settings = with_held_model(settings)
        self.method, self.settings, self.ranks, self.keep_start = method, settings, ranks, keep_start
        self._section = section_of(method)
        self.sections = (*TRAINED_FROM, self._section)
        for other in settings.others(self.sections):
            names = [name for name, origin in settings.origin.items() if origin != "default"]
            where = next(settings.where(name) for name in names if name.startswith(f"{other}."))
            raise InputError(
                f"{where}: the settings of [{other}] have no use in this run, which would ignore them. Leave them out, "
                f"or use `mlxmath {_COMMANDS.get(other, other)}`."
            )
        config = settings.config
        record.check_initial_adapter(config.training)
        check_metric(config, method)
        if ranks.first:
            check_installed(config.training.report_to)
        reason = cannot_offload(config, method)
        if config.runtime.offload == "on" and reason:
            raise InputError(f"{settings.where('runtime.offload')}: {reason}.")
        self.folder, self.model_folder = Path(config.training.adapter_path), Path(config.model.mlx_path)
        self.template = get_template(config.data.template, config.data.template_file)

    def __enter__(self) -> Self:
        config, ranks = self.settings.config, self.ranks
        with ExitStack() as opened:
            device = opened_backend(config.runtime, config.training.seed, ranks.num_on_host)
            self.backend, self.device = opened.enter_context(device)
            found = opened.enter_context(record.claimed(config, self.method)) if ranks.first else None
            self.checkpoint = share_checkpoint(found, ranks)
            self.blas = record.blas_of_ranks(self.checkpoint, self.device, ranks)
            self.settings = with_recorded_targets(self.settings, self.checkpoint)
            self.config: RunConfig = self.settings.config
            self.closing = opened.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self.closing.close()

    def read(self, load: Callable[[RunConfig, Path], D], fixed: Mapping[str, Any] | None = None) -> D:
        """Convert the model if need be, and load the data, given the settings and the model folder.

        Args:
            load: reads the data.
            fixed: what else a resumed run must share with the run that it continues, by name.

        Raises:
            MlxmathError: the model or the data cannot be had, or are not the same on all ranks.
        """
        config = self.config
        with self.ranks.in_turn("preparing"):
            look, exam = partial(look_at_data, config, self.method), open_exam(config, self.method)
            self.manifest = ensure_model(config.model, choose=chooser(config, self.device, load), before=look)
            self.model_config: dict[str, Any] = read_json(self.model_folder / "config.json")
            refuse_untrainable(self.model_config)
            data = load(config, self.model_folder)
            self.exam = exam and choose_exam(exam, config, self.method)
        self.fixed = record.fixed_settings(config, self.manifest.identity, data.fingerprint, data.held_out_fingerprint)
        own = getattr(config, self._section).model_dump(mode="json", exclude=_UNCHANGING)
        self.fixed |= {f"{self._section}.{name}": value for name, value in own.items()}
        self.fixed |= fixed or {}
        record.agree(self.ranks, config, self.device, self.fixed)
        self.data: Data = data
        return data

    def load_base(self) -> None:
        """Load the model, if training it fits into the memory.

        Raises:
            InputError: it does not fit; what would is said.
            MlxmathError: the model is damaged, or does not know a token of the data.
        """
        data = self.data
        self.shape = Shape(self.backend.bucket_multiple, few=self.backend.compiles)
        longest = self.shape.width(data.longest)
        self.config = config = settled(self.config, self.model_config, self.device, longest, self.method)
        self.batching = self._batching_before() or batching_of(config, self.model_config, self.device, longest)
        self.planned_bytes = check_fits(
            config, self.model_folder, self.model_config, self.device, longest, self.method, self.batching
        )
        self.offloaded: Offloaded | None = None
        if config.runtime.offload == "on":
            self.offloaded = Offloaded(self.model_folder, self.device.compute_dtype)
            self.closing.callback(self.offloaded.close)
            self.model = self.offloaded.model
            say("the base's blocks stay on the disk, and are read twice a step (--offload)")
        else:
            self.model = load_model(self.model_folder, self.device.compute_dtype).model
        check_ids(self.model, data.largest_id, "the tokenized dataset")
        for tokens, reason in self.manifest.limits:
            if tokens < data.longest:
                found = f"the longest text has {data.longest:,} tokens"
                warn(f"{reason}; {found}: beyond {tokens:,}, what is trained is not the original model.")
        self.batchings: list[list[int]] = self.ranks.gather(
            "batching", [self.batching.num_workers, self.batching.tokens]
        )
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
        with as_written(self.checkpoint):
            if not saved or saved["asked"] != self._asked or len(saved["ranks"]) != self.ranks.size:
                return None
            return Batching(*map(int, saved["ranks"][self.ranks.rank]))

    def state(self) -> dict[str, Any]:
        """See `Part`; `load_base` and `add_adapters` restore it."""
        batching = {"asked": self._asked, "ranks": self.batchings}
        return {_BATCHING: batching, _TUNING: self.tuning, record.BLAS: self.blas}

    @property
    def chat_template(self) -> str:
        """How the model is prompted, in Jinja, for chat servers."""
        tokenizer = load_tokenizer(self.model_folder, self.config.model.trust_remote_code)
        return self.template.for_tokenizer(tokenizer).chat_template(bos=adds_bos(tokenizer))

    def add_adapters(self, **facts: Any) -> None:
        """Put adapters into the model, or open its blocks, and load what they start from.

        Args:
            **facts: what adapter_config.json is to hold besides.

        Raises:
            InputError: a target matches nothing, or the initial adapter has another form.
            MlxmathError: the initial adapter is damaged.
        """
        config, training, model, ranks = self.config, self.config.training, self.model, self.ranks
        mx.random.seed(training.seed)  # converting and loading a model draw random numbers
        self.injected = open_blocks(model, config.lora.num_layers) if training.full else inject(model, config.lora)
        for line in (*self.injected.notes, str(self.injected)):
            say(line)
        self.adapter_config = adapter_config(
            config.lora, self.injected.keys, full=training.full, base_model=absolute_model(config.model.model),
            base_fingerprint=self.manifest.identity, template=self.template.name,
            template_definition=self.template.definition, mlxmath_version=__version__,
            **({"tools": config.data.tools} if config.data.tools else {}), **facts,
        )  # fmt: skip
        initial = Path(training.init_adapter) if training.init_adapter and ranks.first else None
        if initial and (self.keep_start or not self.checkpoint):
            load_initial(model, initial, self.adapter_config)
            say(f"starting from the adapter in {initial}")
        if self.keep_start:
            self.fixed["initial adapter"] = sha256(weights_file(initial)) if initial else None
            share_adapters(model, ranks)
        self._tune()

    def _tune(self) -> None:
        """Choose by measurement, or as the run did that is resumed; all ranks as rank 0."""
        saved = self.checkpoint.state.get(_TUNING) if self.checkpoint else None
        measured: AbstractContextManager[None] = nullcontext()
        if self.offloaded and self.device.backend != "cpu":
            self.offloaded.attach(self.model)
            measured = self.offloaded.at_hand([len(self.model.layers) - 1, HEAD])
        with measured:
            own = tune(self.model, self.device, self.batching.tokens) if saved is None else saved
        self.tuning: dict[str, Any] = self.ranks.gather("tuning", own)[0]
        with as_written(self.checkpoint):
            for line in lines_of(self.tuning):
                say(line)
            use(self.model, self.tuning)
        self.kernels = kernels_for(self.device, self.batching.num_workers, self.tuning)

    def gradients(self, loss: Loss, measured: Loss | None = None) -> Callable[[nn.Module], Gradients]:
        """Makes the gradients of a loss for a replica of the model, in the way that is best for the device.

        `measured` is what is asked of it without gradients (None: the loss).
        """
        if offloaded := self.offloaded:
            return lambda model: OffloadedGradients(model, loss, self.kernels, offloaded, measured)
        return lambda model: choose_gradients(
            model, loss, self.kernels, compiled=self.backend.compiles,
            checkpoint_every=self.config.training.grad_checkpoint, measured=measured,
        )  # fmt: skip
