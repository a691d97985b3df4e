"""What the commands share: options, each made from the field of the schema that it sets, and exit codes for errors."""

import errno
import importlib
import os
import shlex
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from signal import SIGINT
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_origin

import click

from mlxmath.config.load import RECIPES, RUN, Resolved
from mlxmath.config.offered import TRAINS
from mlxmath.config.schema import SETTINGS, ModelConfig, RunConfig, keyword, option_name
from mlxmath.config.section import plain_type
from mlxmath.errors import InputError, MlxmathError, shortened
from mlxmath.parsing import HALF_A_CHARACTER
from mlxmath.runtime.console import fail, harmless, printable, say, shown
from mlxmath.runtime.ending import Terminated, signals_interrupt
from mlxmath.runtime.trouble import trouble

if TYPE_CHECKING:
    from mlxmath.runtime.ranks import Ranks
    from mlxmath.training.events import TrainResult

F = TypeVar("F", bound=Callable[..., Any])
VERBOSE = "mlxmath.verbose"
CONTEXT = {"max_content_width": 110}


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


shard = click.option(
    "--shard",
    type=click.Choice(["tensor", "pipeline"]),
    help="Spread a model too large for one device over mlx.launch's processes: parts of each layer, or blocks.",
)
"""One model over several processes."""


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
    """Add the option of each "section.field" in `names` to a click command; its parameter is called `keyword(name)`."""

    def decorate(command: F) -> F:
        for name in reversed(names):
            field = SETTINGS[name]
            kind, text = plain_type(field.annotation), field.description or ""
            if kind is bool:
                option = click.option(option_name(name), keyword(name), is_flag=True, default=None, help=text)
            else:
                shown = ",".join(field.default) if isinstance(field.default, tuple) else field.default
                if shown not in (None, ""):
                    text += f"  [default: {shown:g}]" if isinstance(shown, float) else f"  [default: {shown}]"
                choices = click.Choice(get_args(kind)) if get_origin(kind) is Literal else None
                as_text = str if get_origin(kind) is tuple else kind
                option = click.option(option_name(name), keyword(name), type=choices or as_text, help=text)
            command = option(command)
        return command

    return decorate


def training_options(name: str) -> Callable[[F], F]:
    """Add the options of a command that trains."""
    settings = setting_options(*TRAINS[name])
    return lambda command: configured(settings(command))


