"""What is compared: models, with or without an adapter, and what identifies them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlxmath.config.section import nearest
from mlxmath.data.codec import load_tokenizer
from mlxmath.data.templates import Template, own_template, recorded_template, template_of
from mlxmath.errors import InputError, MlxmathError
from mlxmath.models.lora.adapter import CONFIG, WEIGHTS, read_config
from mlxmath.runtime.files import sha256
from mlxmath.weights.manifest import read_fingerprint

_FORMULAS = " + formulas"


@dataclass(frozen=True)
class Contestant:
    """A model folder and perhaps an adapter folder, under a name of its own."""

    label: str
    model: Path
    adapter: Path | None = None
    formulas: bool = False
    """Whether its prompts hold the formulas of `--retrieve`."""
    against: str | None = None
    """The label of the one that it is compared with (None: the first one)."""
    template: Template | None = None
    """What it is asked in (None: see `with_templates`)."""

    def identity(self) -> dict[str, Any]:
        """Model and adapter by content.

        Raises:
            MlxmathError: there is no model or no adapter in the folder.
        """
        if not (self.model / "config.json").is_file():
            raise MlxmathError(
                f"{self.model} is not a model folder: config.json is missing. Make one with `mlxmath convert`."
            )
        model: str | None = read_fingerprint(self.model)
        if model is None:  # made by something else: its configuration, and its weights by name and size
            sizes = [f"{file.name}:{file.stat().st_size}" for file in sorted(self.model.glob("*.safetensors"))]
            model = f"{sha256(self.model / 'config.json')[:16]}:{','.join(sizes)}"
        if self.adapter is None:
            return {"model": model, "adapter": None}
        for name in (CONFIG, WEIGHTS):
            if not (self.adapter / name).is_file():
                raise MlxmathError(
                    f"{self.adapter} holds no adapter: {name} is missing. Train one (`mlxmath train`), name another "
                    "folder with --adapter-path, or evaluate the base model with --no-adapter."
                )
        return {"model": model, "adapter": sha256(self.adapter / WEIGHTS)[:16] + sha256(self.adapter / CONFIG)[:16]}

    def recorded_template(self) -> Template | None:
        """The template that the adapter was trained with, where it tells."""
        if self.adapter is None or not (self.adapter / CONFIG).is_file():
            return None
        return recorded_template(read_config(self.adapter), self.adapter / CONFIG)


def choose_contestants(
    model: Path, adapters: tuple[Path, ...], against: tuple[str, ...], *, base: bool
) -> list[Contestant]:
    """The base if asked for, then each adapter on it, then other models given as MODEL or MODEL:ADAPTER.

    Raises:
        InputError: the same one is given twice.
    """
    found = [Contestant("base", model)] if base else []
    for adapter in adapters:
        label = "tuned" if len(adapters) == 1 else adapter.name
        found.append(Contestant(label, model, adapter))
    for spec in against:
        folder, _, adapter_name = spec.partition(":")
        adapter_folder = Path(adapter_name).expanduser() if adapter_name else None
        label = Path(folder).name + (f" + {adapter_folder.name}" if adapter_folder else "")
        found.append(Contestant(label, Path(folder).expanduser(), adapter_folder))
    seen: set[tuple[Path, Path | None]] = set()
    labels: dict[str, int] = {}
    unique = []
    for contestant in found:
        folders = (contestant.model, contestant.adapter)
        if folders in seen:
            named = f"{contestant.model}{f' with {contestant.adapter}' if contestant.adapter else ''}"
            raise InputError(f"--compare: {named} is given twice; leave one out.")
        seen.add(folders)
        labels[contestant.label] = labels.get(contestant.label, 0) + 1
        number = labels[contestant.label]
        label = contestant.label if number == 1 else f"{contestant.label} ({number})"
        unique.append(Contestant(label, contestant.model, contestant.adapter))
    return unique


def with_templates(
    contestants: Sequence[Contestant], template_for: Sequence[str], shared: Template | None, usual: Template
) -> list[Contestant]:
    """The contestants, each with the template that it is asked in.

    It is the one that it has already, else the one that `template_for` names for it, else `shared`, else its own: what
    its adapter was trained with, or its tokenizer's chat template. A base without a chat template is asked as the first
    tuned model is.

    Args:
        contestants: all of them.
        template_for: LABEL=TEMPLATE, where TEMPLATE is a name, a .toml file, or "adapter" for that of the first tuned
            model.
        shared: what all are asked in that are not named.
        usual: where nothing else says it.

    Raises:
        InputError: there is no such contestant or template, or no adapter that tells its template.
        MlxmathError: a folder holds no tokenizer.
    """
    named = {label.strip(): spec.strip() for label, _, spec in (part.partition("=") for part in template_for)}
    labels = list(dict.fromkeys(x for one in contestants for x in (one.label.removesuffix(_FORMULAS), one.label)))
    if unknown := [label for label in named if label not in labels]:
        raise InputError(
            f"--template-for: there is no model {unknown[0]!r}; there are {', '.join(labels)}"
            f"{nearest(unknown[0], labels)}"
        )
    recorded = {one.label: one.recorded_template() for one in contestants}
    tuned = next(filter(None, recorded.values()), None)

    def template(one: Contestant) -> Template:
        if one.template is not None:
            return one.template
        spec = named.get(one.label) or named.get(one.label.removesuffix(_FORMULAS))
        if spec == "adapter":
            if tuned is None:
                raise InputError("--template-for: 'adapter' needs an adapter that tells its template; there is none.")
            return tuned
        if spec is not None:
            return template_of(spec, "--template-for")
        if own := shared or recorded[one.label]:
            return own
        one.identity()
        return own_template(load_tokenizer(one.model), None, tuned or usual)

    return [replace(one, template=template(one)) for one in contestants]


def with_formulas(contestants: Sequence[Contestant], *, beside: bool) -> list[Contestant]:
    """The contestants with formulas in their prompts; with `beside` each of them next to itself without."""
    if not beside:
        return [replace(contestant, formulas=True) for contestant in contestants]
    found = []
    for one in contestants:
        found += [one, replace(one, label=f"{one.label}{_FORMULAS}", formulas=True, against=one.label)]
    return found
