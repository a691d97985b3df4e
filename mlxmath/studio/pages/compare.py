"""`/compare`: one question, several models, their answers side by side."""

import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from mlxmath.errors import MlxmathError
from mlxmath.evaluation.latex import answer_to_html, to_html
from mlxmath.runtime.console import harmless
from mlxmath.studio.answers import HOTTEST, MOST_TOKENS, Answer, Event, Given, Loading, answered, question
from mlxmath.studio.explorer import explorer
from mlxmath.studio.model_server import Server
from mlxmath.studio.place import Studio
from mlxmath.studio.questions import draw, sources
from mlxmath.studio.render import environment, render, studio_of
from mlxmath.studio.tuned import contestants

_MOST_SHOWN = 20_000
"""Characters of an answer in which formulas are drawn."""


def show(request: Request) -> Response:
    """The page; `model`, `adapter`, `question` and `gold` of the address are filled in, or those of a problem of an
    evaluation.
    """
    studio, values = studio_of(request), request.query_params
    text, gold = values.get("question", ""), values.get("gold", "")
    if "evaluation" in values:
        text, gold = _of_evaluation(studio, values)
    return render(
        request, "compare.html", question=text, gold=gold, sources=sources(studio), hottest=HOTTEST,
        most_tokens=MOST_TOKENS, number=None, total=None, source="", **_contestants(studio, values),
    )  # fmt: skip


def _of_evaluation(studio: Studio, values: Mapping[str, str]) -> tuple[str, str]:
    found = explorer(studio, values["evaluation"])
    problem = found.get(values.get("problem", ""))
    if problem is None:
        return "", ""
    sample = found.samples([next(iter(problem.shown.values()))])[0]
    return sample.question, sample.gold


def choose(request: Request) -> Response:
    """The models that can answer, once a folder is chosen."""
    return render(request, "contestants.html", **_contestants(studio_of(request), request.query_params))


def _contestants(studio: Studio, values: Any) -> dict[str, Any]:
    """What the choice of who answers shows."""
    found = contestants(studio, values.get("model", ""), values.getlist("adapter"))
    return {"models": found.models, "model": found.model, "ticked": found.chosen}


def drawn(request: Request) -> Response:
    """A problem of a file or an evaluation, in the fields of the question."""
    values = request.query_params
    number = values.get("number", "")
    source = values.get("source", "")
    found = draw(studio_of(request), source, int(number) if number.isdecimal() and len(number) < 10 else None)
    return render(
        request, "question.html", question=found.question, gold=found.gold, number=found.number, total=found.total,
        source=source, sources=sources(studio_of(request)),
    )  # fmt: skip


async def answer(request: Request) -> Response:
    """One model's answer, a line of JSON for each thing that happens; it ends when the browser stops listening."""
    form = await request.form()
    values = {name: value for name, value in form.multi_items() if isinstance(value, str)}
    adapters = [value for value in form.getlist("adapter") if isinstance(value, str)]
    studio, server = studio_of(request), request.app.state.server

    async def lines() -> AsyncIterator[str]:
        try:
            asked = await run_in_threadpool(question, studio, values, list(filter(None, adapters)))
            async for event in answered(server, asked, values.get("who", "")):
                yield await run_in_threadpool(_line, event)
        except MlxmathError as error:
            yield json.dumps({"error": harmless(str(error))}) + "\n"

    return StreamingResponse(lines(), media_type="application/x-ndjson")


def _line(event: Event) -> str:
    told: dict[str, Any]
    if isinstance(event, Loading):
        told = {"loading": f"{event.seconds:.0f}"}
    elif isinstance(event, Given):
        asked = event.asked
        told = {
            "prompt": harmless(event.prompt), "tokens": event.num_tokens, "question": to_html(asked.text[:_MOST_SHOWN]),
            "gold": answer_to_html(asked.gold),
        }  # fmt: skip
    elif isinstance(event, Answer):
        page = environment().get_template("answer.html")
        verdict = "" if not event.has_gold else "right" if event.grade.correct else "wrong"
        told = {"done": page.render(answer=event, most_shown=_MOST_SHOWN), "verdict": verdict}
    else:
        told = {"thought" if event.is_thought else "text": harmless(event.text)}
    return json.dumps(told) + "\n"


def end(request: Request) -> Response:
    """End the model's process, so that its memory is free."""
    server: Server = request.app.state.server
    server.close()
    return Response(status_code=204)


ROUTES = [
    Route("/compare", show), Route("/compare/contestants", choose), Route("/compare/problem", drawn),
    Route("/compare/answer", answer, methods=["POST"]), Route("/compare/end", end, methods=["POST"]),
]  # fmt: skip
