"""Builds report.html: one file, no network, readable on a phone and in the dark."""

import base64
import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from mlxmath.evaluation.measures import CATEGORIES
from mlxmath.evaluation.score import OUTCOMES, Answers, Scored, outcome
from mlxmath.evaluation.web.figures import figures
from mlxmath.evaluation.web.latex import formula, to_html
from mlxmath.evaluation.wording import asked_in, cut_off, evidence, interval, limits, percent, templates, verdict
from mlxmath.runtime.files import atomic_write

_FOLDER = Path(__file__).parent
_LONGEST_SHOWN = 20_000


def write_page(path: Path, results: Mapping[str, Any], scored: Scored) -> None:
    """Write the page to `path` in one step."""
    atomic_write(path, page(results, scored, datetime.now(UTC)))


def page(results: Mapping[str, Any], scored: Scored, now: datetime) -> str:
    """The whole page."""
    style = (_FOLDER / "report.css").read_text(encoding="utf-8")
    script = (_FOLDER / "report.js").read_text(encoding="utf-8")
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    names = ", ".join(benchmark["name"] for benchmark in results["settings"]["benchmarks"])
    body = "".join([*_summary(results, names, now), *figures(results, scored), *_explorer(results, scored)])
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<title>{escape(names)} · mlxmath evaluation</title><style>{style}</style></head>"
        f"<body>{body}<script>{script}</script></body></html>\n"
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _summary(results: Mapping[str, Any], names: str, now: datetime) -> Iterator[str]:
    settings, comparisons = results["settings"], results["comparisons"]
    contestants = results["contestants"]
    yield f'<header><p class="eyebrow">mlxmath evaluation · {escape(names)}</p>'
    if comparisons:
        best = max(comparisons, key=lambda comparison: comparison["difference"])
        title = verdict(best)
        yield f"<h1>{escape(title[0].upper() + title[1:])}</h1><p class='lead'>{escape(evidence(best))}.</p>"
    else:
        label, found = next(iter(contestants.items()))
        yield f"<h1>{escape(label)}: {percent(found['accuracy']['value'])}</h1>"
        yield f"<p class='lead'>95 % interval {interval(found['accuracy'])}, {results['num_problems']:,} problems.</p>"
    yield '</header><main><section class="cards">'
    for label, found in contestants.items():
        accuracy = found["accuracy"]
        yield _card(label, percent(accuracy["value"]), f"{accuracy['right']:,.4g} of {accuracy['total']:,} right")
    if ensemble := results.get("ensemble"):
        weights = ", ".join(f"{label} {weight:.2f}" for label, weight in ensemble["weights"].items())
        yield _card("ensemble", percent(ensemble["accuracy"]["value"]), f"{ensemble['vote']} vote: {weights}")
    for comparison in comparisons[:1]:
        yield _card("fixed", f"{comparison['fixed']:,}", "wrong before, right now", "good")
        yield _card(
            "broken", f"{comparison['broken']:,}", "right before, wrong now", "bad" if comparison["broken"] else ""
        )
    yield "</section>"
    how = {
        "problems": f"{results['num_problems']:,} of {names}",
        "prompt": f"{asked_in(settings)}; "
        + (f"{settings['shots']} worked examples" if settings["shots"] else "zero-shot"),
        "answers": "greedy, one a problem" if not settings["temperature"] else
        f"{settings['samples']} a problem at temperature {settings['temperature']:g}, seed {settings['seed']}",
        "longest answer": limits(settings),
        "cut off there": cut_off(results).partition(": ")[2],
        "decoded": _decoding(settings),
        "formulas": settings["retrieve"] and "retrieved from " + settings["retrieve"],
        "device": f"{settings['device']['name']}, {settings['device']['dtype']}",
        "made": f"{now:%Y-%m-%d %H:%M} UTC with mlxmath {settings['mlxmath']}",
    }  # fmt: skip
    for contestant in settings["contestants"]:
        folder = contestant.get("folder", contestant.get("model"))
        adapter = contestant.get("adapter_folder", contestant.get("adapter"))
        how[contestant["label"]] = (
            f"{folder}{f' with {adapter}' if adapter else ''}, template {templates(settings)[contestant['label']]}"
        )
    items = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in how.items() if v)
    yield f'<details class="how"><summary>How this was measured</summary><dl>{items}</dl></details>'


def _decoding(settings: Mapping[str, Any]) -> str:
    """How many answers were decoded together."""
    found: dict[str, str] = settings.get("decoding", {})
    if len(set(found.values())) == 1:
        return next(iter(found.values()))
    return "; ".join(f"{label} {how}" for label, how in found.items())


def _card(name: str, figure: str, note: str, kind: str = "") -> str:
    return (
        f'<div class="card {kind}"><h2>{escape(name)}</h2><p class="figure">{escape(figure)}</p>'
        f"<p>{escape(note)}</p></div>"
    )


