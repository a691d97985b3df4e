"""`/evaluations`: all of them; one of them with every problem; its report; a new one."""

import time
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from mlxmath.data.datasets import BENCHMARKS
from mlxmath.evaluation.report import policy
from mlxmath.evaluation.score import CATEGORIES
from mlxmath.evaluation.wording import interval, p_value, percent, points, sentence
from mlxmath.studio.evaluations import command, evaluation, evaluations, order
from mlxmath.studio.explorer import REPORT, Explorer, check, explorer
from mlxmath.studio.filters import Problem, Wanted
from mlxmath.studio.jobs import Job
from mlxmath.studio.place import Studio
from mlxmath.studio.questions import data_files
from mlxmath.studio.render import render, studio_of
from mlxmath.studio.sent import Form, posted
from mlxmath.studio.sources import of_folder
from mlxmath.studio.tuned import contestants

_MOST_SHOWN = 20_000
"""Characters of an answer, as in the report."""
_LATELY_S = 24 * 3600.0
_WORDS: dict[str, Any] = {
    "interval": interval,
    "p_value": p_value,
    "percent": percent,
    "points": points,
    "sentence": sentence,
}


def show(request: Request) -> Response:
    """All evaluations, and the form that starts one; `model` and `adapter` of the address are chosen in it."""
    studio, values = studio_of(request), request.query_params
    files = [studio.name(path) for path in data_files(studio)]
    found = contestants(studio, values.get("model", ""), values.getlist("adapter"))
    return render(
        request, "evaluations.html", models=found.models, model=found.model, ticked=found.chosen,
        benchmarks=list(BENCHMARKS), files=files, **_list(studio), **_WORDS,
    )  # fmt: skip


def rows(request: Request) -> Response:
    """The list alone, asked again and again."""
    return render(request, "evaluation_list.html", **_list(studio_of(request)), **_WORDS)


def _list(studio: Studio) -> dict[str, Any]:
    found = evaluations(studio)
    jobs = [(job, _said(studio, job)) for job in _jobs(studio)]
    is_live = any(one.state == "running" for one in found) or any(job.is_alive for job, _ in jobs)
    return {"evaluations": found, "jobs": jobs, "is_live": is_live, "address": address}


def _jobs(studio: Studio) -> list[Job]:
    """Evaluations started from here that run, or failed lately: of what went well the list tells."""
    return [
        job for job in studio.jobs.all()
        if job.kind == "evaluate" and (job.is_alive or (job.exit_code and time.time() - job.started < _LATELY_S))
    ]  # fmt: skip


def _said(studio: Studio, job: Job) -> str:
    """The last line of its log."""
    lines = [line for line in studio.jobs.log(job, 4000).splitlines() if line.strip()]
    return lines[-1] if lines else ""


def choose(request: Request) -> Response:
    """The adapters of the chosen model."""
    found = contestants(studio_of(request), request.query_params.get("model", ""))
    return render(request, "evaluation_models.html", model=found.model, ticked=found.chosen)


def line(request: Request) -> Response:
    """The command line that the form stands for."""
    studio, values = studio_of(request), request.query_params
    job = command(studio, order(studio, values, values.getlist("adapter")))
    return render(request, "evaluation_command.html", line=Job("", "", job, 0, 0, 0).command_line)


def start(request: Request, form: Form) -> Response:
    """Start it."""
    studio = studio_of(request)
    studio.jobs.start(*command(studio, order(studio, form, form.getlist("adapter"))))
    return _again()


def stop(request: Request, form: Form) -> Response:
    """Ask one that was started from here to end; what it has answered stays."""
    studio = studio_of(request)
    job = studio.jobs.get(form.get("job", ""))
    if job is None or job.kind != "evaluate":
        raise HTTPException(404, "There is no such evaluation.")
    studio.jobs.stop(job)
    return _again()


def _again() -> Response:
    """Show the list. (A plain form's request would name no origin, since pages send no referrer; htmx's does.)"""
    return Response(headers={"HX-Redirect": "/evaluations"})


def one(request: Request) -> Response:
    """An evaluation: its figures, and its problems with filters."""
    studio, folder = _folder(request)
    found = explorer(studio, str(folder))
    return render(
        request, "evaluation.html", evaluation=evaluation(studio, folder), categories=CATEGORIES,
        **_page(studio, folder, found, Wanted.of(request.query_params)), **_WORDS,
    )  # fmt: skip


