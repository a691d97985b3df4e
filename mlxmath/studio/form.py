"""The form of a new run: what was filled in, what the schema says to it, and the command line that it stands for."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import PurePath
from typing import Any, Literal, get_args, get_origin
from urllib.parse import parse_qsl, urlencode

from mlxmath.config.load import (
    RUN_FILE,
    TRAINED_FROM,
    Resolved,
    WrongSettingsError,
    section_of,
    settings_from,
)
from mlxmath.config.offered import TRAINS
from mlxmath.config.schema import SETTINGS, keyword, option_name
from mlxmath.config.section import plain_type
from mlxmath.errors import InputError
from mlxmath.studio.paths import outside, refused, taken, written
from mlxmath.studio.place import MOST_SETTINGS_BYTES, Studio

COMMANDS = tuple(TRAINS)
TITLES: Mapping[str, str] = {
    "train": "fine-tune on problems with solutions", "dpo": "tune on pairs of a better and a worse answer",
    "reward-model": "learn to score answers from such pairs", "grpo": "reinforcement: draw answers, reward right ones",
    "gkd": "on-policy distillation from a stronger model",
}  # fmt: skip
_NOT_OFFERED = ("training.resume", "training.report_to")
"""A run's own page goes on with it; nothing is sent elsewhere."""
OVERWRITE, REWARDS = "model.overwrite", "grpo.reward_weights"
YES, NO = "yes", "no"


def _names(command: str) -> tuple[str, ...]:
    """The settings that the form of a command has."""
    own = (REWARDS,) if command == "grpo" else ()
    return (*(name for name in TRAINS[command] if name not in _NOT_OFFERED), *own)


@dataclass(frozen=True)
class Draft:
    """A form as it was filled in."""

    command: str
    recipe: str | None = None
    run: str | None = None
    """The folder of an earlier run to start from."""
    given: Mapping[str, str] = field(default_factory=dict)
    """Texts by "section.field", none of them empty."""

    @property
    def names(self) -> tuple[str, ...]:
        """The settings that the form has."""
        return _names(self.command)

    @property
    def sections(self) -> tuple[str, ...]:
        """Those that the command uses."""
        return (*TRAINED_FROM, section_of(self.command))

    @property
    def config(self) -> str | None:
        """The file with the settings of the earlier run."""
        return None if self.run is None else f"{self.run}/{RUN_FILE}"

    @property
    def query(self) -> str:
        """All of it, for an address."""
        start = {"recipe": self.recipe, "from": self.run}
        return urlencode(
            {"command": self.command, **{name: value for name, value in start.items() if value}}
            | {keyword(name): text for name, text in self.given.items()}
        )


def draft_of(values: Mapping[str, str]) -> Draft:
    """What a form, or an address, says. Unknown names are left out.

    `start` is "recipe=NAME" or "from=FOLDER"; `model_choice`, `data_choice` and `use` hold settings as an address does,
    which count more than the fields.

    Raises:
        InputError: there is no such command.
    """
    start = dict(parse_qsl(values.get("start", "")))
    recipe = start.get("recipe") or values.get("recipe") or None
    run = start.get("from") or values.get("from") or None
    if "start" in values:
        recipe, run = start.get("recipe") or None, start.get("from") or None
    command = values.get("command") or COMMANDS[0]
    if command not in COMMANDS:
        raise InputError(f"command: expected one of {', '.join(COMMANDS)}; found {command!r}")
    if run is not None:
        recipe = None
    fields = {keyword(name): name for name in _names(command)}
    given: dict[str, str] = {}
    chosen = (
        parse_qsl(values.get(name, ""), keep_blank_values=True) for name in ("model_choice", "data_choice", "use")
    )
    for key, text in (*values.items(), *chain.from_iterable(chosen)):
        if key in fields:
            given[fields[key]] = text.strip()
    given = {name: text for name, text in given.items() if text}
    return Draft(command, recipe, run, given)


def query_of(command: str, rest: Sequence[str]) -> str:
    """The settings of a command line that a form has made, for the address of a form that has them."""
    by_option = {option_name(name): name for name in _names(command)}
    found, rewards, words = {"command": command}, [], iter(rest)
    for word in words:
        option, equals, value = word.partition("=")
        name = by_option.get(option)
        if name and plain_type(SETTINGS[name].annotation) is bool:
            found[keyword(name)] = YES
        elif name or option in ("--recipe", "--config", "--set", "--reward"):
            value = value if equals else next(words, "")
            if option == "--reward":
                rewards.append(value)
            elif option == "--set":  # what a recipe turns on and the form off
                found[keyword(value.partition("=")[0])] = NO
            else:
                found[keyword(name) if name else option.removeprefix("--")] = value
    if config := found.pop("config", ""):
        found["from"] = str(PurePath(config).parent)
    return urlencode(found | ({keyword(REWARDS): ", ".join(rewards)} if rewards else {}))


def typed(name: str, text: str) -> Any:
    """A field's text as the command line takes it; one that cannot be stays text, and the schema says what is wrong."""
    kind = plain_type(SETTINGS[name].annotation)
    if name == REWARDS:
        pairs = [part.partition("=") for part in _parts(text)]
        return {reward.strip(): _number(weight) if equals else 1.0 for reward, equals, weight in pairs}
    if get_origin(kind) is Literal:
        return next((choice for choice in get_args(kind) if str(choice) == text), text)
    if kind is bool:
        return {YES: True, NO: False}.get(text, text)
    return _number(text, whole=kind is int) if kind in (int, float) else text


