"""The settings as the page of a new run shows them: which come first, and what counts where one is left empty."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args, get_origin

from mlxmath.config.load import RECIPES, TEMPLATES, recipe_layer, section_of
from mlxmath.config.schema import SETTINGS, keyword, option_name
from mlxmath.config.section import plain_type, texts
from mlxmath.studio.form import COMMANDS, NO, OVERWRITE, REWARDS, YES, Checked

_WITH_MODEL = ("model.model", "model.mlx_path", "model.quantize", "model.dtype")
_WITH_DATA = (
    "data.dataset", "data.question_column", "data.solution_column", "data.answer_column", "data.split",
    "data.num_examples", "data.filters", "data.template", "data.max_seq_len",
)  # fmt: skip
_FIRST = (
    "training.adapter_path", "training.learning_rate", "training.num_epochs", "training.max_steps",
    "training.max_training_time_hours", "training.batch_size", "training.grad_accumulation_steps", "lora.rank",
    "lora.alpha", "lora.targets", "training.validation_split", "training.judge",
)  # fmt: skip
_FIRST_OF: Mapping[str, tuple[str, ...]] = {
    "train": (), "dpo": ("dpo.loss_type", "dpo.beta"), "reward-model": (),
    "grpo": (REWARDS, "grpo.num_generations", "grpo.max_completion_length", "grpo.temperature", "grpo.beta"),
    "gkd": ("gkd.teacher", "gkd.lmbda", "gkd.beta", "gkd.max_completion_length"),
}  # fmt: skip
_GROUPS: Mapping[str, str] = {
    "model": "More about the model", "data": "More about the data", "lora": "More about the adapter",
    "training": "More about training", "runtime": "The machine",
}  # fmt: skip


@dataclass(frozen=True)
class Field:
    """A setting on the page."""

    name: str
    help: str
    kind: str
    """text, number, choice or switch."""
    value: str
    """As it was filled in."""
    otherwise: str
    """What counts where it is left empty."""
    origin: str
    """Where that is from; "" for the default."""
    choices: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Its name in the form."""
        return keyword(self.name)

    @property
    def label(self) -> str:
        """For people."""
        return self.key.replace("_", " ")

    @property
    def option(self) -> str:
        """On the command line."""
        return option_name(self.name)


def field_of(checked: Checked, name: str) -> Field:
    """A setting as the page shows it."""
    setting = SETTINGS[name]
    kind = plain_type(setting.annotation)
    section, key = name.split(".")
    default = getattr(checked.base.config, section).model_dump(mode="json")[key]
    otherwise = f"{default:g}" if isinstance(default, float) else texts(default)[0]
    origin = checked.base.origin[name]
    if name == "data.dataset" and (sources := checked.base.config.data.sources):
        otherwise, origin = ", ".join(source.dataset for source in sources), checked.base.origin["data.sources"]
    choices: tuple[str, ...] = TEMPLATES if name == "data.template" else ()
    if get_origin(kind) is Literal:
        choices = tuple(map(str, get_args(kind)))
    what = "choice" if choices else "switch" if kind is bool else "number" if kind in (int, float) else "text"
    if kind is bool:
        otherwise = YES if otherwise == "True" else NO
    return Field(
        name, setting.description or "", what, checked.draft.given.get(name, ""),
        "" if otherwise == "-" else otherwise, "" if origin == "default" else origin, choices,
    )  # fmt: skip


def groups(checked: Checked) -> list[tuple[str, str, list[Field]]]:
    """The settings in the order of the page: (id, title, fields); those that matter first in the first three."""
    command, names = checked.draft.command, checked.draft.names
    first = (*_FIRST_OF[command], *_FIRST)
    own = section_of(command)
    titles = {**_GROUPS, own: "The method's own"}
    shown = {*_WITH_MODEL, *_WITH_DATA, *first, OVERWRITE}
    found = [("of-model", "Model", _WITH_MODEL), ("of-data", "Data", _WITH_DATA), ("first", "Settings", first)]
    for section in (own, "training", "lora", "data", "model", "runtime"):
        rest = tuple(name for name in names if name.startswith(f"{section}.") and name not in shown)
        if rest:
            found.append((section, titles[section], rest))
    return [(key, title, [field_of(checked, name) for name in them if name in names]) for key, title, them in found]


def recipes(command: str) -> list[str]:
    """Those without settings of another method."""
    others = {section_of(other) for other in COMMANDS} - {section_of(command)}
    return [name for name in RECIPES if not others & {key.split(".")[0] for key in recipe_layer(name).values}]
