"""Speed against memory of what `bench_train.py` and `bench_grpo.py` measured, as one figure.

It reads benchmarks/results/{train,grpo}.json; `python tools/figures.py` writes docs/benchmarks.png with it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

RESULTS = Path(__file__).parent / "results"
NAMES = {
    "ours": ("mlxmath", "tab:green", "*"), "mlx_lm": ("mlx_lm.lora", "tab:blue", "o"),
    "mlx_lm_lora": ("mlx-lm-lora", "tab:cyan", "v"), "train_perf": ("mlx-train-perf", "tab:red", "D"),
    "unsloth": ("Unsloth MLX", "tab:purple", "s"), "torch": ("torch + PEFT", "tab:orange", "^"),
}  # fmt: skip
"""Of each contestant: name, colour, marker."""
OWN_DEFAULTS = ("default", "batch 8")


def panels() -> list[tuple[str, str, str, list[dict[str, Any]]]]:
    """Title, key and unit of the speed, runs."""
    train = json.loads((RESULTS / "train.json").read_text())["shapes"]
    grpo = json.loads((RESULTS / "grpo.json").read_text())["shapes"]
    return [
        *((f"LoRA: {one['shape']}", "tokens_per_s", "tokens/s", one["runs"]) for one in train.values()),
        *(
            (
                f"GRPO: {one['shape']}\n{one['prompts']} problems x {one['group_size']} completions of "
                f"{one['completion_tokens']} tokens",
                "completions_per_s", "completions/s", one["runs"],
            )
            for one in grpo.values()
        ),
    ]  # fmt: skip


def draw(axes: Axes, title: str, key: str, unit: str, runs: list[dict[str, Any]]) -> None:
    """One shape: a point for each contestant and setting that was measured; the fastest of each tells its setting."""
    fastest = {run["contestant"]: max(one.get(key) or 0 for one in runs if one["contestant"] == run["contestant"])
               for run in runs}  # fmt: skip
    for run in runs:
        if not run.get(key) or not run.get("above_weights_bytes"):
            continue
        name, colour, marker = NAMES[run["contestant"]]
        own = run["contestant"] == "ours"
        at = (run["above_weights_bytes"] / 1e9, run[key])
        axes.scatter(*at, color=colour, marker=marker, s=220 if own else 60, zorder=3, label=name)
        setting = "" if own and run["setting"] in OWN_DEFAULTS else run["setting"].replace("no checkpointing", "plain")
        setting = setting.removeprefix("default (").removesuffix(")").replace(", checkpointing", ", default")
        if own or run[key] == fastest[run["contestant"]]:
            axes.annotate(setting, at, xytext=(7, 6), textcoords="offset points", fontsize=8)
    axes.set_title(title, fontsize=10)
    axes.set(xlabel="peak memory above the weights (GB)", ylabel=unit, xscale="log")
    axes.margins(x=0.25, y=0.2)
    axes.set_ylim(bottom=0)
    ticks = LogLocator(subs=(1, 2, 5))
    axes.xaxis.set(major_locator=ticks, major_formatter="{x:g}", minor_formatter="")
    axes.grid(alpha=0.3, which="both")
    handles, labels = axes.get_legend_handles_labels()
    each = dict(zip(labels, handles, strict=True))
    axes.legend(each.values(), each.keys(), fontsize=8)


def draw_all(path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write the figure, with `metadata` in the PNG's fields."""
    found = panels()
    columns = 3 if len(found) % 2 else 2
    rows = -(-len(found) // columns)
    figure = Figure(figsize=(6.5 * columns, 4.2 * rows), layout="constrained")
    for axes, panel in zip(figure.subplots(rows, columns, squeeze=False).flat, found, strict=False):
        draw(axes, *panel)
    figure.suptitle("Up and to the left is better", fontsize=11)
    figure.savefig(path, dpi=110, metadata=metadata)
