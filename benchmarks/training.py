"""Measures who trains how fast: the ceiling, every entry, the ratios, and their tables."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.common import gigabytes, show_table
from benchmarks.contestants import NAMES, SHOWN, Entry, measure
from benchmarks.runs import Conditions, run_worker
from benchmarks.workload import EFFECTIVE_BATCH, Workload

TOLERANCE = {"float32": 1e-3, "bfloat16": 3e-2}
CEILING_TOKENS = {"cpu": 512, "metal": 2_048, "cuda": 8_192}
"""Rows of the products that make the ceiling: enough that more are no faster."""
MIN_RUN_S = 10.0

Result = dict[str, Any]


def measure_shape(
    workload: Workload,
    chosen: Sequence[Entry],
    conditions: Conditions,
    *,
    repeat: int = 1,
    save: Callable[[Result], None] = lambda _: None,
    ceiling_s: float = 2.0,
    known_ceiling: Result | None = None,
    time_left_s: Callable[[], float] = lambda: float("inf"),
) -> Result:
    """Measure the ceiling and every entry.

    Args:
        workload: model and rows.
        chosen: who runs.
        conditions: how.
        repeat: runs of each entry, in turn; the fastest counts.
        save: gets what there is after each run.
        ceiling_s: time for the products of the ceiling.
        known_ceiling: the ceiling, if it was measured before.
        time_left_s: asked before each run; one that has less than `MIN_RUN_S` is skipped.
    """
    part: Result = {
        "shape": workload.shape.title,
        "rows": len(workload.rows),
        "tokens": workload.num_tokens,
        "targets": workload.num_targets,
        "weights_bytes": workload.weights_bytes,
        "mflops_per_token": round(workload.flops_per_token / 1e6, 2),
        "ceiling": dict(known_ceiling or ceiling(workload, _within(conditions, time_left_s()), ceiling_s)),
        "runs": [],
        "loss_disagreements": [],
        "ratios": [],
    }
    flops = part["ceiling"].get("flops_per_s")
    if flops:
        part["ceiling"]["tokens_per_s"] = round(flops / workload.flops_per_token, 1)
        print(f"matrix products alone: {flops / 1e9:,.0f} GFLOP/s, at most "
              f"{part['ceiling']['tokens_per_s']:,.0f} tokens/s", flush=True)  # fmt: skip
    else:
        print(f"matrix products alone: {part['ceiling']}", flush=True)
    best: dict[str, Result] = {}
    for _ in range(repeat):
        for entry in chosen:
            if "skipped" in best.get(entry.name, {}):
                continue
            if (left_s := time_left_s()) < MIN_RUN_S:
                result: Result = {"contestant": entry.contestant, "setting": entry.label, "skipped": "no time left"}
            else:
                result = measure(entry, workload, _within(conditions, left_s))
            rate = result.get("tokens_per_s")
            if rate and flops:
                result["of_ceiling"] = rate * workload.flops_per_token / flops
            print(f"  {entry.name}: {_outcome(result)}", flush=True)
            known = best.get(entry.name)
            rates = [*(known or {}).get("all_tokens_per_s", []), *([round(rate, 1)] if rate else [])]
            if known is None or (rate or 0) > known.get("tokens_per_s", 0):
                best[entry.name] = {"name": entry.name, **result}
            best[entry.name]["all_tokens_per_s"] = rates
            part["runs"] = list(best.values())
            part["loss_disagreements"] = loss_disagreements(part["runs"], TOLERANCE[workload.dtype])
            part["ratios"] = ratios(part["runs"])
            save(part)
    return part


def _within(conditions: Conditions, left_s: float) -> Conditions:
    return replace(conditions, timeout_s=max(MIN_RUN_S, min(conditions.timeout_s, left_s)))


def ceiling(workload: Workload, conditions: Conditions, seconds: float) -> Result:
    """What the matrix products of this model reach on this machine, measured in a fresh process."""
    shape = workload.shape
    linears = [[shape.layers, *size] for size in shape.block_linears().values()] + [[1, shape.vocab, shape.hidden]]
    job = {
        "linears": linears,
        "tokens": CEILING_TOKENS[conditions.backend],
        "dtype": workload.dtype,
        "backend": conditions.backend,
        "seconds": seconds / len(linears) / 2,
    }
    with tempfile.TemporaryDirectory() as folder:
        return run_worker("matmul", job, Path(folder), conditions.timeout_s)


def loss_disagreements(runs: Sequence[Result], tolerance: float) -> list[str]:
    """Pairs of contestants whose loss on the first batch differs by more than `tolerance` nats a target."""
    losses = [(run["name"], run["first_batch_loss"]) for run in runs if "first_batch_loss" in run]
    if not losses:
        return []
    name, loss = losses[0]
    return [
        f"{other} has {value:.6f}, {name} has {loss:.6f}"
        for other, value in losses[1:]
        if not abs(value - loss) <= tolerance
    ]


def ratios(runs: Sequence[Result]) -> list[Result]:
    """Ours, at its fastest, against each peer at its default and at its fastest."""
    good = [run for run in runs if "tokens_per_s" in run]
    ours = max((r for r in good if r["contestant"] == "ours"), key=lambda r: r["tokens_per_s"], default=None)
    if ours is None:
        return []
    found = []
    for contestant in NAMES[1:]:
        theirs = [run for run in good if run["contestant"] == contestant]
        if not theirs:
            continue
        fastest = max(theirs, key=lambda run: run["tokens_per_s"])
        defaults = [run for run in theirs if run["setting"].startswith("default")]
        if contestant not in ("torch", "unsloth"):  # whose default is mlx_lm's
            defaults += [run for run in theirs if run["setting"] == "batch 4"]
        compared = [("default", run) for run in defaults if run is not fastest]
        compared.append(("default and fastest" if fastest in defaults else "fastest", fastest))
        for kind, run in compared:
            found.append(
                {
                    "peer": SHOWN[contestant],
                    "setting": f"{kind}: {run['setting'].removeprefix('default ').strip('()')}",
                    "tokens_per_s": ours["tokens_per_s"] / run["tokens_per_s"],
                    "peak_device_bytes": _ratio(ours, run, "peak_device_bytes"),
                    "above_weights_bytes": _ratio(ours, run, "above_weights_bytes"),
                    "peak_rss_bytes": _ratio(ours, run, "peak_rss_bytes"),
                }
            )
    return found


def _ratio(ours: Result, theirs: Result, name: str) -> float | None:
    a, b = ours.get(name), theirs.get(name)
    return a / b if a and b else None


def _outcome(run: Result) -> str:
    for kind in ("skipped", "failed"):
        if kind in run:
            return f"{kind}: {run[kind]}"
    notes = "".join(f"; {note}" for note in run["notes"])
    return (
        f"{run['tokens_per_s']:,.1f} tokens/s, peak {gigabytes(run['peak_device_bytes'])}, "
        f"first batch's loss {_loss(run)}{notes}"
    )


def _loss(run: Result) -> str:
    return f"{run['first_batch_loss']:.5f}" if "first_batch_loss" in run else "-"


def show(workload: Workload, part: Result) -> None:
    """Print the tables of a shape."""
    rows = []
    for run in part["runs"]:
        if "tokens_per_s" not in run:
            rows.append([run["name"], "skipped" if "skipped" in run else "failed", *[""] * 5])
            continue
        share = run.get("of_ceiling")
        rows.append(
            [
                run["name"],
                f"{run['tokens_per_s']:,.1f}",
                f"{share:.0%}" if share else "-",
                gigabytes(run["peak_device_bytes"]),
                gigabytes(run.get("above_weights_bytes")),
                gigabytes(run["peak_rss_bytes"]),
                _loss(run),
            ]
        )
    columns = ("", "tokens/s", "of ceiling", "peak device", "above weights", "peak RSS", "first loss")
    show_table(workload.shape.title, columns, rows)
    if part["ratios"]:
        cells = [
            [f"{r['peer']}, {r['setting']}", *(f"{v:.2f}" if (v := r[name]) else "-" for name in _RATIO_COLUMNS)]
            for r in part["ratios"]
        ]
        show_table("mlxmath at its fastest / peer", ("", *_RATIO_COLUMNS.values()), cells)
    agreeing = not part["loss_disagreements"] and sum("first_batch_loss" in run for run in part["runs"]) > 1
    if agreeing:
        print(f"the loss of the first {EFFECTIVE_BATCH} rows agrees to {TOLERANCE[workload.dtype]:g} between all")


_RATIO_COLUMNS = {
    "tokens_per_s": "tokens/s",
    "peak_device_bytes": "peak device",
    "above_weights_bytes": "above weights",
    "peak_rss_bytes": "peak RSS",
}
