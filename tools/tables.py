"""The tables of README and docs, made of the figures in benchmarks/results; and how a figure is written."""

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks import real_model_pages

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
UNITS = {
    "": 1.0,
    "%": 100.0,
    "points": 100.0,
    "GB": 1e-9,
    "MB": 1e-6,
    "MB/s": 1e-6,
    "GFLOP/s": 1e-9,
    "µs": 1e6,
    "ms": 1e3,
    "times": 1.0,
}
"""What a value is multiplied by, for the unit that is written behind it."""


@functools.cache
def results(file: str) -> Any:
    """What a benchmark wrote."""
    return json.loads((RESULTS / file).read_text(encoding="utf-8"))


def shown(value: Any, form: str) -> str:
    """A value in a format: `.1f %`, `,.0f`, `+.1f interval`."""
    spec, _, unit = form.partition(" ")
    if unit == "interval":
        return f"{100 * value['low']:{spec}} to {100 * value['high']:{spec}}"
    scaled = value if UNITS[unit] == 1 else UNITS[unit] * value  # a whole number stays one
    return f"{scaled:{spec}} {unit}".rstrip()


def rows_of(head: str, aligned: str, rows: Iterator[tuple[str, ...]]) -> str:
    """A Markdown table; the columns of `head` and their alignment (`l` or `r`) are divided by `|`."""
    rule = "|".join("---:" if side == "r" else "---" for side in aligned)
    return "\n".join([f"| {head} |", f"|{rule}|", *("| " + " | ".join(row) + " |" for row in rows)])


def demo_table() -> str:
    """What `make demo` ends with."""
    from mlxmath.demo.__main__ import table

    lines = table(results("demo.json")["demo"]).splitlines()
    first = lines[0].partition("; ")[0]
    return "\n".join(["```", f"{first}; the base at the prompt that suits it best, …", *lines[1:], "```"])


def pipeline_table() -> str:
    """What the bundled pipeline ends with."""
    from mlxmath.evaluation.wording import interval, percent, soundness

    def rows() -> Iterator[tuple[str, ...]]:
        for name, found in results("demo.json")["pipeline"]["contestants"].items():
            shares = [text.partition(" of ")[0] for text in soundness(found)[:-1]]
            accuracy = found["accuracy"]
            tokens = f"{found['tokens']['mean']:.0f}"
            yield name, percent(accuracy["value"]), interval(accuracy), *shares, tokens

    head = "model | accuracy | 95 % interval | true | grounded | supported | used | doubt | tokens"
    return rows_of(head, "lrrrrrrrr", rows())


def _speeds(file: str, key: str, digits: int) -> Iterator[tuple[str, ...]]:
    for shape in results(file)["shapes"].values():
        what = shape["shape"]
        if file == "grpo.json":
            what += f", {shape['prompts']} problems x {shape['group_size']} of {shape['completion_tokens']} tokens"
        ours = next(run for run in shape["runs"] if run["contestant"] == "ours")
        for run in (run for run in shape["runs"] if run.get(key)):
            name = NAMES[run["contestant"]]
            setting = "" if run is ours else run["setting"]
            ratio = "" if run["contestant"] == "ours" else f"{ours[key] / run[key]:.1f}"
            memory = shown(run["above_weights_bytes"], ".2f GB")
            yield what, ", ".join(filter(None, (name, setting))), f"{run[key]:,.{digits}f}", memory, ratio
            what = ""


NAMES = {"ours": "mlxmath", "mlx_lm": "`mlx_lm.lora`", "mlx_lm_lora": "mlx-lm-lora", "train_perf": "mlx-train-perf",
         "unsloth": "Unsloth's MLX trainer", "torch": "torch + PEFT"}  # fmt: skip


def training_table() -> str:
    """Speed and memory of LoRA training beside others'."""
    head = "model | who | tokens/s | peak above the weights | mlxmath is so many times as fast"
    return rows_of(head, "llrrr", _speeds("train.json", "tokens_per_s", 0))


def grpo_table() -> str:
    """Speed and memory of GRPO beside others'."""
    head = "model and step | who | completions/s | peak above the weights | mlxmath is so many times as fast"
    return rows_of(head, "llrrr", _speeds("grpo.json", "completions_per_s", 2))


def ranks_table() -> str:
    """Processes on one machine."""
    runs = (run for run in results("ranks.json")["runs"] if run["blas_threads"] is None)
    rows = ((str(run["ranks"]), str(run["workers"]), f"{run['tokens_per_s']:.0f}", f"{run['against_one_process']:.2f}")
            for run in runs)  # fmt: skip
    return rows_of("processes | workers of each | tokens/s | against one process", "rrrr", rows)


def scaling_table() -> str:
    """Steps predicted and measured."""
    rows = (
        (f"{run['mbit_per_s']:g} Mbit/s", str(run["ranks"]), f"{run['predicted_s']:.3f} s",
         f"{run['measured_s']:.3f} s", f"{100 * run['error']:+.0f} %", f"{run['all_reduce_s']:.3f} s")
        for run in results("scaling.json")["runs"]
    )  # fmt: skip
    return rows_of("link | ranks | a step, predicted | measured | error | of which all-reduce", "lrrrrr", rows)


