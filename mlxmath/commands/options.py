"""Options shared by the commands. Each is made from the field of the schema that it sets, so that the two agree."""

import traceback
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click
from pydantic.fields import FieldInfo

from mlxmath.config.answering import DistillationConfig
from mlxmath.config.load import RECIPES, Layer, Resolved, file_layer, option_name, recipe_layer, resolve, set_layer
from mlxmath.config.objectives import DpoConfig, RewardModelConfig
from mlxmath.config.schema import RunConfig
from mlxmath.data.templates import get_template
from mlxmath.errors import InputError, MlxmathError
from mlxmath.runtime.console import fail, say

if TYPE_CHECKING:
    from mlxmath.runtime.ranks import Ranks

F = TypeVar("F", bound=Callable[..., Any])
VERBOSE = "mlxmath.verbose"
CONTEXT = {"max_content_width": 110}

MODEL = ("model.model", "model.revision", "model.mlx_path", "model.quantize", "model.group_size", "model.dtype")
MODEL_WRITE = ("model.overwrite",)
DATA = (
    "data.dataset", "data.dataset_config", "data.dataset_revision", "data.split", "data.question_column",
    "data.solution_column", "data.answer_column", "data.solutions", "data.filters", "data.balance",
    "data.num_examples", "data.mixture_seed", "data.deduplicate", "data.decontaminate", "data.curriculum",
    "data.template", "data.template_file", "data.max_seq_len", "data.overflow", "data.train_on_prompt",
    "data.cache_dir",
)  # fmt: skip
LORA = (
    "lora.variant", "lora.rank", "lora.alpha", "lora.rslora", "lora.plus_ratio", "lora.dropout", "lora.targets",
    "lora.num_layers",
)  # fmt: skip
TRAINING = (
    "training.adapter_path", "training.init_adapter", "training.full", "training.optimizer", "training.learning_rate",
    "training.batch_size", "training.grad_accumulation_steps",
    "training.batching", "training.max_batch_tokens", "training.grad_checkpoint",
    "training.num_epochs", "training.max_steps", "training.max_training_time_hours", "training.schedule",
    "training.warmup_steps", "training.warmup_ratio", "training.min_learning_rate_ratio",
    "training.weight_decay", "training.max_grad_norm", "training.save_every",
    "training.keep_checkpoints", "training.validation_split", "training.validation_dataset", "training.eval_every",
    "training.early_stopping_patience", "training.early_stopping_min_delta", "training.resume", "training.seed",
)  # fmt: skip
GRPO = (
    "grpo.num_generations", "grpo.max_completion_length", "grpo.temperature", "grpo.beta", "grpo.epsilon",
    "grpo.epsilon_high", "grpo.num_iterations", "grpo.loss_type", "grpo.scale_rewards",
    "grpo.importance_sampling_level", "grpo.mask_truncated_completions", "grpo.dynamic_sampling",
    "grpo.concurrency",
)  # fmt: skip
PAIRS = (
    "data.dataset", "data.dataset_config", "data.dataset_revision", "data.split", "data.question_column",
    "data.filters", "data.balance", "data.num_examples", "data.mixture_seed", "data.deduplicate", "data.decontaminate",
    "data.curriculum", "data.template", "data.template_file", "data.max_seq_len", "data.cache_dir",
)  # fmt: skip
"""The part of `DATA` that has a meaning for pairs of a chosen and a rejected completion."""
DPO = tuple(f"dpo.{name}" for name in DpoConfig.model_fields)
REWARD_MODEL = tuple(f"reward_model.{name}" for name in RewardModelConfig.model_fields)
EVALUATION = (
    "evaluation.benchmark", "evaluation.limit", "evaluation.template_for", "evaluation.shots", "evaluation.samples",
    "evaluation.temperature", "evaluation.top_p", "evaluation.max_tokens", "evaluation.retrieve",
    "evaluation.retrieve_count", "evaluation.vote", "evaluation.weights", "evaluation.concurrency",
    "evaluation.results_path", "evaluation.run_name",
)  # fmt: skip
PROBLEMS = (
    "data.dataset", "data.dataset_config", "data.dataset_revision", "data.split", "data.question_column",
    "data.solution_column", "data.answer_column", "data.filters", "data.balance", "data.num_examples",
    "data.mixture_seed", "data.deduplicate", "data.decontaminate",
)  # fmt: skip
"""The part of `DATA` that decides which problems there are."""
PROMPTS = tuple(
    name for name in DATA
    if name not in ("data.solutions", "data.overflow", "data.train_on_prompt", "data.cache_dir", "data.curriculum")
)  # fmt: skip
"""The part of `DATA` that has a meaning where completions are drawn and no solution is trained on."""
DISTILLATION = tuple(f"distillation.{name}" for name in DistillationConfig.model_fields)
RUNTIME = ("runtime.backend", "runtime.memory_limit_gb")
SCHEDULING = ("runtime.workers", "runtime.allow_overcommit")