def problems(request: Request) -> Response:
    """A page of problems; of one that waits for the last answers to be measured, what it says of all problems."""
    studio, folder = _folder(request)
    shown = _page(studio, folder, explorer(studio, str(folder)), Wanted.of(request.query_params))
    if "waits" in request.query_params and shown["list"].num_left:  # what is shown below, and may be read, stays
        found = render(request, "problems_in_all.html", **shown)
        found.headers["HX-Retarget"], found.headers["HX-Reswap"] = "#in-all", "outerHTML"
        return found
    found = render(request, "problems.html", **shown)
    found.headers["HX-Replace-Url"] = shown["turned"](**shown["wanted"].place)
    return found


def _page(studio: Studio, folder: Path, found: Explorer, wanted: Wanted) -> dict[str, Any]:
    name, chosen = studio.name(folder), found.get(wanted.problem) if wanted.problem else None

    def turned(**changes: Any) -> str:
        """The address of this list with other filters."""
        return address(name, **(wanted.fields | {key: str(value) for key, value in changes.items() if value}))

    return {"found": found, "name": name, "wanted": wanted, "list": found.find(wanted), "turned": turned,
            "waiting": address(name, "evaluation-problems", waits="1", **wanted.fields, **wanted.place),
            "address": address, "chosen": chosen and chosen.id,
            "whole": chosen and _whole(studio, folder, found, chosen)}  # fmt: skip


def problem(request: Request) -> Response:
    """A problem with all answers, as the report shows it."""
    studio, folder = _folder(request)
    found = explorer(studio, str(folder))
    chosen = found.get(request.query_params.get("problem", ""))
    if chosen is None:
        raise HTTPException(404, "There is no such problem here, or not every model has answered it yet.")
    return render(request, "problem.html", whole=_whole(studio, folder, found, chosen))


def _whole(studio: Studio, folder: Path, found: Explorer, chosen: Problem) -> dict[str, Any]:
    shown = dict(zip(chosen.shown, found.samples(chosen.shown.values()), strict=True))
    several = {label: [key for key in chosen.keys if key[0] == label] for label in chosen.shown}
    name, contestants = studio.name(folder), {one["label"]: one for one in found.settings["contestants"]}
    pair = found.pairs[0] if found.pairs else None
    return {
        "problem": chosen, "shown": shown, "several": several, "most_shown": _MOST_SHOWN,
        "kinds": {label: CATEGORIES[found.category(sample)] for label, sample in shown.items()},
        "compare": "/compare?" + urlencode([
            ("evaluation", name), ("problem", chosen.id), *of_folder(studio, contestants.values()),
        ]),
        "rate": pair and "/rate?" + urlencode({
            "source": name, "one": pair[0], "other": pair[1], "problem": chosen.id,
        }),
        "address": address(name, problem=chosen.id),
    }  # fmt: skip


def report(request: Request) -> Response:
    """report.html as `mlxmath evaluate` wrote it, as a page of its own.

    The file may be anybody's. It is served as a sandboxed document, whose origin is its own: what it holds cannot reach
    the studio's pages or use its cookie, even if a script of it ran; none does but that which this version's reports
    have, by its hash. (To make the page anew from the samples would take a minute for 20,000 problems.)
    """
    studio, folder = _folder(request)
    path = studio.file(folder / REPORT)
    if path is None:
        raise HTTPException(404, "There is no report yet; it is written when every model has answered.")
    sandbox = f"sandbox allow-scripts allow-popups; frame-ancestors 'none'; {policy()}"
    return FileResponse(path, media_type="text/html", headers={"Content-Security-Policy": sandbox})


def _folder(request: Request) -> tuple[Studio, Path]:
    """The evaluation that an address names."""
    studio = studio_of(request)
    folder = studio.inside(request.path_params["name"] or ".", "evaluation")
    if not folder.is_dir():
        raise HTTPException(404, "There is no such folder here.")
    check(studio, folder)
    return studio, folder


def address(name: str, part: str = "evaluations", **query: str) -> str:
    """Of an evaluation by its folder's name, or of a part of its page."""
    return f"/{part}/{quote('' if name == '.' else name)}{f'?{urlencode(query)}' if query else ''}"


ROUTES = [
    Route("/evaluations", show), Route("/evaluations-list", rows), Route("/evaluations-models", choose),
    Route("/evaluations-command", line), Route("/evaluations-start", posted(start), methods=["POST"]),
    Route("/evaluations-stop", posted(stop), methods=["POST"]), Route("/evaluations/{name:path}", one),
    Route("/evaluation-problems/{name:path}", problems), Route("/evaluation-problem/{name:path}", problem),
    Route("/evaluation-report/{name:path}", report),
]  # fmt: skip