def predicted_tables() -> str:
    """How many times as fast so many machines are."""
    machines = ("2", "4", "8", "16", "32", "64")
    tables = []
    for title, case in results("scaling.json")["predicted"]["cases"].items():
        rows = (
            (name, *(f"{found['speed_up'][n]:.1f}" for n in machines), str(found["pays_until"]))
            for name, found in case["links"].items()
        )
        head = " | ".join(("", *machines, "pays to")).strip()
        message = f"a message of {case['message_bytes'] / 1e6:.1f} MB, {case['alone_s']:.1f} s a step alone"
        tables.append(f"**{title}**: {message}\n\n" + rows_of(head, "lrrrrrrr", rows))
    return "\n\n".join(tables)


DISTURBED = ("killed", "disk full", "other errors", "signalled", "two at once")
"""What `campaign.py` does to a command."""


def campaign_table() -> str:
    """Disturbed commands: how often each, and how often something was lost."""
    tried: dict[str, dict[str, int]] = {}
    for row in results("campaign.json")["table"]:
        counts = tried.setdefault(row["command"], dict.fromkeys((*DISTURBED, "failed"), 0))
        counts[row["what"]] += row["tried"]
        counts["failed"] += row["failed"]
    total = {name: sum(counts[name] for counts in tried.values()) for name in (*DISTURBED, "failed")}
    rows = [(f"`{name}`", *map(str, counts.values())) for name, counts in sorted(tried.items())]
    head = " | ".join(("command", *DISTURBED, "lost or different"))
    rows = [*rows, ("all", *(f"{number:,}" for number in total.values()))]
    return rows_of(head, "lrrrrrr", iter(rows))


def fuzz_table() -> str:
    """Damaged and hostile inputs and random command lines."""
    found = results("fuzz.json")
    kinds = {
        "files and replies, by the functions that read them": "inputs",
        "files, by the commands": "inputs, by the command",
        "command lines of random options": "command lines",
        "command lines, a process each": "command lines, a process each",
    }

    def rows() -> Iterator[tuple[str, ...]]:
        for kind, key in kinds.items():
            forms = found[key].values()
            yield kind, *(f"{sum(one[n] for one in forms):,}" for n in ("tried", "refused", "accepted", "failed"))

    return rows_of("what | tried | refused in one line | accepted | failed", "lrrrr", rows())


def soak_table() -> str:
    """What grew in long runs."""
    found = results("soak.json")
    rows = (
        (f"`{name}`", f"{max(map(int, one['steps'])):,} {'questions' if name == 'evaluate' else 'steps'}",
         *(f"{one['growth_percent'][each]:+.2f} %" for each in ("active_bytes", "rss_bytes", "files", "threads")))
        for name, one in found.items() if name != "machine"
    )  # fmt: skip
    return rows_of("command | length | MLX's active memory | resident memory | open files | threads", "lrrrrr", rows)


def on_policy_table() -> str:
    """What a student learns from in two minutes."""
    found = results("on_policy.json")
    differences = found["results"]

    def rows() -> Iterator[tuple[str, ...]]:
        for name, share in found["shares"].items():
            gain = differences.get(f"{name} against start")
            gained = f"{shown(gain['difference'], '+.1f points')} ({shown(gain, '+.1f interval')})" if gain else ""
            yield STUDENTS.get(name, name), shown(share["share"], ".1f %"), shown(share, ".1f interval"), gained

    return rows_of("after | right | 95 % interval | against the start", "lrrr", rows())


STUDIO_PAGES = {
    "/runs": "the list of runs", "/runs/long?part=state": "the state of the long run, again and again",
    "/runs/long/data?since=": "all its points", "/runs/over?run=long&run=runs/00": "two runs over one another",
    "/new": "a new run", "/evaluations/evaluations/large": "an evaluation's problems",
    "/evaluation-problems/evaluations/large?q=17": "a search among them",
}  # fmt: skip


def studio_table() -> str:
    """Milliseconds of the studio's pages."""
    found = results("studio.json")["pages"]

    def rows() -> Iterator[tuple[str, ...]]:
        for address, name in STUDIO_PAGES.items():
            yield name, *(f"{found['ms'][address][key]:,.0f} ms" for key in ("first", "warm", "worst"))
        refresh = found["refresh_ms"]
        yield "the points after a step more", "", f"{refresh['median']:.0f} ms", f"{refresh['worst']:.0f} ms"

    return rows_of("page | the first time | then | at worst", "lrrr", rows())


STUDENTS = {
    "base": "the model as it came", "start": "the student's start", "teacher": "(the teacher)",
    "on-policy distillation": "`gkd`", "the same on a quarter of the problems": "`gkd --lmbda 0.25 --beta 0.5`",
    "grpo": "`grpo`", "sft on the teacher's texts": "`train` on the teacher's right texts",
}  # fmt: skip


TABLES: dict[str, Callable[[], str]] = {
    "demo": demo_table, "pipeline": pipeline_table, "training": training_table, "grpo": grpo_table,
    "ranks": ranks_table, "scaling": scaling_table, "predicted": predicted_tables,
    "campaign": campaign_table, "fuzz": fuzz_table, "soak": soak_table,
    "on-policy": on_policy_table,
    "studio": studio_table,
    "real-stages": lambda: real_model_pages.stages(results("real_model.json")),
    "real-model": lambda: real_model_pages.table(results("real_model.json")),
    "real-answers": lambda: real_model_pages.answers(results("real_model.json")),
}  # fmt: skip
