"""Folders of answers to rate, ratings, and what a rater does with the pages."""

import html
import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from mlxmath.distillation.responses import Response, identify
from mlxmath.evaluation.samples import Sample, save_samples
from mlxmath.runtime.sealed import sealed_json, sealed_line
from mlxmath.studio.ratings import Rating
from tests.evaluation.make import sample, settings
from tests.helpers import json_lines

RUN = {"source": "evaluation_results/x", "rater": "Ann"}


def evaluation(
    folder: Path, num: int = 10, labels: tuple[str, ...] = ("base", "tuned"), samples: int = 1, **changes: Any
) -> Path:
    """An evaluation of `num` problems; of every second one the first model is right and the other wrong."""
    folder.mkdir(parents=True)
    made: list[Sample] = []
    for place, label in enumerate(labels):
        for number in range(num):
            for one in range(samples):
                answer = "1" if place == 0 and number % 2 == 0 else f"{2 + place + one}"
                text = f"We add in way {place}{one} to problem {number}.\nSo $x^{{{place}}} = {answer}$.\n#### {answer}"
                made.append(sample(label, number, answer, **{"sample": one, "response": text} | changes))
    sealed_json(folder / "settings.json", settings(*labels, samples=samples))
    save_samples(folder / "samples.jsonl", made)
    return folder


def distillation(folder: Path, num: int = 3, samples: int = 3, *, is_judged: bool = True) -> Path:
    """Solutions of a teacher, of which the first is right."""
    folder.mkdir(parents=True)
    identity = {"url": "http://localhost", "model": "a-teacher", "seed": 0}
    sealed_json(folder / "settings.json", {"format": 1, "identity": identity})
    own = identify(identity)
    made = [
        Response(own, f"key{number}", one, f"{number}", f"Problem {number}", "1", f"Way {one}. #### {one + 1}")
        for one in range(samples) for number in range(num)
    ]  # fmt: skip
    (folder / "responses.jsonl").write_bytes(b"".join(sealed_line(asdict(one)) for one in made))
    if is_judged:
        rows = [{"id": one.id, "sample": one.sample, "problem": one.problem, "solution": one.response,
                 "correct": one.sample == 0, "extracted": f"{one.sample + 1}"} for one in made]  # fmt: skip
        (folder / "solutions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def rating(
    number: int, verdict: str, rater: str = "a", *, is_swapped: bool = False,
    right: tuple[bool | None, bool | None] = (True, True), **changes: Any,
) -> Rating:  # fmt: skip
    """A rating of the answers of "base" and "tuned" to a problem; base is on the left unless it is swapped."""
    fields: dict[str, Any] = {
        "rater": rater, "time": "2026-01-02T03:04:05.000Z", "pair": f"pair{number}", "kind": "evaluation",
        "source": "evaluation_results/x", "benchmark": "b", "problem": f"b/{number}", "question": f"Question {number}",
        "gold": "1", "verdict": verdict, "comment": "", "gold_seen": False, "seconds": 3.0,
    }  # fmt: skip
    sides = ("right", "left") if is_swapped else ("left", "right")
    for side, label, correct in zip(sides, ("base", "tuned"), right, strict=True):
        fields |= {
            f"{side}_label": label, f"{side}_fingerprint": f"f-{label}", f"{side}_sample": 0,
            f"{side}_text": f"Answer of {label} to {number}.", f"{side}_correct": correct, f"{side}_wrong_step": None,
            f"{side}_wrong_text": "",
        }  # fmt: skip
    return Rating(**fields | changes)


def hidden(text: str) -> dict[str, str]:
    """The fields of a page's form for a verdict."""
    form = re.search(r'<form id="verdict".*?</form>', text, re.DOTALL)
    assert form, text
    found = re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', form[0])
    return {name: html.unescape(value) for name, value in found}


def solutions(text: str) -> tuple[str, str]:
    """What stands left and right."""
    found = re.findall(r'<fieldset class="panel solution">(.*?)</fieldset>', text, re.DOTALL)
    assert len(found) == 2
    return found[0], found[1]


def rate(client: TestClient, text: str, verdict: str, **more: str) -> str:
    """Send a verdict about the pair on a page; the next page."""
    answer = client.post("/rate/verdict", data=hidden(text) | {"verdict": verdict} | more)
    assert answer.status_code == 200, answer.text
    return answer.text


def begin(client: TestClient, **more: str) -> str:
    answer = client.get("/rate/next", params=RUN | more)
    assert answer.status_code == 200, answer.text
    return answer.text


def kept(folder: Path) -> list[dict[str, Any]]:
    return json_lines(folder / "studio" / "ratings.jsonl")