def _explorer(results: Mapping[str, Any], scored: Scored) -> Iterator[str]:
    labels = list(scored.answers)
    pairs = [(comparison["base"], comparison["other"]) for comparison in results["comparisons"]]
    yield '<section id="explorer"><h2>Every problem</h2><div class="filters" role="search">'
    names = ["all", *OUTCOMES] if pairs else ["all", "right", "wrong"]
    yield '<div class="chips">' + "".join(
        f'<button type="button" data-outcome="{name}" aria-pressed="false">{name} <b></b></button>' for name in names
    )
    yield "</div>"
    if len(pairs) > 1:
        options = "".join(
            f'<option value="{i}">{escape(base)} to {escape(other)}</option>' for i, (base, other) in enumerate(pairs)
        )
        yield f'<label>From <select id="pair">{options}</select></label>'
    kinds = "".join(f'<option value="{key}">{escape(name)}</option>' for key, name in CATEGORIES.items())
    yield f'<label>An answer ended as <select id="category"><option value="">anything</option>{kinds}</select></label>'
    for name in ("benchmark", "level", "subject"):
        if name in results["contestants"][labels[0]]["by"]:
            values = "".join(
                f'<option value="{escape(value)}">{escape(value)}</option>'
                for value in results["contestants"][labels[0]]["by"][name]
            )
            yield f'<label>{name} <select data-group="{name}"><option value="">any</option>{values}</select></label>'
    yield '<label class="search">Search <input type="search" id="search" placeholder="words to look for"></label>'
    yield '</div><p id="count" aria-live="polite"></p><div id="problems">'
    for problem in scored.problems:
        yield _problem(problem, scored, labels, pairs)
    yield '</div><p id="none" hidden>No problem fits these filters.</p></section></main>'


def _problem(problem: str, scored: Scored, labels: list[str], pairs: list[tuple[str, str]]) -> str:
    answers = {label: scored.answers[label][problem] for label in labels}
    first = answers[labels[0]]
    shown = first.shown
    if pairs:
        outcomes = [outcome(answers[base].right, answers[other].right) for base, other in pairs]
    else:
        outcomes = ["right" if first.right else "wrong"]
    kinds = {scored.measures[sample.key].category for answer in answers.values() for sample in answer.samples}
    marks = "".join(
        f'<span class="mark {"yes" if answer.right else "no"}" title="{escape(label)}">'
        f"{'✓' if answer.right else '✗'}</span>"
        for label, answer in answers.items()
    )
    line = " ".join(shown.question.split())
    line = line if len(line) <= 140 else line[:139] + "…"
    groups = "".join(
        f' data-{name}="{escape(value)}"'
        for name, value in (("benchmark", shown.benchmark), ("level", shown.level), ("subject", shown.subject))
        if value is not None
    )
    sides = "".join(_side(label, answer, scored) for label, answer in answers.items())
    solution = ""
    if shown.solution:
        solution = (
            f'<details class="solution"><summary>reference solution</summary><div class="text">'
            f"{to_html(shown.solution[:_LONGEST_SHOWN])}</div></details>"
        )
    return (
        f'<details class="problem" data-outcomes="{escape("|".join(outcomes))}" data-kinds="{" ".join(sorted(kinds))}"'
        f'{groups}><summary><span class="marks">{marks}</span><span class="line">{to_html(line)}</span>'
        f'<span class="id">{escape(problem)}</span></summary>'
        f'<div class="question text">{to_html(shown.question)}</div>'
        f'<p class="gold">right answer <b>{_math(shown.gold)}</b></p>{solution}'
        f'<div class="sides">{sides}</div></details>'
    )


def _side(label: str, answer: Answers, scored: Scored) -> str:
    sample = answer.shown
    category = CATEGORIES[scored.measures[sample.key].category]
    said = _math(sample.extracted) if sample.extracted is not None else "none"
    several = ""
    if len(answer.samples) > 1:
        counts = Counter("no answer" if s.extracted is None else s.extracted for s in answer.samples)
        listed = ", ".join(f"{_math(text)} ×{n}" for text, n in counts.most_common(6))
        right = sum(s.correct for s in answer.samples)
        several = f'<p class="note">{right} of {len(answer.samples)} right: {listed}</p>'
    cut = "<p class='note'>… (not shown to its end)</p>" if len(sample.response) > _LONGEST_SHOWN else ""
    return (
        f'<article class="side {"yes" if answer.right else "no"}"><h4>{escape(label)} '
        f'<span class="mark {"yes" if answer.right else "no"}">{"✓ right" if answer.right else "✗ " + escape(category)}'
        f"</span></h4><p class='note'>answer <b>{said}</b> · {sample.completion_tokens:,} tokens</p>{several}"
        f'<div class="text">{to_html(sample.response[:_LONGEST_SHOWN].strip())}</div>{cut}</article>'
    )


def _math(text: str) -> str:
    """A final answer: a formula if it looks like one, else text."""
    if "\\" in text or "^" in text or "_" in text:
        return formula(text.strip().strip("$")) or escape(text)
    return escape(text)