def _number(text: str, *, whole: bool = False) -> int | float | str:
    for kind in (int, float) if whole else (float,):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


@dataclass(frozen=True)
class Checked:
    """A draft, and what the schema says to it."""

    draft: Draft
    base: Resolved
    """The settings without what was filled in."""
    resolved: Resolved | None
    """With it; None where something is wrong."""
    wrong: Mapping[str, str]
    """What is wrong with settings, by "section.field"."""
    trouble: str = ""
    """What is wrong otherwise."""
    changed: tuple[str, ...] = ()
    """The settings that differ from the base."""
    taken: Mapping[str, str] = field(default_factory=dict)
    """Folders that hold something else already: a free name, by "section.field"."""

    @property
    def is_good(self) -> bool:
        """Whether the run can start."""
        is_right = self.resolved is not None and not (self.wrong or self.trouble)
        return is_right and self.taken.keys() == self.deleted.keys()

    @property
    def deleted(self) -> Mapping[str, str]:
        """Those of the taken folders whose content the run deletes at its start, by "section.field"."""
        if self.resolved is None or not self.resolved.config.model.overwrite:
            return {}
        return {name: folder for name, folder in written(self.resolved.config).items() if name in self.taken}

    @property
    def arguments(self) -> list[str]:
        """The command line after `mlxmath`; only what differs from the recipe or the defaults."""
        draft = self.draft
        found = [draft.command]
        if draft.recipe:
            found += _option("--recipe", draft.recipe)
        if draft.config:
            found += _option("--config", draft.config)
        for name in self.changed:
            if name == REWARDS:
                found += chain.from_iterable(_option("--reward", part) for part in _parts(draft.given[name]))
            elif plain_type(SETTINGS[name].annotation) is not bool:
                found += _option(option_name(name), draft.given[name])
            elif draft.given[name] == YES:
                found.append(option_name(name))
            else:
                found += ["--set", f"{name}=false"]
        return found

    @property
    def command_line(self) -> str:
        """To copy into a terminal."""
        return shlex.join(["mlxmath", *self.arguments])


def _parts(text: str) -> list[str]:
    """What stands between commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def _option(option: str, value: str) -> list[str]:
    return [f"{option}={value}"] if value.startswith("-") else [option, value]


def check(studio: Studio, draft: Draft) -> Checked:
    """Ask the schema about a draft, and the folder about its paths."""
    trouble = ""
    try:
        draft = _found(studio, draft)
        base = _settings(studio, draft, ())
    except InputError as error:
        trouble, draft = str(error), Draft(draft.command, given=draft.given)
        base = _settings(studio, draft, ())
    try:
        resolved = _settings(studio, draft, draft.given)
    except WrongSettingsError as error:
        return Checked(draft, base, None, error.wrong, trouble, tuple(draft.given))
    except InputError as error:
        return Checked(draft, base, None, {}, trouble or str(error), tuple(draft.given))
    wrong = outside(studio, resolved.config)
    for name, why in refused(resolved.config).items():
        if name in draft.given and name != OVERWRITE:
            wrong[name] = why
        elif name not in draft.given:
            trouble = trouble or f"{resolved.origin[name]}: {name} {why}; start this run from the command line."
    changed = _changed(studio, draft, base, resolved)
    found = {} if wrong else taken(studio, resolved.config)
    return Checked(draft, base, resolved, wrong, trouble, changed, found)


def _found(studio: Studio, draft: Draft) -> Draft:
    """The draft with the earlier run's folder as the studio names it.

    Raises:
        InputError: it lies elsewhere, or holds no run's settings.
    """
    if draft.run is None:
        return draft
    folder = studio.inside(draft.run, "from")
    if not (path := studio.file(folder / RUN_FILE)) or path.stat().st_size > MOST_SETTINGS_BYTES:
        raise InputError(f"from: {draft.run} holds no {RUN_FILE}, the settings of a run; name another folder.")
    return replace(draft, run=studio.name(folder))


def _settings(studio: Studio, draft: Draft, names: Iterable[str]) -> Resolved:
    """The settings of the recipe or file, with those of `names` as they were filled in."""
    values = {name: typed(name, draft.given[name]) for name in names}
    unset = [f"{name}=false" for name, value in values.items() if value is False]
    options = {keyword(name): value for name, value in values.items() if value is not False}
    config = None if draft.config is None else studio.folder / draft.config
    found = settings_from(draft.sections, recipe=draft.recipe, config=config, set=unset, origin="option", **options)
    if found.origin["model.model"] != "default":
        return found

    from mlxmath.weights.held import with_held_model  # loads numpy

    return with_held_model(found, studio.folder)


def _changed(studio: Studio, draft: Draft, base: Resolved, resolved: Resolved) -> tuple[str, ...]:
    """The settings without which the run would be another; a recipe's value repeated is none."""
    kept = [name for name in draft.names if name in draft.given]
    for name in list(kept):
        section, key = name.split(".")
        if getattr(getattr(base.config, section), key) != getattr(getattr(resolved.config, section), key):
            continue
        rest = [other for other in kept if other != name]
        try:
            if _settings(studio, draft, rest).config == resolved.config:
                kept = rest
        except InputError:  # the others need it
            continue
    return tuple(kept)
