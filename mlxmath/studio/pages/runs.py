"""`/runs`: all runs, one run as it goes on, several over one another."""

import json
import os
import shlex
import time
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlencode

import psutil
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from mlxmath.config.load import RUN_FILE
from mlxmath.errors import InputError
from mlxmath.runtime.console import harmless
from mlxmath.studio import jobs
from mlxmath.studio.charts import charts
from mlxmath.studio.curves import log_of
from mlxmath.studio.form import query_of
from mlxmath.studio.place import Studio
from mlxmath.studio.render import render, studio_of
from mlxmath.studio.run import Run
from mlxmath.studio.run_folder import BEST, adapters, resume_arguments, settings_text, used_in, why_not_here
from mlxmath.studio.runs import all_runs, find_run, without_run
from mlxmath.studio.tuned import further
from mlxmath.training.event_file import EVENTS

_SORTS: dict[str, tuple[str, Callable[[Run], Any]]] = {
    "state": ("State", lambda run: (not run.is_live, run.look[1])),
    "name": ("Run", lambda run: run.name.lower()),
    "progress": ("Progress", lambda run: run.step),
    "left": ("Time left", lambda run: run.left_s),
    "best": ("Held out", lambda run: run.best and run.best[1]),
    "verdict": ("Verdict", lambda run: run.told("verdict", "difference") if run.verdict else None),
    "method": ("Method", lambda run: run.method),
    "model": ("Model", lambda run: run.model.lower()),
    "started": ("Started", lambda run: run.started),
}
"""Columns of the list: heading, and what they are sorted by (None comes last)."""
_MOST_OVER = 6
_MOST_QUERY = 200
_MOST_TEXT = 20_000
_SOON_BYTES = 2_000_000
"""Of a log, which are read while a page waits."""
_OF_A_SAMPLE = ("question", "gold", "completion", "reward", "correct", "extracted")


def show_all(request: Request) -> Response:
    """The list."""
    studio, asked = studio_of(request), request.query_params
    sort, is_down = asked.get("sort", ""), asked.get("down") == "1"
    words, chosen = asked.get("q", "")[:_MOST_QUERY], set(asked.getlist("run"))
    found = list(all_runs(studio))
    runs = [run for run in found if run.name in chosen or all(word in _text(run) for word in words.lower().split())]
    if sort in _SORTS:
        runs.sort(key=lambda run: run.name)
        _, key = _SORTS[sort]
        known = sorted((run for run in runs if key(run) is not None), key=key, reverse=is_down)
        runs = [*known, *(run for run in runs if key(run) is None)]
    else:
        runs.sort(key=lambda run: (not run.is_live, -(run.started or run.updated)))
    waiting = [(job, studio.jobs.log(job, 2000)) for job in without_run(studio)]
    is_live = any(run.is_live for run in found) or any(job.is_alive for job, _ in waiting)
    headings = [(name, heading, _direction(name, sort, is_down)) for name, (heading, _) in _SORTS.items()]
    return render(
        request, "runs.html", runs=runs, num_runs=len(found), waiting=waiting, is_live=is_live, words=words,
        headings=headings, sort=sort, is_down=is_down, chosen=chosen,
        settings_of=lambda job: query_of(job.kind, job.arguments[1:]),
        address="/runs?" + urlencode({"q": words, "sort": sort, "down": int(is_down)}),
    )  # fmt: skip


def _text(run: Run) -> str:
    return " ".join((run.name, run.method, run.model, run.look[1])).lower()


def _direction(name: str, sort: str, is_down: bool) -> str:
    return "none" if name != sort else "descending" if is_down else "ascending"


def show(request: Request) -> Response:
    """A run, or what changes of its page while it goes on."""
    studio, run = studio_of(request), _run(request)
    if request.query_params.get("part") == "state":
        return _state(request, run)
    own = adapters(studio, run)
    usual = next((one for one in own if one.label == BEST), next(iter(own), None))
    return render(
        request, "run.html", **_of_state(studio, run), samples=_samples(studio, run), adapters=own, usual=usual,
        further=urlencode(further(studio, "", usual.name)) if usual else "",
        log=studio.jobs.log(run.jobs[0]) if run.jobs else "", used_in=list(used_in(studio, run)), run_file=RUN_FILE,
        addresses=_addresses([run]),
    )  # fmt: skip


def _state(request: Request, run: Run) -> Response:
    return render(request, "run_state.html", **_of_state(studio_of(request), run))


def _of_state(studio: Studio, run: Run) -> dict[str, Any]:
    can_resume = run.can_resume and not run.is_live
    return {
        "run": run, "settings": settings_text(studio, run), "refusal": why_not_here(studio, run) if can_resume else "",
        "command": shlex.join(["mlxmath", *resume_arguments(run)]), "memory_bytes": _memory(run),
    }  # fmt: skip


def _addresses(runs: Sequence[Run]) -> list[list[str]]:
    """The names of runs, and where their points are."""
    return [[harmless(run.name), f"/runs/{run.address}/data"] for run in runs]


def _samples(studio: Studio, run: Run) -> list[dict[str, str]]:
    """The last completions that a run told, with their grades, as text; what one lacks is "".

    A long log is not waited for: the page asks for its points, and again for this once they are there.
    """
    path = studio.file(run.folder / EVENTS)
    if path is None:
        return []
    log, found = log_of(path), []
    with log.lock:
        events = list(log.refresh(_SOON_BYTES).samples)
    for event in reversed(events):
        texts = {name: event["example"].get(name) for name in _OF_A_SAMPLE} | {"step": event.get("step")}
        found.append({
            name: str(value)[:_MOST_TEXT] if isinstance(value, str | int | float) else ""
            for name, value in texts.items()
        })  # fmt: skip
    return found


