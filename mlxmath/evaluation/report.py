"""An evaluation's report out of its samples: one view of the results, shown on the terminal, a page, a model card."""

import base64
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median_high
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from rich.console import Console
from rich.table import Column, Table

from mlxmath.errors import MlxmathError
from mlxmath.evaluation import wording
from mlxmath.evaluation.latex import answer_to_html, to_html
from mlxmath.evaluation.paired import OUTCOMES, outcome
from mlxmath.evaluation.plots import write_plots
from mlxmath.evaluation.samples import SAMPLES, Sample, fingerprints_of, read_samples, read_settings, save_samples
from mlxmath.evaluation.score import CATEGORIES, Scored, collect, results
from mlxmath.evaluation.wording import SOUNDNESS, each, interval, p_value, percent, points, sentence, soundness
from mlxmath.grading import grade_many
from mlxmath.runtime.console import harmless, is_shown, printable, say
from mlxmath.runtime.files import atomic_write
from mlxmath.runtime.markdown import cell
from mlxmath.runtime.sealed import sealed_json

_FOLDER = Path(__file__).with_name("page")
_MOST_SHOWN = 20_000
"""Characters of an answer on the page."""
_NUM_BINS = 30


def write_report(folder: Path, *, regrade: bool = False) -> dict[str, Any]:
    """Score the samples in `folder`, write all files there and print the summary.

    Returns:
        What results.json holds.

    Raises:
        MlxmathError: there are no complete answers.
    """
    settings = read_settings(folder)
    samples, left_out = read_samples(folder, fingerprints_of(settings))
    if left_out:
        say(f"{folder}: {left_out} lines that are damaged or belong to another evaluation are left out")
    if regrade:
        samples = _graded(samples)
        save_samples(folder / SAMPLES, samples)
    scored = collect(samples, [one["label"] for one in settings["contestants"]], settings["samples"])
    if not scored.problems:
        raise MlxmathError(
            f"{folder} holds no problem that every model has answered; go on with `mlxmath evaluate --resume`."
        )
    found = results(scored, settings)
    view = view_of(found, scored, datetime.now(UTC))
    sealed_json(folder / "results.json", found)
    atomic_write(folder / "model_card.md", card(view))
    write_plots(found, folder)
    atomic_write(folder / "report.html", page(view))
    show(view)
    say(f"report: {folder / 'report.html'}")
    return found


def _graded(samples: Sequence[Sample]) -> list[Sample]:
    grades = grade_many(
        [(s.response, s.gold) for s in samples], truncated=[s.finish_reason == "length" for s in samples]
    )
    return [
        replace(s, correct=g.correct, extracted=g.extracted, rule=g.rule, truncated=g.truncated)
        for s, g in zip(samples, grades, strict=True)
    ]


