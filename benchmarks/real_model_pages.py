"""What `real_model.py` found, as pages show it: curves and bars, a table, three answers side by side."""

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

CASES = {
    "only the tuned model is right": (False, True),
    "both are right": (True, True),
    "neither is right": (False, False),
}
"""Of the three problems that are shown: whether base and tuned model are right."""
POINTS = 120
"""Most points of a curve that are kept."""
ROLLOUTS = 40
"""So many of the last rollouts are in a point of the reward's curve."""
TITLES = {"gsm8k": "GSM8K", "svamp": "SVAMP", "gsm-hard": "GSM-Hard"}
STAGES = {"base": "as it came", "sft": "two epochs of worked solutions", "own": "its right solutions", "grpo": "GRPO"}


def curves(events: Path) -> dict[str, list[tuple[int, float]]]:
    """Smoothed loss, loss on held-out problems and mean reward of the last rollouts by step, in events.jsonl."""
    found: dict[str, list[tuple[int, float]]] = {"loss": [], "validation": [], "reward": []}
    rewards: list[float] = []
    for event in map(json.loads, events.read_text(encoding="utf-8").splitlines()):
        if event["event"] == "validation" and "loss" in event:
            found["validation"].append((event["step"], event["loss"]))
        elif event["event"] == "rollout":
            rewards.append(event["reward"])
            found["reward"].append((event["step"], fmean(rewards[-ROLLOUTS:])))
        elif event["event"] == "step" and "smoothed_loss" in event:  # the loss of GRPO says nothing
            found["loss"].append((event["step"], event["smoothed_loss"]))
    return {name: thinned(points) for name, points in found.items() if points}