def data(request: Request) -> Response:
    """The points of a run's curves that have come since `since`, and what is drawn of them."""
    if "since" not in request.query_params:
        return _named(request, "data")
    studio, run = studio_of(request), _run(request)
    start = time.perf_counter()
    events = studio.file(run.folder / EVENTS)
    if events is None:
        return JSONResponse({"mark": "", "tables": {}, "charts": [], "live": run.is_live, "seconds": 0.0})
    log = log_of(events)
    with log.lock:
        found = log.points(request.query_params["since"]) | {"charts": charts(log.tables)}
    seconds = round(time.perf_counter() - start, 4)
    return JSONResponse({**found, "live": run.is_live, "seconds": seconds})


def settings(request: Request) -> Response:
    """run.toml, to keep."""
    text = settings_text(studio_of(request), _run(request))
    if text is None:
        raise HTTPException(404, f"There is no {RUN_FILE}.")
    name = f'attachment; filename="{RUN_FILE}"'
    return PlainTextResponse(text, headers={"Content-Disposition": name})


def stop(request: Request) -> Response:
    """Ask the process that works on a run to save and end."""
    run = _run(request)
    if not run.can_stop:
        raise InputError(f"{run.name}: no process of yours on this machine works on it.")
    if run.holder is not None and run.holder.created is not None:
        jobs.stop(run.holder.pid, run.holder.created)
    else:  # it has not come to its folder yet
        studio_of(request).jobs.stop(run.jobs[0])
    return _state(request, _run(request))


def stop_job(request: Request) -> Response:
    """End a command that has not begun its run yet."""
    studio_of(request).jobs.stop(_job(request))
    return show_all(request)


def dismiss_job(request: Request) -> Response:
    """Show no longer that a command has failed."""
    studio_of(request).jobs.dismiss(_job(request))
    return show_all(request)


def _job(request: Request) -> jobs.Job:
    """The command that an address names."""
    job = studio_of(request).jobs.get(request.path_params["id"])
    if job is None:
        raise HTTPException(404, "There is no such command any more.")
    return job


def resume(request: Request) -> Response:
    """Go on with a run, by its command."""
    studio, run = studio_of(request), _run(request)
    text = settings_text(studio, run)
    if text is None or not run.can_resume:
        raise InputError(f"{run.name} is {run.look[1]}: there is nothing to resume.")
    if refusal := why_not_here(studio, run):
        raise InputError(f"{run.name} cannot be resumed from here: {refusal}; copy the command to a terminal.")
    studio.jobs.start(*resume_arguments(run))
    return _state(request, _run(request))


def over(request: Request) -> Response:
    """Several runs over one another."""
    names = list(dict.fromkeys(request.query_params.getlist("run")))
    if not names:
        return _named(request, "over")
    studio = studio_of(request)
    runs = [_found(studio, name) for name in names[:_MOST_OVER]]
    return render(
        request, "over.html", runs=runs, differing=_differing(runs), most=_MOST_OVER, is_cut=len(names) > _MOST_OVER,
        addresses=_addresses(runs), chosen=urlencode([("run", os.fsencode(run.name)) for run in runs]),
    )  # fmt: skip


def _differing(runs: Sequence[Run]) -> dict[str, list[str]]:
    """The settings of which not all runs have the same."""
    settings = [run.settings for run in runs]
    found = {}
    for name in dict.fromkeys(name for each in settings for name in each):
        values = [each.get(name) for each in settings]
        if any(value != values[0] for value in values):
            found[name] = [_shown(value) for value in values]
    return found


def _shown(value: Any) -> str:
    """A setting."""
    if value is None:
        return "not set"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _run(request: Request) -> Run:
    return _found(studio_of(request), request.path_params["name"])


def _found(studio: Studio, name: str) -> Run:
    """
    Raises:
        HTTPException: there is no such run.
        InputError: the name leads out of the folder.
    """
    run = find_run(studio, name or ".")
    if run is None:
        raise HTTPException(404, "There is no such run in this folder.")
    return run


def _named(request: Request, last: str) -> Response:
    """A run whose folder has the name of one of our addresses."""
    before = request.path_params.get("name", "")
    request.path_params["name"] = f"{before}/{last}" if before else last
    return show(request)


def _memory(run: Run) -> int | None:
    """Bytes that the process of a run takes now."""
    if run.holder is None or run.holder.created is None:
        return None
    try:
        return int(psutil.Process(run.holder.pid).memory_info().rss)
    except psutil.Error:
        return None


ROUTES = [
    Route("/runs", show_all),
    Route("/runs/over", over),
    Route("/jobs/{id}/stop", stop_job, methods=["POST"]),
    Route("/jobs/{id}/dismiss", dismiss_job, methods=["POST"]),
    Route("/runs/{name:path}/data", data),
    Route(f"/runs/{{name:path}}/{RUN_FILE}", settings),
    Route("/runs/{name:path}/stop", stop, methods=["POST"]),
    Route("/runs/{name:path}/resume", resume, methods=["POST"]),
    Route("/runs/{name:path}", show),
]
