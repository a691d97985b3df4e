"""The plan and the rows of a new run, asked of the processes beside, and drawn."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

from mlxmath.config.load import section_of
from mlxmath.config.offered import DATA, MODEL
from mlxmath.config.schema import SETTINGS, RunConfig, keyword, option_name
from mlxmath.config.section import DEMO
from mlxmath.runtime.console import size
from mlxmath.studio.background import Answer, planner, reader
from mlxmath.studio.form import Checked
from mlxmath.studio.place import Studio

_SHAPING: Mapping[str, tuple[str, ...]] = {
    "dpo": ("loss_type",), "grpo": ("max_completion_length",), "gkd": ("max_completion_length", "lmbda"),
}  # fmt: skip
"""Settings of methods that decide which rows there are."""


def plan(studio: Studio, checked: Checked, wait_s: float) -> Answer | None:
    """What memory and time the run takes; None if it is not known yet."""
    assert checked.resolved is not None
    config = checked.resolved.config
    return planner().ask(
        {
            "what": "plan", "folder": str(studio.folder), "method": checked.draft.command,
            "config": config.model_dump(mode="json"),
            "stamp": _stamp(studio, config, str(Path(config.data.cache_dir) / "prepared.json")),
        }, wait_s,
    )  # fmt: skip


def names_model(checked: Checked) -> bool:
    """Whether somebody has said which model it is, so that its config.json may be fetched."""
    return checked.resolved is not None and checked.resolved.origin["model.model"] != "default"


def names_data(checked: Checked) -> bool:
    """The same of the data."""
    origin = checked.resolved.origin if checked.resolved else {}
    return any(origin.get(name, "default") != "default" for name in ("data.dataset", "data.sources"))


def rows_request(
    studio: Studio,
    checked: Checked,
    *,
    start: int = 0,
    count: int = 20,
    tokens: bool = False,
    left_out: bool = False,
    glance: bool = False,
) -> dict[str, Any]:
    """What `rows` asks."""
    assert checked.resolved is not None
    config, method = checked.resolved.config, section_of(checked.draft.command)
    own = getattr(config, method).model_dump(mode="json", include=set(_SHAPING.get(method, ())))
    shaping = {"model": config.model.model_dump(mode="json"), "data": config.data.model_dump(mode="json"), method: own}
    return {
        "what": "rows", "folder": str(studio.folder), "method": checked.draft.command, "config": shaping,
        "stamp": _stamp(studio, config), "start": start, "count": count, "tokens": tokens, "left_out": left_out,
        "glance": glance,
    }  # fmt: skip


def rows(request: Mapping[str, Any], wait_s: float) -> Answer | None:
    """Rows as they are trained on; None if they are being prepared."""
    return reader().ask(request, wait_s)


def preparing(checked: Checked) -> list[str] | None:
    """The arguments of `mlxmath prepare` that make these rows; None where no command does but the run itself."""
    if checked.draft.command != "train" or checked.resolved is None:
        return None
    shared = [f"--{name}" for name in ("recipe", "config", "set")]
    options = {option_name(name) for name in (*MODEL, *DATA)} | set(shared)
    switches = {option_name(name) for name in DATA if SETTINGS[name].annotation is bool}
    found, given = ["prepare"], iter(checked.arguments[1:])
    for argument in given:
        name = argument.partition("=")[0]
        value = [] if "=" in argument or name in switches or name not in _with_value() else [next(given)]
        if name in options:
            found += [argument, *value]
    return found


def _with_value() -> set[str]:
    return {option_name(name) for name, field in SETTINGS.items() if field.annotation is not bool} | {
        "--recipe", "--config", "--set",
    }  # fmt: skip


def _stamp(studio: Studio, config: RunConfig, *more: str) -> list[Any]:
    """What changes when a file does that an answer was made of."""
    model = Path(config.model.mlx_path)
    names = [source.dataset for source in config.data.mixture if source.dataset != DEMO]
    names += [str(model / "mlxmath.json"), str(model / "tokenizer.json"), config.model.model]
    names += [config.data.template_file or "", *more]
    found = []
    for name in filter(None, names):
        try:
            state = (studio.folder / name).stat()
        except (OSError, ValueError):
            continue
        found.append([name, state.st_mtime_ns, state.st_size])
    return found


def remedy(change: str) -> str:
    """Options of a plan's remedy, as settings in an address."""
    words = shlex.split(change)
    by_option = {option_name(name): keyword(name) for name in SETTINGS}
    return urlencode({by_option[option]: value for option, value in zip(words[::2], words[1::2], strict=True)})


class Bar(NamedTuple):
    """A part of a picture, in its units."""

    x: float
    width: float
    y: float
    height: float
    text: str
    kind: str = ""


def memory_bar(answer: Answer) -> list[Bar]:
    """The parts of the memory side by side, 1000 wide; what is over the device's lies behind its mark."""
    whole = max(answer["total"], answer["device"])
    bars, x = [], 0.0
    for number, (name, count, is_idle) in enumerate(answer["parts"]):
        if not is_idle:
            width = 1000 * count / whole
            bars.append(Bar(x, width, 0, 40, f"{name}: {size(count)}", f"part{number % 6}"))
            x += width
    return bars


def device_mark(answer: Answer) -> float:
    """Where in the bar the device's memory ends."""
    return float(1000 * answer["device"] / max(answer["total"], answer["device"]))


def histogram(answer: Answer) -> list[Bar]:
    """Rows by their number of tokens, 600 by 120."""
    counts: Sequence[int] = answer["histogram"]["counts"]
    edges: Sequence[int] = answer["histogram"]["edges"]
    width, most = 600 / len(counts), max(counts)
    return [
        Bar(
            i * width + 1, width - 2, 120 - 120 * count / most, 120 * count / most,
            f"{low:,} to {high - 1:,} tokens: {count:,} rows",
        )
        for i, (count, low, high) in enumerate(zip(counts, edges[:-1], edges[1:], strict=True))
    ]  # fmt: skip
