"""Puts what benchmarks/results/*.json say into README.md, docs/ and examples/: numbers, tables and pictures.

    python tools/figures.py            # after a benchmark was run again
    python tools/figures.py --check    # exits with 1 where a page or a picture is not what the JSON says

A number stands between `<!-- figure: FILE PATH | FORMAT -->` and `<!-- / -->`. PATH leads through the JSON, its parts
divided by `/`: a key, a place in a list, or `key=value` for the one element of a list that has it; or FILE is
`derived` and PATH one of `DERIVED`. FORMAT is Python's for a number, and a unit of `UNITS`, or `interval` for an object
with `low` and `high`. A table stands between `<!-- table: NAME -->` and `<!-- / -->`, NAME being one of `TABLES`.
Pictures are those of `PICTURES`; each carries a checksum of the figures that it shows.
"""

import argparse
import hashlib
import json
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY))

from tools.tables import TABLES, results, shown

DOCS, EXAMPLES = REPOSITORY / "docs", REPOSITORY / "examples"
FIGURE = re.compile(r"(<!-- figure: (\S+) ([^|]+?) \| ([^|]+?) -->)(.*?)(<!-- / -->)", re.DOTALL)
TABLE = re.compile(r"(<!-- table: (\S+) -->\n)(.*?)(<!-- / -->)", re.DOTALL)
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
    """README and the pages of docs/ and examples/, with the text that each should have."""
    for path in (REPOSITORY / "README.md", *sorted(DOCS.glob("*.md")), *sorted(EXAMPLES.glob("*.md"))):
        text = path.read_text(encoding="utf-8")
        if begins := re.search(r"^ {0,3}<!-- figure.*", text, re.MULTILINE):
            sys.exit(f"{path.relative_to(REPOSITORY)}: a line that begins with a comment is no text: {begins[0]}")
        try:
            text = FIGURE.sub(lambda m: f"{m[1]}{shown(look_up(m[2], m[3]), m[4])}{m[6]}", text)
            yield path, TABLE.sub(lambda m: f"{m[1]}{TABLES[m[2]]()}\n{m[4]}", text)
        except (LookupError, OSError, TypeError, ValueError) as error:
            sys.exit(f"{path.relative_to(REPOSITORY)}: {error}")


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


def draw_real_model(path: Path, metadata: Mapping[str, str]) -> None:
    """Losses, rewards and answers of SmolLM2's stages."""
    from benchmarks.real_model_pages import draw

    draw(path, results("real_model.json"), metadata)


PICTURES: dict[str, tuple[tuple[str, ...], Callable[[Path, Mapping[str, str]], None]]] = {
    "demo.png": (("demo.json demo",), draw_demo),
    "benchmarks.png": (("train.json shapes", "grpo.json shapes"), draw_benchmarks),
    "scaling.png": (("scaling.json predicted",), draw_scaling),
    "smollm2.png": (("real_model.json show/curves", "real_model.json test/contestants"), draw_real_model),
}
"""Of each picture in docs/: the parts of results that it shows (FILE PATH), and what draws it."""


def checksum(parts: Iterable[str]) -> str:
    """Of the parts of results that a picture shows."""
    values = [look_up(*part.split(" ", 1)) for part in parts]
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
