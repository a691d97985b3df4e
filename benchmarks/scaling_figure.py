"""The predictions of `scaling_model.py` for 1 to 64 machines, as a figure and as numbers."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.scaling_model import LINKS, Compute, imbalance, pays_until, shares_of, speed_up
from benchmarks.shapes import SHAPES

MACHINES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
BATCHES = (16, 64, 256)
"""Rows of a step."""
MEAN_TOKENS = 200
"""Of a row of GSM8K with its solution, about."""
CASES = {
    "1.5B, rank 8 on q and v, 64 rows a step, 1,000 tokens/s a machine": ("1.5b", 8, ("q_proj", "v_proj"), 64, 1e3),
    "7B, rank 64 on all layers, 64 rows a step, 500 tokens/s a machine": ("7b", 64, None, 64, 500.0),
    "7B, rank 64 on all layers, 256 rows a step, 10,000 tokens/s a machine": ("7b", 64, None, 256, 1e4),
}
"""Model, adapter, step, and one machine's speed: two Macs and a data-centre GPU, by order of magnitude."""


def message_bytes(name: str, rank: int, targets: tuple[str, ...] | None) -> int:
    """Of a model's gradients: 4 bytes a trained parameter."""
    shape = SHAPES[name]
    sizes = [size for linear, size in shape.block_linears().items() if not targets or linear.split(".")[-1] in targets]
    return 4 * shape.layers * sum(rank * sum(size) for size in sizes)


def imbalances(data: Path) -> dict[int, dict[int, float]]:
    """By rows a step and machines: the largest share over the mean one, on rows about as long as those of `data`."""
    rows = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()[:2048]]
    lengths = [max(8, sum(len(str(value)) for value in row.values()) // 4 + 30) for row in rows]
    return {
        batch: {n: imbalance(shares_of(lengths, n, batch=batch, max_tokens=2048, multiple=16)) for n in MACHINES}
        for batch in BATCHES
    }


def predict(data: Path) -> dict[str, Any]:
    """Unevenness and speed-ups, by rows a step, case, link and machines (JSON's form: numbers as keys are texts)."""
    uneven = imbalances(data)
    predicted: dict[str, Any] = {"imbalance": uneven, "cases": {}}
    for title, (name, rank, targets, batch, rate) in CASES.items():
        num_bytes, compute = message_bytes(name, rank, targets), Compute(1 / rate, 0.0)
        tokens = batch * MEAN_TOKENS
        case: dict[str, Any] = {"message_bytes": num_bytes, "alone_s": tokens / rate, "links": {}}
        for link in LINKS:
            values = {n: speed_up(tokens, n, uneven[batch][n], num_bytes, link, compute) for n in MACHINES}
            last = pays_until(tokens, uneven[batch], num_bytes, link, compute)
            case["links"][link.name] = {"speed_up": values, "pays_until": last}
        predicted["cases"][title] = case
    found: dict[str, Any] = json.loads(json.dumps(predicted))
    return found


def draw(path: Path, predicted: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> None:
    """Write what `predict` gave as a figure, with `metadata` in the PNG's fields."""
    from matplotlib.figure import Figure

    cases = predicted["cases"]
    figure = Figure(figsize=(4.6 * (len(cases) + 1), 4.2), layout="constrained")
    axes = figure.subplots(1, len(cases) + 1)
    for axis, (title, case) in zip(axes, cases.items(), strict=False):
        for name, found in case["links"].items():
            values = [found["speed_up"][str(n)] for n in MACHINES]
            axis.plot(MACHINES, values, marker=".", label=f"{name} (to {found['pays_until']})")
        axis.plot(MACHINES, MACHINES, color="0.7", linestyle=":", zorder=0)
        axis.set(title=title.replace(", ", "\n", 1), xlabel="machines", ylabel="speed-up", xscale="log", yscale="log")
        axis.legend(fontsize=7)
    axis = axes[-1]
    for batch, by_n in predicted["imbalance"].items():
        axis.plot(MACHINES, [by_n[str(n)] for n in MACHINES], marker=".", label=f"{batch} rows a step")
    axis.set(title="the largest share\nover the mean one", xlabel="machines", xscale="log")
    axis.legend(fontsize=7)
    for each in axes:
        each.set_xticks([1, 2, 4, 8, 16, 32, 64], ["1", "2", "4", "8", "16", "32", "64"])
        each.minorticks_off()
        each.title.set_fontsize(9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata=metadata)