def thinned(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most `POINTS` of them, evenly, the last one among them."""
    every = -(-len(points) // POINTS)
    return [point for i, point in enumerate(points) if (len(points) - 1 - i) % every == 0]


def side_by_side(samples: Iterable[Mapping[str, Any]], benchmark: str, seed: int) -> list[dict[str, Any]]:
    """One problem of each case, drawn by lot, with the answers of both.

    Args:
        samples: lines of an evaluation's samples.jsonl, of contestants "base" and "tuned".
        benchmark: whose problems.
        seed: of the lot.
    """
    answers: dict[str, dict[str, Mapping[str, Any]]] = {}
    for one in samples:
        if one["benchmark"] == benchmark and one["sample"] == 0:
            answers.setdefault(one["id"], {})[one["contestant"]] = one
    shown = []
    for case, right in CASES.items():
        fitting = [
            i for i, pair in sorted(answers.items()) if (pair["base"]["correct"], pair["tuned"]["correct"]) == right
        ]
        if fitting:
            pair = answers[random.Random(seed).choice(fitting)]
            texts = {"base": pair["base"]["response"], "tuned": pair["tuned"]["response"]}
            shown.append({"case": case, "question": pair["base"]["question"], "gold": pair["base"]["gold"]} | texts)
    return shown


def table(record: Mapping[str, Any]) -> str:
    """Exact answers of base and tuned model to each benchmark's test problems, and of the GGUF to GSM8K's."""
    from mlxmath.evaluation.wording import interval, p_value, percent, points

    found = record["test"]
    base, tuned = (found["contestants"][name]["by"]["benchmark"] for name in ("base", "tuned"))
    paired = found["comparisons"][0]["by"]["benchmark"]
    rows = [
        (
            f"{TITLES[name]} ({base[name]['total']:,})", f"{percent(base[name]['value'])} ({interval(base[name])})",
            f"{percent(tuned[name]['value'])} ({interval(tuned[name])})",
            f"{points(one['difference'])} ({points(one['low'])} to {points(one['high'])})", p_value(one["p_value"]),
        )
        for name, one in sorted(paired.items(), key=lambda item: list(TITLES).index(item[0]))
    ]  # fmt: skip
    (exported,) = record["export"]["contestants"].values()
    accuracy = exported["accuracy"]
    again = f"{percent(accuracy['value'])} ({interval(accuracy)})"
    rows.append((f"GSM8K, as a GGUF of 8 bits ({accuracy['total']:,})", "", again, "", ""))
    head = ("test problems", "base", "tuned", "difference in points, paired", "p")
    lines = [head, ("---", "---:", "---:", "---:", "---:"), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def stages(record: Mapping[str, Any]) -> str:
    """What each stage answers right of the held-out problems, by which one is chosen."""
    from mlxmath.evaluation.wording import interval, percent

    found = record["choose"]
    lines: list[tuple[str, ...]] = [("after", "right of the held-out problems", "cut off at 400 tokens")]
    lines.append(("---", "---:", "---:"))
    for name, said in STAGES.items():
        one = found["contestants"][name]
        mark = ", **chosen**" if name == found["chosen"] else ""
        share = f"{percent(one['accuracy']['value'])} ({interval(one['accuracy'])})"
        lines.append((f"{name}: {said}{mark}", share, f"{one['cut_off']} of {one['accuracy']['total']}"))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def answers(record: Mapping[str, Any]) -> str:
    """The three problems, each with both answers, as Markdown."""
    parts = []
    for one in record["show"]["answers"]:
        quoted = "\n".join(f"> {line}".rstrip() for line in one["question"].strip().splitlines())
        both = "\n\n".join(f"{name.capitalize()}:\n\n{_fenced(one[name])}" for name in ("base", "tuned"))
        parts.append(f"**{one['case'].capitalize()}** (the answer is {one['gold']})\n\n{quoted}\n\n{both}")
    return "\n\n".join(parts)


def _fenced(text: str) -> str:
    """Text between fences that it does not contain."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}text\n{text.strip()}\n{fence}"


def draw(path: Path, record: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
    """Curves of the stages, and base beside tuned model on each benchmark with 95 % intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.8), layout="constrained")
    loss, reward, bars = figure.subplots(1, 3)
    for (name, found), colour in zip(
        record["show"]["curves"].items(), ("tab:blue", "tab:green", "tab:orange"), strict=False
    ):
        for kind, style in (("loss", "-"), ("validation", "o--")):
            if kind in found:
                label = f"{name}: {'training, smoothed' if kind == 'loss' else 'held out'}"
                loss.plot(*zip(*found[kind], strict=True), style, color=colour, ms=4, label=label)
        if "reward" in found:
            reward.plot(*zip(*found["reward"], strict=True), color=colour, label=f"{name}: last {ROLLOUTS} rollouts")
    loss.set(xlabel="step", ylabel="loss, nats a token")
    reward.set(xlabel="step", ylabel="mean reward")
    for axes in (loss, reward):
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    contestants = record["test"]["contestants"]
    order = [key for key in TITLES if key in contestants["base"]["by"]["benchmark"]]
    for place, (name, label, colour) in enumerate((("base", "base", "0.65"), ("tuned", "tuned", "tab:green"))):
        shares = {key: contestants[name]["by"]["benchmark"][key] for key in order}
        values = [100 * one["value"] for one in shares.values()]
        around = [
            [value - 100 * one["low"] for value, one in zip(values, shares.values(), strict=True)],
            [100 * one["high"] - value for value, one in zip(values, shares.values(), strict=True)],
        ]
        at = [i + 0.4 * place - 0.2 for i in range(len(shares))]
        bars.bar(at, values, 0.36, yerr=around, color=colour, label=label, error_kw={"capsize": 2, "ecolor": "0.25"})
    names = {key: contestants["base"]["by"]["benchmark"][key] for key in order}
    bars.set_xticks(range(len(names)), [f"{TITLES[name]}\n({one['total']:,})" for name, one in names.items()])
    bars.set_ylabel("exact answers to test problems, %")
    bars.legend(fontsize=8, frameon=False)
    bars.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110, metadata=dict(metadata))