def view_of(results: Mapping[str, Any], scored: Scored, now: datetime) -> dict[str, Any]:
    """What is shown anywhere: results.json, and beside it each table in words, how it was measured, each problem."""
    settings, contestants, comparisons = results["settings"], results["contestants"], results["comparisons"]
    names = [benchmark["name"] for benchmark in settings["benchmarks"]]
    cut_off = ", ".join(f"{label} {found['cut_off']:,}" for label, found in contestants.items())
    asked_in, limits, shots = wording.asked_in(settings), wording.limits(settings), settings["shots"]
    shown = {"standard": "the standard examples"}.get(few_shot := settings.get("few_shot"), f"examples of {few_shot}")
    examples = shown if few_shot else f"{shots} worked examples" if shots else "zero-shot"
    drawn = f"at temperature {settings['temperature']:g}, seed {settings['seed']}" if settings["temperature"] else ""
    how = {
        "problems": f"{results['num_problems']:,} of {', '.join(names)}",
        "prompt": f"{asked_in}; {examples}",
        "answers": f"{settings['samples']} a problem {drawn}" if drawn else "greedy, one a problem",
        "longest answer": limits,
        "cut off there": cut_off,
        "decoded": each(settings.get("decoding", {}), "{0} {1}", "; "),
        "varied": settings.get("perturb") and f"{settings['perturb']}, seed {settings['seed']}",
        "formulas": settings["retrieve"] and f"retrieved from {settings['retrieve']}",
        "device": f"{settings['device']['name']}, {settings['device']['dtype']}",
        "made": f"{now:%Y-%m-%d %H:%M} UTC with mlxmath {settings['mlxmath']}",
    }
    for one in settings["contestants"]:
        adapter = one.get("adapter_folder", one.get("adapter"))
        how[one["label"]] = (
            f"{one.get('folder', one.get('model'))}{f' with {adapter}' if adapter else ''}, "
            f"template {wording.templates(settings)[one['label']]}"
        )
    told = [
        f"{', '.join(names)} ({results['num_problems']:,} problems)",
        examples if few_shot else f"{shots}-shot" if shots else "zero-shot",
        settings["retrieve"] and f"formulas from {settings['retrieve']}",
        asked_in,
        f"{settings['samples']} samples {drawn}" if drawn else "greedy",
        limits,
        f"answers cut off: {cut_off}",
        f"mlxmath {settings['mlxmath']}",
    ]
    several = {label: found for label, found in contestants.items() if "pass_at" in found}
    series = [
        (f"{label} {name}@k", found[f"{name}_at"], i, name == "maj")
        for i, (label, found) in enumerate(several.items())
        for name in ("pass", "maj")
    ]
    tokens = {
        label: [sample.completion_tokens for answer in own.values() for sample in answer.samples]
        for label, own in scored.answers.items()
    }
    longest = max(map(max, tokens.values()))
    compared = [*comparisons, *results["votes"]]

    def category(sample: Sample) -> str:
        return scored.measures[sample.key].category

    return {
        **results,
        "ensemble": results.get("ensemble"),
        "names": ", ".join(names),
        "how": how,
        "how_in_brief": [text for text in told if text],
        "reach": max([0.02, *(max(abs(c["low"]), abs(c["high"])) for c in compared)]),
        "differences": [
            [f"{c['other']} − {c['base']}", points(c["difference"]), p_value(c["p_value"]),
             *(f"{c['outcomes'][name]:,}" for name in OUTCOMES)]
            for c in compared
        ],
        "by_group": [
            {grouping: [
                [value, points(c["difference"]), f"{points(c['low'])} to {points(c['high'])}", p_value(c["p_value"]),
                 c["fixed"], c["broken"]] for value, c in values.items()
            ] for grouping, values in comparison["by"].items()}
            for comparison in comparisons
        ],
        "series": series,
        "shares_heads": ["", *(f"k = {k}" for _, values, *_ in series[:1] for k in values)],
        "shares": [[name, *map(percent, values.values())] for name, values, *_ in series],
        "soundness": [[label, *soundness(found)] for label, found in contestants.items()],
        "longest": longest,
        "lengths": {label: (_bins(counts, longest), median_high(counts)) for label, counts in tokens.items()},
        "speeds": [
            [label, f"{found['tokens']['mean']:,.0f}", f"{found['tokens']['total']:,}", f"{found['prompt_tokens']:,}",
             f"{found['seconds']:,.1f} s",
             "–" if found["tokens_per_second"] is None else f"{found['tokens_per_second']:,.0f}"]
            for label, found in contestants.items()
        ],
        "problems": [
            (i, answers := {label: own[i] for label, own in scored.answers.items()},
             sorted({category(sample) for answer in answers.values() for sample in answer.samples}))
            for i in scored.problems
        ],
        "category": category,
    }  # fmt: skip


