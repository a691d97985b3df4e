"""Write a paper's tables, figures and statement into a folder."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlxmath import __version__
from mlxmath.config.load import RUN_FILE
from mlxmath.errors import InputError
from mlxmath.evaluation.plots import COLORS, plain, save
from mlxmath.papers import latex
from mlxmath.papers.facts import Facts, RunFacts, data_of, hashes_of, read_facts
from mlxmath.papers.tables import Table, tables_of
from mlxmath.runtime.console import say
from mlxmath.runtime.files import atomic_write, remove
from mlxmath.runtime.locks import locked
from mlxmath.runtime.markdown import cell, code
from mlxmath.runtime.sealed import sealed_json, unsealed_json
from mlxmath.sweeps.plan import ADAPTERS
from mlxmath.sweeps.report import curves
from mlxmath.training.event_file import EVENTS, SMOOTHED, number, read_events

TABLES, FIGURES, DOCUMENT, MARKDOWN, REPRODUCE = "tables", "figures", "paper.tex", "paper.md", "reproduce.tex"
WRITTEN = "paper.json"
"""Names what was written, which the next call replaces; nothing else in the folder is touched."""
Statement = tuple[str, list[tuple[str, str, bool]]]
"""Of what, and (name, value, whether the value is a command)."""


def write_paper(folders: Sequence[Path], out: Path) -> list[Path]:
    """Write tables, figures and the statement.

    Args:
        folders: of runs, evaluations and sweeps.
        out: where; what an earlier call wrote there is replaced.

    Returns:
        The files.

    Raises:
        InputError: a folder holds none of them, or `out` files of others under these names.
        MlxmathError: a file is damaged, or `out` cannot be written.
    """
    facts = read_facts(folders)
    with locked(out, "--out", "mlxmath paper"):
        tables, figures, statements = tables_of(facts), figures_of(facts), statements_of(facts)
        _make_room(out, [
            *(f"{TABLES}/{table.label}.{kind}" for table in tables for kind in ("tex", "md")),
            *(f"{FIGURES}/{name}.pdf" for name in figures), f"{FIGURES}/figures.tex", DOCUMENT, MARKDOWN, REPRODUCE,
        ])  # fmt: skip
        written = []

        def write(name: str, text: str) -> None:
            atomic_write(out / name, text)
            written.append(out / name)

        for table in tables:
            text = latex.table(table.heads, table.rows, table.caption, table.label, columns=table.columns)
            write(f"{TABLES}/{table.label}.tex", text)
            write(f"{TABLES}/{table.label}.md", _markdown(table))
        for name, (_, drawn) in figures.items():
            save(drawn, out / FIGURES / f"{name}.pdf")
            written.append(out / FIGURES / f"{name}.pdf")
        pictures = [latex.figure(f"{FIGURES}/{name}.pdf", caption, name) for name, (caption, _) in figures.items()]
        write(f"{FIGURES}/figures.tex", "\n".join(pictures))
        write(REPRODUCE, _statements_tex(statements))
        parts = [f"{TABLES}/{table.label}.tex" for table in tables]
        write(DOCUMENT, latex.document("Tables and figures", [*parts, f"{FIGURES}/figures.tex", REPRODUCE]))
        write(MARKDOWN, _document_md(tables, figures, statements))
    say(f"{len(tables)} tables, {len(figures)} figures: {out / DOCUMENT} has all of them, {out / MARKDOWN} in Markdown")
    return written


def _make_room(out: Path, names: Sequence[str]) -> None:
    """Remove what an earlier call wrote, and note what this one is about to write.

    Raises:
        InputError: a file of others has one of the names.
    """
    listed = unsealed_json(out / WRITTEN, ()).get("files") if (out / WRITTEN).exists() else []
    known = {DOCUMENT, MARKDOWN, REPRODUCE, *(name for name in listed if _is_inside(name))} if listed else set()
    if other := [name for name in names if name not in known and (out / name).exists()]:
        raise InputError(f"--out: {out / other[0]} is there and was not written by this command; give another.")
    for name in known:
        remove(out / name)
    sealed_json(out / WRITTEN, {"files": list(names)})


def _is_inside(name: Any) -> bool:
    folder, _, own = str(name).partition("/")
    return folder in (TABLES, FIGURES) and own == Path(own).name and own not in ("", "..")


def figures_of(facts: Facts) -> dict[str, tuple[str, Any]]:
    """Caption and figure by the name of the file."""
    found: dict[str, tuple[str, Any]] = {}
    if any(run.state.history or _losses(run) for run in facts.runs) and len(facts.runs) <= len(COLORS):
        found["training"] = ("Training loss, smoothed (thin), and held-out values (marked).", _training(facts.runs))
    for place, (name, _, results) in enumerate(facts.evaluations, 1):
        found[_named("accuracy", place, facts.evaluations)] = (
            f"Accuracy with its 95 % interval (evaluation {name}).", _accuracy(results)
        )  # fmt: skip
    for place, (name, _, results) in enumerate(facts.sweeps, 1):
        found[_named("sweep", place, facts.sweeps)] = (
            f"Held-out values of the runs over their steps (sweep {name}).", curves(results)
        )  # fmt: skip
    return found


def _named(name: str, place: int, of: Sequence[Any]) -> str:
    return name if len(of) == 1 else f"{name}-{place}"


def _losses(run: RunFacts) -> list[tuple[int, float]]:
    events = (event for event in read_events(run.folder / EVENTS) if event["event"] == "step")
    return [(event["step"], value) for event in events if (value := number(event.get(f"{SMOOTHED}loss"))) is not None]


def _training(runs: Sequence[RunFacts]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5, 3.6), layout="constrained")
    axes = figure.subplots()
    for run, color in zip(runs, COLORS, strict=False):
        if losses := _losses(run):
            axes.plot(*zip(*losses, strict=True), color=color, linewidth=0.8, alpha=0.6)
        if run.state.history:
            axes.plot(*zip(*run.state.history, strict=True), color=color, marker="o", markersize=3, linewidth=1.6)
        axes.plot([], [], color=color, linewidth=1.6, label=plain(run.name))
    metrics = {run.state.metric for run in runs if run.state.metric}
    axes.set(xlabel="optimizer step", ylabel=" and ".join(sorted({"loss", *metrics})))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return figure


def _accuracy(results: dict[str, Any]) -> Any:
    from matplotlib.figure import Figure

    contestants = results["contestants"]
    figure = Figure(figsize=(6.5, 1 + 0.4 * len(contestants)), layout="constrained")
    axes = figure.subplots()
    for place, one in enumerate(contestants.values()):
        found, color = one["accuracy"], COLORS[place % len(COLORS)]
        axes.plot([100 * found["low"], 100 * found["high"]], [place, place], color=color, linewidth=2)
        axes.plot([100 * found["value"]], [place], "o", color=color)
    axes.set_yticks(range(len(contestants)), map(plain, contestants))
    axes.set(xlabel="accuracy in %, with its 95 % interval", ylim=(len(contestants) - 0.5, -0.5), xlim=(-2, 102))
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def statements_of(facts: Facts) -> list[Statement]:
    """How to make each again."""
    found: list[Statement] = []
    swept = {
        (folder / ADAPTERS / Path(str(run["folder"])).name).resolve(): run["commands"]  # wherever it was made
        for _, folder, results in facts.sweeps
        for one in results["configurations"] for run in one["runs"]
    }  # fmt: skip
    for run in facts.runs:
        lines = [("command", each, True) for each in _commands(run, swept.get(run.folder.resolve()))]
        if not lines:
            lines.append(("command", f"not recorded by the version that made it; {RUN_FILE} has its settings", False))
        lines.append(("seed", str(run.told("config", "training", "seed")), False))
        versions = run.told("versions")
        told = versions if isinstance(versions, dict) else {"mlxmath": run.told("mlxmath")}
        lines.append(("versions", ", ".join(f"{name} {value}" for name, value in told.items()), False))
        lines.append(("device", f"{run.told('device', 'device')}, {run.told('device', 'compute_dtype')}", False))
        lines += [("data", line, False) for line in data_of(run)]
        lines += [(name, value, True) for name, value in hashes_of(run).items()]
        found.append((f"Run {run.name}", lines))
    for name, _, results in facts.evaluations:
        settings = results["settings"]
        lines = [
            ("benchmark", f"{one['name']}: {one['num_problems']:,} problems, revision {one['revision']}, hash "
             f"{one['problems']}", False) for one in settings["benchmarks"]
        ]  # fmt: skip
        lines += [
            ("model", f"{one['label']}: model {one['model']}, adapter {one['adapter']}, template "
             f"{one.get('asked_in', settings['template'])}", False) for one in settings["contestants"]
        ]  # fmt: skip
        drawn = f"temperature {settings['temperature']:g}, {settings['samples']} a problem, seed {settings['seed']}"
        lines.append(("answers", drawn if settings["temperature"] else "greedy, one a problem", False))
        lines.append(("versions", f"mlxmath {settings['mlxmath']}", False))
        found.append((f"Evaluation {name}", lines))
    return found


def _commands(run: RunFacts, swept: Sequence[str] | None) -> list[str]:
    """What makes the run again: that of the sweep, or its method with its own run.toml."""
    if swept:
        return [str(command) for command in swept]
    method = run.told("method")
    if not isinstance(method, str):
        return []
    return [shlex.join(["mlxmath", method, "--config", f"{run.name}/{RUN_FILE}", "--adapter-path", "again"])]


def _statements_tex(statements: Sequence[Statement]) -> str:
    lines = [r"\clearpage", r"\section*{How to reproduce}", r"\begin{flushleft}\small"]
    for what, facts in statements:
        lines.append(rf"\textbf{{{latex.escaped(what)}}}\\")
        for name, value, is_code in facts:
            shown = latex.code(value) if is_code else latex.escaped(value)
            lines.append(rf"{latex.escaped(name)}: {shown}\\")
        lines.append(r"\medskip")
    told = latex.escaped(f"Written by mlxmath {__version__} from what the runs recorded.")
    return "\n".join([*lines, told, r"\end{flushleft}", ""])


def _markdown(table: Table) -> str:
    numbers = "---|" + ("---|" if table.columns else "---:|") * (len(table.heads) - 1)
    rows = ["| " + " | ".join(map(cell, row)) + " |" for row in (table.heads, *table.rows)]
    return "\n".join([f"**{cell(table.caption)}**", "", rows[0], f"|{numbers}", *rows[1:], ""])


def _document_md(tables: Sequence[Table], figures: dict[str, tuple[str, Any]], statements: Sequence[Statement]) -> str:
    parts = ["# Tables and figures\n", *map(_markdown, tables)]
    parts += [f"- [{cell(caption)}]({FIGURES}/{name}.pdf)\n" for name, (caption, _) in figures.items()]
    parts.append("## How to reproduce\n")
    for what, facts in statements:
        lines = [f"- {cell(name)}: {code(value) if is_code else cell(value)}" for name, value, is_code in facts]
        parts.append("\n".join([f"### {cell(what)}\n", *lines, ""]))
    return "\n".join(parts)
