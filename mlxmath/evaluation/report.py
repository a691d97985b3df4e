"""An evaluation's report out of its samples: results.json, report.html, charts and the model card's table."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlxmath.errors import MlxmathError
from mlxmath.evaluation import card, terminal
from mlxmath.evaluation.plots import write_plots
from mlxmath.evaluation.samples import SAMPLES, Sample, read_samples, read_settings, save_samples
from mlxmath.evaluation.score import collect, results
from mlxmath.evaluation.web.page import write_page
from mlxmath.grading import grade_many
from mlxmath.runtime.console import say
from mlxmath.runtime.files import atomic_json, atomic_write


def write_report(folder: Path, *, regrade: bool = False) -> dict[str, Any]:
    """Score the samples in `folder`, write all files there and print the summary.

    Returns:
        What results.json holds.

    Raises:
        MlxmathError: there are no complete answers.
    """
    settings = read_settings(folder)
    fingerprints = {c["label"]: c["fingerprint"] for c in settings["contestants"]}
    samples, left_out = read_samples(folder, fingerprints)
    if left_out:
        say(f"{folder}: {left_out} lines that are damaged or belong to another evaluation are left out")
    if regrade:
        samples = _graded(samples)
        save_samples(folder / SAMPLES, samples)
    scored = collect(samples, list(fingerprints), settings["samples"])
    if not scored.problems:
        raise MlxmathError(
            f"{folder} holds no problem that every model has answered; go on with `mlxmath evaluate --resume`."
        )
    found = results(scored, settings)
    atomic_json(folder / "results.json", found)
    atomic_write(folder / "model_card.md", card.markdown(found))
    write_plots(found, folder)
    write_page(folder / "report.html", found, scored)
    terminal.show(found)
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
