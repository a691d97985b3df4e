"""Puts what benchmarks/results/*.json say into README.md and docs/: numbers, tables and pictures.

    python tools/figures.py            # after a benchmark was run again
    python tools/figures.py --check    # exits with 1 where a page or a picture is not what the JSON says

A number stands between `<!-- figure: FILE PATH | FORMAT -->` and `<!-- / -->`. PATH leads through the JSON, its parts
divided by `/`: a key, a place in a list, or `key=value` for the one element of a list that has it; or FILE is
`derived` and PATH one of `DERIVED`. FORMAT is Python's for a number, and a unit of `UNITS`, or `interval` for an object
with `low` and `high`. A table stands between `<!-- table: NAME -->` and `<!-- / -->`, NAME being one of `TABLES`.
Pictures are those of `PICTURES`; each carries a checksum of the figures that it shows.
"""

import argparse
import functools
import hashlib
import json
import re
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY))

RESULTS = REPOSITORY / "benchmarks" / "results"
DOCS = REPOSITORY / "docs"
FIGURE = re.compile(r"(<!-- figure: (\S+) ([^|]+?) \| ([^|]+?) -->)(.*?)(<!-- / -->)", re.DOTALL)
TABLE = re.compile(r"(<!-- table: (\S+) -->\n)(.*?)(<!-- / -->)", re.DOTALL)
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
CHECKSUM = "Figures"
"""The PNG's field that tells what it was drawn from."""


def main() -> int:
    """Write, or check, pages and pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; say what would change")
    check = parser.parse_args().check
    stale = [path for path, text in pages() if text != path.read_text(encoding="utf-8")]
    pictures = stale_pictures()
    if not check:
        for path, text in pages():
            path.write_text(text, encoding="utf-8")
        for name in pictures:
            parts, draw = PICTURES[name]
            draw(DOCS / name, {CHECKSUM: checksum(parts)})
    for path in [*stale, *(DOCS / name for name in pictures)]:
        print(f"{path.relative_to(REPOSITORY)}: {'not what the JSON says' if check else 'written'}")
    return int(check and bool(stale or pictures))


def pages() -> Iterator[tuple[Path, str]]:
    """README and the pages of docs/, with the text that each should have."""
    for path in (REPOSITORY / "README.md", *sorted(DOCS.glob("*.md"))):
        text = path.read_text(encoding="utf-8")
        if begins := re.search(r"^ {0,3}<!-- figure.*", text, re.MULTILINE):
            sys.exit(f"{path.relative_to(REPOSITORY)}: a line that begins with a comment is no text: {begins[0]}")
        try:
            text = FIGURE.sub(lambda m: f"{m[1]}{shown(look_up(m[2], m[3]), m[4])}{m[6]}", text)
            yield path, TABLE.sub(lambda m: f"{m[1]}{TABLES[m[2]]()}\n{m[4]}", text)
        except (LookupError, OSError, TypeError, ValueError) as error:
            sys.exit(f"{path.relative_to(REPOSITORY)}: {error}")


@functools.cache
def results(file: str) -> Any:
    """What a benchmark wrote."""
    return json.loads((RESULTS / file).read_text(encoding="utf-8"))


def look_up(file: str, path: str) -> Any:
    """The value at a path of a file in benchmarks/results.

    Raises:
        LookupError: it leads nowhere, or to several elements.
    """
    if file == "derived":
        return DERIVED[path]()
    value = results(file)
    for part in path.split("/"):
        try:
            if isinstance(value, list) and "=" in part:
                key, wanted = part.split("=", 1)
                (value,) = (one for one in value if str(one[key]) == wanted)
            else:
                value = value[int(part)] if isinstance(value, list) else value[part]
        except (KeyError, IndexError, TypeError, ValueError):
            raise LookupError(f"{file}: {path}: nothing, or not one, at {part!r}") from None
    return value


def planned_over_measured() -> list[float]:
    """Of all runs of `bench_memory.py --plan`: the memory that `plan` says over the measured peak."""
    return [run["planned_bytes"] / run["peak_bytes"] for run in results("memory.json")["planned"]]


def beside_arrays() -> list[float]:
    """Of the same runs: the bytes that a process holds at most beside MLX's arrays."""
    return [run["peak_rss_bytes"] - run["peak_bytes"] for run in results("memory.json")["planned"]]