def _bins(counts: Sequence[int], longest: int) -> list[int]:
    """How many lie in each of equal parts from 0 to `longest`."""
    found = Counter(min(_NUM_BINS - 1, count * _NUM_BINS // max(1, longest)) for count in counts)
    return [found[i] for i in range(_NUM_BINS)]


def page(view: Mapping[str, Any]) -> str:
    """report.html: one file, no network, readable on a phone and in the dark."""
    style, script = _parts()
    return (
        _environment(autoescape=True)
        .get_template("report.html")
        .render(view, style=style, script=script, policy=policy())
    )


def policy() -> str:
    """The page's content security policy: its own script and style, by their hashes, and nothing from elsewhere."""
    style, script = map(_hash, _parts())
    return (
        f"default-src 'none'; style-src '{style}'; script-src '{script}'; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )


def _parts() -> tuple[str, str]:
    style, script = ((_FOLDER / f"report.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    return style, script


def card(view: Mapping[str, Any]) -> str:
    """model_card.md: a table of all contestants, a sentence for each comparison, and how it was measured."""
    contestants = view["contestants"]
    names = [benchmark["name"] for benchmark in view["settings"]["benchmarks"]]
    if len(names) == 1 or any("benchmark" not in found["by"] for found in contestants.values()):
        names = []
    rows = [
        [label, *(percent(found["by"]["benchmark"][name]["value"]) for name in names),
         percent(found["accuracy"]["value"]), interval(found["accuracy"]), *soundness(found),
         f"{found['tokens']['mean']:.0f}"]
        for label, found in contestants.items()
    ]  # fmt: skip
    if ensemble := view["ensemble"]:
        accuracy, gaps = ensemble["accuracy"], ["–"] * (len(SOUNDNESS) + 1)
        rows.append(["ensemble", *["–"] * len(names), percent(accuracy["value"]), interval(accuracy), *gaps])
    heads = ["model", *names, "accuracy", "95 % interval", *SOUNDNESS, "tokens"]
    return _environment().get_template("model_card.md").render(view, heads=heads, rows=rows)


def _environment(*, autoescape: bool = False) -> Environment:
    found = Environment(
        loader=FileSystemLoader(_FOLDER), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True, autoescape=autoescape, finalize=_shown,
    )  # fmt: skip
    found.filters |= {
        "percent": percent, "points": points, "interval": interval, "commas": "{:,}".format, "tex": to_html,
        "answer": answer_to_html, "cell": cell,
    }  # fmt: skip
    found.globals |= {
        "verdict": wording.verdict, "evidence": wording.evidence, "sentence": sentence, "outcome": outcome,
        "categories": CATEGORIES, "outcomes": list(OUTCOMES), "soundness_heads": list(SOUNDNESS),
        "most_shown": _MOST_SHOWN,
    }  # fmt: skip
    return found


def _shown(value: Any) -> Any:
    """A value as it is shown: text of others without control characters and what turns the direction of text."""
    return harmless(value) if type(value) is str else value


def _hash(text: str) -> str:
    """What a content security policy calls a script or a style by."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def show(view: Mapping[str, Any]) -> None:
    """Print accuracy, soundness, comparisons and, with several answers, what voting brings; in a library nothing."""
    if not is_shown():
        return
    console, contestants = Console(stderr=True, markup=False, emoji=False), view["contestants"]
    templates, several = wording.templates(view["settings"]), bool(view["series"])
    rows = [
        [label, templates[label], percent(found["accuracy"]["value"]), interval(found["accuracy"]),
         *([percent(found["majority"]["value"])] if several else ()), str(found["cut_off"]),
         f"{found['tokens']['mean']:,.0f}",
         "-" if found["tokens_per_second"] is None else f"{found['tokens_per_second']:,.0f}"]
        for label, found in contestants.items()
    ]  # fmt: skip
    if ensemble := view["ensemble"]:
        row = ["ensemble", "-", percent(ensemble["accuracy"]["value"]), interval(ensemble["accuracy"])]
        rows.append([*row, *["-"] * (len(rows[0]) - len(row))])
    heads = ("accuracy", "95 % interval", *(("majority",) if several else ()), "cut off", "tokens", "tok/s")
    console.print(_table(f"{view['num_problems']:,} problems", ("model", "template"), heads, rows))
    console.print(_table("soundness, in how many answers", ("model",), SOUNDNESS, view["soundness"]))
    for comparison in view["comparisons"]:
        console.print(printable(sentence(comparison)), highlight=False)
        names = comparison["base"], comparison["other"]
        for grouping, values in comparison["by"].items():
            rows = [
                [value, *(percent(contestants[name]["by"][grouping][value]["value"]) for name in names),
                 points(found["difference"]), str(found["fixed"]), str(found["broken"])]
                for value, found in values.items()
            ]  # fmt: skip
            console.print(_table(f"by {grouping}", (grouping,), (*names, "difference", "fixed", "broken"), rows))
    for vote in view["votes"]:
        console.print(printable(sentence(vote)), highlight=False)


def _table(title: str, texts: Sequence[str], figures: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    right = [Column(printable(name), justify="right") for name in figures]
    table = Table(*map(printable, texts), *right, title=title, title_justify="left")
    for row in rows:
        table.add_row(*map(printable, row))
    return table