DEBUG = "debug"
"""The recipe that `--debug` stands for."""


def configured(command: F) -> F:
    """Add the options that bring whole sets of settings: `--recipe`, `--config` and `--set`."""
    for option in (
        click.option(
            "--set",
            "set",
            multiple=True,
            metavar="NAME=VALUE",
            help="Any setting by its name in a file, for example lora.rank=16; may be repeated.",
        ),
        click.option("--config", metavar="FILE", help="TOML file of settings; options and --set count more."),
        click.option(
            "--recipe",
            metavar="NAME",
            help=f"Published set-up to start from; a file counts more. One of {', '.join(RECIPES)}.",
        ),
    ):
        command = option(command)
    return command


def shard(command: F) -> F:
    """Add `--shard`: one model over several processes."""
    return click.option(
        "--shard",
        type=click.Choice(["tensor", "pipeline"]),
        help="Spread a model too large for one device over mlx.launch's processes: parts of each layer, or blocks.",
    )(command)


def check_shard(sharding: str | None, num_processes: int) -> None:
    """Refuse `--shard` where there is nothing to spread a model over, or no way to.

    Raises:
        InputError: there is one process, or MLX cannot send what it would have to.
    """
    from mlxmath.runtime.launch import launched

    if sharding == "pipeline" and (launch := launched()) and launch.backend == "nccl":
        raise InputError(
            "--shard pipeline sends the blocks' results from one process to the next, which MLX cannot do on CUDA; use "
            "--shard tensor."
        )
    if sharding and num_processes == 1:
        raise InputError(
            f"--shard {sharding} spreads a model over several processes, and there is one; start them with "
            "`mlx.launch -n 2 -- mlxmath ...` (--hostfile hosts.json for several machines)."
        )


def setting_options(*names: str) -> Callable[[F], F]:
    """Add the option of each "section.field" in `names` to a click command."""

    def decorate(command: F) -> F:
        for name in reversed(names):
            section, field_name = name.split(".")
            section_model: Any = RunConfig.model_fields[section].annotation
            field: FieldInfo = section_model.model_fields[field_name]
            command = _option(name, field)(command)
        return command

    return decorate


def _option(name: str, field: FieldInfo) -> Callable[[F], F]:
    kind = _plain_type(field.annotation)
    default = ",".join(field.default) if isinstance(field.default, tuple) else field.default
    arguments: dict[str, Any] = {"help": field.description, "default": None}
    if kind is bool:
        arguments["is_flag"] = True
    else:
        arguments["type"] = kind
        if default not in (None, ""):
            shown = f"{default:g}" if isinstance(default, float) else default
            arguments["help"] += f"  [default: {shown}]"
    return click.option(option_name(name), name.replace(".", "__"), **arguments)