DERIVED: dict[str, Callable[[], float]] = {
    "fewest planned": lambda: min(planned_over_measured()),
    "most planned": lambda: max(planned_over_measured()),
    "least beside": lambda: min(beside_arrays()),
    "usual beside": lambda: statistics.median(beside_arrays()),
    "most beside": lambda: max(beside_arrays()),
    "planned runs": lambda: len(planned_over_measured()),
}
"""Numbers that are calculated from results."""


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


TABLES: dict[str, Callable[[], str]] = {
    "demo": demo_table, "pipeline": pipeline_table, "training": training_table, "grpo": grpo_table,
    "ranks": ranks_table, "scaling": scaling_table, "predicted": predicted_tables,
    "campaign": campaign_table, "fuzz": fuzz_table, "soak": soak_table,
}  # fmt: skip


def draw_demo(path: Path, metadata: Mapping[str, str]) -> None:
    """Base against tuned on the demo's unseen problems: a bar for each kind, with its 95 % interval."""
    from matplotlib.figure import Figure

    found = results("demo.json")["demo"]
    base, tuned = (found["contestants"][name] for name in ("base", "tuned"))
    kinds = {"all problems": (base["accuracy"], tuned["accuracy"], found["num_problems"])}
    for kind, before in base["by"]["subject"].items():
        kinds[kind] = (before, tuned["by"]["subject"][kind], before["total"])
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.subplots()
    for place, (name, colour) in enumerate((("base", "0.65"), ("tuned", "tab:green"))):
        shares = [pair[place] for pair in kinds.values()]
        values = [100 * one["value"] for one in shares]
        below = [value - 100 * one["low"] for value, one in zip(values, shares, strict=True)]
        above = [100 * one["high"] - value for value, one in zip(values, shares, strict=True)]
        heights = [i + 0.4 * place - 0.2 for i in range(len(kinds))]
        axes.barh(heights, values, 0.36, xerr=[below, above], color=colour, label=name,
                  error_kw={"elinewidth": 1, "capsize": 2, "ecolor": "0.25"})  # fmt: skip
    axes.set_yticks(range(len(kinds)), [f"{kind} ({pair[2]})" for kind, pair in kinds.items()])
    axes.invert_yaxis()
    axes.set(xlim=(0, 100), xlabel="exact answers to problems that neither has seen, % (95 % intervals)")
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper right", ncols=2, frameon=False, fontsize=9)
    figure.savefig(path, dpi=110, metadata=metadata)


def draw_benchmarks(path: Path, metadata: Mapping[str, str]) -> None:
    """Speed against memory."""
    from benchmarks.figure import draw_all

    draw_all(path, metadata)


def draw_scaling(path: Path, metadata: Mapping[str, str]) -> None:
    """What more machines bring."""
    from benchmarks.scaling_figure import draw

    draw(path, results("scaling.json")["predicted"], metadata)


PICTURES: dict[str, tuple[Mapping[str, str], Callable[[Path, Mapping[str, str]], None]]] = {
    "demo.png": ({"demo.json": "demo"}, draw_demo),
    "benchmarks.png": ({"train.json": "shapes", "grpo.json": "shapes"}, draw_benchmarks),
    "scaling.png": ({"scaling.json": "predicted"}, draw_scaling),
}
"""Of each picture in docs/: the parts of results that it shows, and what draws it."""


def checksum(parts: Mapping[str, str]) -> str:
    """Of the parts of results that a picture shows."""
    values = [look_up(file, path) for file, path in parts.items()]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def stale_pictures() -> list[str]:
    """The pictures that were drawn from other figures."""
    from PIL import Image

    found = []
    for name, (parts, _) in PICTURES.items():
        drawn_from = None
        if (DOCS / name).exists():
            with Image.open(DOCS / name) as image:
                drawn_from = image.info.get(CHECKSUM)
        if drawn_from != checksum(parts):
            found.append(name)
    return found


if __name__ == "__main__":
    sys.exit(main())
