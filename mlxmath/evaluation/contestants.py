"""What is compared: models, with or without an adapter, and what identifies them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlxmath.config.methods import EvaluationConfig
from mlxmath.config.section import nearest
from mlxmath.data.codec import load_tokenizer
from mlxmath.data.templates import Template, own_template, recorded_template, template_of
from mlxmath.errors import InputError, MlxmathError
from mlxmath.generation.model import Asked, tool_of
from mlxmath.models.lora.adapter import CONFIG, read_config, weights_file
from mlxmath.runtime.files import sha256
from mlxmath.tools.forms import Tool
from mlxmath.weights.manifest import read_fingerprint

_FORMULAS = " + formulas"
VARIED = {"numbers": ", numbers varied", "names": ", names varied", "order": ", order varied"}
"""How the label of a contestant ends that is asked the problems of `--perturb`."""


@dataclass(frozen=True)
class Contestant:
    """A model folder and perhaps an adapter folder, under a name of its own."""

    label: str
    model: Path
    adapter: Path | None = None
    formulas: bool = False
    """Whether its prompts hold the formulas of `--retrieve`."""
    varied: bool = False
    """Whether it is asked each problem's variation."""
    against: str | None = None
    """The label of the one that it is compared with (None: the first one)."""
    template: Template | None = None
    """What it is asked in (None: see `with_templates`)."""
    tool: Asked = None
    """What it may call (None: what its adapter was trained with)."""

    def identity(self) -> dict[str, Any]:
        """Model and adapter by content.

        Raises:
            MlxmathError: there is no model or no adapter in the folder.
        """
        if not (self.model / "config.json").is_file():
            raise MlxmathError(
                f"{self.model} is not a model folder: config.json is missing. Make one with `mlxmath convert`."
            )
        sizes = [f"{file.name}:{file.stat().st_size}" for file in sorted(self.model.glob("*.safetensors"))]
        # of a model that something else made: its configuration, and its weights by name and size
        model = read_fingerprint(self.model) or f"{sha256(self.model / 'config.json')[:16]}:{','.join(sizes)}"
        if self.adapter is None:
            return {"model": model, "adapter": None}
        weights = weights_file(self.adapter)
        for path in (self.adapter / CONFIG, weights):
            if not path.is_file():
                raise MlxmathError(
                    f"{self.adapter} holds no adapter: {path.name} is missing. Train one (`mlxmath train`), name "
                    "another folder, or ask the base model (evaluate: --no-adapter; a teacher: without :ADAPTER)."
                )
        return {"model": model, "adapter": sha256(weights)[:16] + sha256(self.adapter / CONFIG)[:16]}

    @property
    def names(self) -> list[str]:
        """What it goes by: its label, and that of each one whose variant it is, down to the one without anything."""
        label = self.label
        for ending in VARIED.values() if self.varied else ():
            label = label.removesuffix(ending)
        plain = label.removesuffix(f" + {self.tool}")
        return list(dict.fromkeys((self.label, label, plain, plain.removesuffix(_FORMULAS))))

    @property
    def called(self) -> Tool | None:
        """The tool that it may call, once that is settled."""
        return None if self.tool == "none" else self.tool

    def with_own_tool(self, *, spread: bool) -> "Contestant":
        """With the tool that it may call, which can be had.

        Raises:
            InputError: it cannot.
        """
        has_record = self.adapter is not None and (self.adapter / CONFIG).is_file()
        record = read_config(self.adapter) if self.adapter and has_record else {}
        return replace(self, tool=tool_of(self.tool, record, self.adapter, spread=spread))

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
    given: list[tuple[str, Path, Path | None]] = [("base", model, None)] if base else []
    given += [("tuned" if len(adapters) == 1 else adapter.name, model, adapter) for adapter in adapters]
    for name, _, adapter_name in (spec.partition(":") for spec in against):
        other = Path(adapter_name).expanduser() if adapter_name else None
        label = Path(name).name + (f" + {other.name}" if other else "")
        given.append((label, Path(name).expanduser(), other))
    labels = Counter[str]()
    found: dict[tuple[Path, Path | None], Contestant] = {}
    for label, folder, adapter in given:
        if (folder, adapter) in found:
            named = f"{folder}{f' with {adapter}' if adapter else ''}"
            raise InputError(f"--compare: {named} is given twice; leave one out.")
        labels[label] += 1
        number = f" ({labels[label]})" if labels[label] > 1 else ""
        found[folder, adapter] = Contestant(f"{label}{number}", folder, adapter)
    return list(found.values())


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
    labels = list(dict.fromkeys(label for one in contestants for label in reversed(one.names)))
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
        spec = next((named[label] for label in one.names if label in named), None)
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


def with_variations(contestants: Sequence[Contestant], kind: str) -> list[Contestant]:
    """Each contestant, and beside it itself asked the varied problems, compared with it."""
    varied = [replace(one, label=one.label + VARIED[kind], varied=True, against=one.label) for one in contestants]
    return [each for pair in zip(contestants, varied, strict=True) for each in pair]


def equipped(contestants: Sequence[Contestant], settings: EvaluationConfig, *, beside: bool) -> list[Contestant]:
    """The contestants with the formulas and the tool that the settings give them.

    Args:
        contestants: without.
        settings: `retrieve` and `tools`.
        beside: each of them next to itself without.
    """
    found = _with_formulas(contestants, beside=beside) if settings.retrieve else contestants
    return _with_tools(found, settings.tools, beside=beside)


def _with_formulas(contestants: Sequence[Contestant], *, beside: bool) -> list[Contestant]:
    """The contestants with formulas in their prompts; with `beside` each of them next to itself without."""
    if not beside:
        return [replace(one, formulas=True) for one in contestants]
    with_them = [replace(one, label=f"{one.label}{_FORMULAS}", formulas=True, against=one.label) for one in contestants]
    return [each for pair in zip(contestants, with_them, strict=True) for each in pair]


def _with_tools(contestants: Sequence[Contestant], tool: Asked, *, beside: bool) -> list[Contestant]:
    """The contestants with a tool to call; with `beside` each of them next to itself without."""
    if tool in (None, "none") or not beside:
        return [replace(one, tool=tool) for one in contestants]
    without = [replace(one, tool="none") for one in contestants]
    with_it = [replace(one, label=f"{one.label} + {tool}", tool=tool, against=one.label) for one in contestants]
    return [each for pair in zip(without, with_it, strict=True) for each in pair]