class Command(click.Command):
    """A click command whose failures are one line: usage exits with 2, anything else with 1.

    Args:
        shared: several processes can do it together.
        long: a Mac is not to sleep meanwhile.
    """

    def __init__(self, *args: Any, shared: bool = False, long: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._shared, self._long = shared, long
        self.params.append(
            click.Option(
                ["--verbose"],
                is_flag=True,
                expose_value=False,
                help="Show the traceback of an error.",
                callback=lambda ctx, _, value: ctx.meta.update({VERBOSE: value}),
            )
        )

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Refuse texts that no file can hold (a name in another encoding than UTF-8) and numbers beyond 64 bits."""
        for name, argument in pairwise(["a value", *args]):
            if HALF_A_CHARACTER.search(argument):
                raise click.UsageError(f"{name.split('=')[0]}: expected text in UTF-8; found {argument!a:.200}", ctx)
        try:
            rest = super().parse_args(ctx, args)
        except click.UsageError as error:
            raise click.UsageError(shortened(error.format_message()), error.ctx) from None
        for param in self.params:
            value = ctx.params.get(param.name or "")
            if isinstance(value, int | float) and not abs(value) < 1 << 63:
                raise click.BadParameter("expected a number below 2^63", ctx, param)
        return rest

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command, print what it says, and turn its errors into exit codes."""
        from mlxmath.runtime.launch import launched
        from mlxmath.runtime.mac import kept_awake

        verbose = ctx.meta.get(VERBOSE, False)
        with shown():
            try:
                launch = launched()
                if launch and not self._shared:
                    raise InputError(
                        f"`mlxmath {self.name}` is the work of one process, and mlx.launch started {launch.size}; "
                        "start it without mlx.launch."
                    )
                with (
                    # A rank may be inside a computation with others, which no handler of Python's interrupts.
                    nullcontext() if launch else signals_interrupt(),
                    kept_awake() if self._long and (not launch or launch.first_on_host) else nullcontext(),
                ):
                    return super().invoke(ctx)
            except Terminated as signalled:
                say(f"ended by {signalled.name}")
                raise
            except (click.exceptions.Exit, click.ClickException, click.Abort, SystemExit, BrokenPipeError):
                raise  # with click a reader of the results that goes away ends the command quietly
            except MlxmathError as error:
                if verbose:
                    click.echo(harmless(traceback.format_exc()), err=True)
                fail(str(error))
                ctx.exit(error.exit_code)
            except KeyboardInterrupt:
                say("interrupted")
                ctx.exit(128 + SIGINT)
            except Exception as error:
                if verbose:
                    click.echo(harmless(traceback.format_exc()), err=True)
                fail(_explained(error))
                ctx.exit(1)


def _explained(error: Exception) -> str:
    """What is said of an error that nobody turned into a `MlxmathError`: the system's are for the user to mend."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"cannot write the results: {error.strerror}; free some space, then run the command again."
    if (found := trouble(error)) is not None:
        return f"{found.what} ({error}). {found.remedy}"
    if isinstance(error, OSError):
        name = "a file" if error.filename is None else printable(os.fsdecode(error.filename))
        what = str(error) if error.strerror is None else f"{name}: {error.strerror}"
        return f"{what}; give another file or folder, or make this one usable."
    if isinstance(error, UnicodeError):
        return f"a text is not UTF-8 ({error}); write it anew in UTF-8."
    return f"{type(error).__name__}: {error} (this is a defect in mlxmath; --verbose shows where)"


class Group(Command, click.Group):
    """Commands under one name, and what that does by itself; see `Command`."""


def run_with_ranks(
    module: str, method: str, settings: Resolved, sections: tuple[str, ...], hint: Callable[[RunConfig], str]
) -> None:
    """Show the settings of `sections` and train, together with the other processes if a launcher started several.

    Args:
        module: of `mlxmath.training`; it is imported once all processes have met, since that takes seconds.
        method: the function in it that trains.
        settings: its settings.
        sections: those that it uses.
        hint: what to do with the result, if it is one.

    Raises:
        SystemExit: 1 if the run diverged or found no signal, 128 + its number if a signal ended it.
    """
    from mlxmath.runtime.blas import take_again
    from mlxmath.runtime.launch import launched
    from mlxmath.runtime.ranks import join

    training, launch = settings.config.training, launched()
    if training.resume:
        take_again(Path(training.adapter_path) / RUN, launch.rank if launch else 0)
    with join() as ranks:
        from mlxmath.weights.held import with_held_model

        settings = with_held_model(settings)
        say("settings:")
        for line in settings.lines(sections):
            say(line)
        train: Callable[[Resolved, Ranks], TrainResult] = getattr(importlib.import_module(module), method)
        result = train(settings, ranks)
        if result.exit_code == 0:
            say(hint(settings.config))
    if result.exit_code:
        raise SystemExit(result.exit_code)


def try_it(config: RunConfig) -> str:
    """A command that asks what was trained a question."""
    adapter = shlex.quote(config.training.adapter_path)
    return f'try: python -m mlxmath.infer{at_mlx_path(config)} --adapter-path {adapter} --prompt "What is 12 + 7?"'


def at_mlx_path(config: RunConfig) -> str:
    """The option that finds the run's model, where it is not in the default folder."""
    path = config.model.mlx_path
    return "" if path == ModelConfig().mlx_path else f" --mlx-path {shlex.quote(path)}"


def command(name: str, **kwargs: Any) -> Callable[[Callable[..., Any]], click.Command]:
    """`click.command` with mlxmath's error handling."""
    return click.command(name, cls=Command, context_settings=CONTEXT, **kwargs)