def _plain_type(annotation: Any) -> Any:
    """The click type of a field: limits are the schema's business, choices are click's."""
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return _plain_type(next(a for a in typing.get_args(annotation) if a is not type(None)))
    if origin is typing.Annotated:
        return _plain_type(typing.get_args(annotation)[0])
    if origin is Literal:
        choices = typing.get_args(annotation)
        return click.Choice(choices) if isinstance(choices[0], str) else click.Choice([*map(str, choices)])
    if origin is tuple:
        return str
    return annotation


def settings(values: dict[str, Any], *, debug: bool = False) -> Resolved:
    """The run's configuration out of a command's parsed options (those made by `configured` and `setting_options`).

    Options count more than `--set`, this more than the file, this more than the recipe, this more than the default.

    Raises:
        InputError: a name or a value is wrong.
    """
    layers: list[Layer] = []
    recipe, config, assignments = (values.get(name) for name in ("recipe", "config", "set"))
    if debug and recipe is not None:
        raise InputError("--debug is a recipe itself; give it or --recipe, not both.")
    if debug:
        layers.append(recipe_layer(DEBUG, "--debug"))
    elif recipe is not None:
        layers.append(recipe_layer(recipe))
    if config is not None:
        layers.append(file_layer(Path(config).expanduser()))
    if assignments:
        layers.append(set_layer(assignments))
    chosen = {name.replace("__", "."): value for name, value in values.items() if "__" in name and value is not None}
    for name in ("model.quantize", "model.group_size"):
        if name in chosen:
            chosen[name] = int(chosen[name])
    resolved = resolve([*layers, Layer("option", chosen)])
    if resolved.config.data.template_file is None:
        get_template(resolved.config.data.template, where=resolved.where("data.template"))
    return resolved


def training_options(data: tuple[str, ...], own: tuple[str, ...] = ()) -> Callable[[F], F]:
    """Add the options of a command that trains: those of its data, its objective, and all that they share."""
    settings = setting_options(*MODEL, *MODEL_WRITE, *data, *LORA, *TRAINING, *own, *RUNTIME, *SCHEDULING)
    return lambda command: configured(settings(command))


class Command(click.Command):
    """A click command whose failures are one line: usage exits with 2, anything else with 1.

    Args:
        shared: several processes can do it together.
    """

    def __init__(self, *args: Any, shared: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._shared = shared
        self.params.append(
            click.Option(
                ["--verbose"],
                is_flag=True,
                expose_value=False,
                help="Show the traceback of an error.",
                callback=lambda ctx, _, value: ctx.meta.update({VERBOSE: value}),
            )
        )

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command and turn its errors into exit codes."""
        from mlxmath.runtime.launch import launched

        verbose = ctx.meta.get(VERBOSE, False)
        try:
            if not self._shared and (launch := launched()):
                raise InputError(
                    f"`mlxmath {self.name}` is the work of one process, and mlx.launch started {launch.size}; start it "
                    "without mlx.launch."
                )
            return super().invoke(ctx)
        except (click.exceptions.Exit, click.ClickException, click.Abort, SystemExit):
            raise
        except MlxmathError as error:
            if verbose:
                traceback.print_exc()
            fail(str(error))
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            say("interrupted")
            ctx.exit(130)
        except Exception as error:
            if verbose:
                traceback.print_exc()
            fail(f"{type(error).__name__}: {error} (this is a defect in mlxmath; --verbose shows where)")
            ctx.exit(1)


def run_with_ranks(run: Callable[[Resolved, "Ranks"], int], resolved: Resolved, sections: tuple[str, ...]) -> None:
    """Show the settings of `sections` and run, together with the other processes if a launcher started several.

    Raises:
        SystemExit: `run` returned another exit code than 0.
    """
    from mlxmath.runtime.ranks import join

    with join() as ranks:
        say("settings:")
        for line in resolved.lines(sections):
            say(line)
        exit_code = run(resolved, ranks)
    if exit_code:
        raise SystemExit(exit_code)


def command(name: str, **kwargs: Any) -> Callable[[Callable[..., Any]], click.Command]:
    """`click.command` with mlxmath's error handling."""
    return click.command(name, cls=Command, context_settings=CONTEXT, **kwargs)
