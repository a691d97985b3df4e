"""`/new`: a run is put together, looked at, and started."""

import json
from collections.abc import Mapping
from hashlib import sha256
from typing import Any
from urllib.parse import parse_qsl, quote

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from mlxmath.config.load import Resolved
from mlxmath.config.schema import keyword
from mlxmath.errors import InputError
from mlxmath.studio import preview
from mlxmath.studio.choices import choices, method_of
from mlxmath.studio.fields import groups, recipes
from mlxmath.studio.form import COMMANDS, TITLES, Checked, check, draft_of
from mlxmath.studio.render import render, studio_of
from mlxmath.studio.sent import Form, posted

PAGE = 20
_SOON_S, _PATIENT_S = 0.25, 8.0
"""How long a page waits for a plan that it can ask for again, and one that cannot."""
_MOST_NUMBER = 1 << 62


def show(request: Request) -> Response:
    """The form, empty or as an address says."""
    return _page(request, dict(request.query_params), wait_s=_SOON_S)


def again(request: Request, form: Form) -> Response:
    """The form as it was filled in; the way without scripts, and after another command or recipe was chosen."""
    values = dict(form)
    return _page(request, values, wait_s=_SOON_S if "js" in values else _PATIENT_S)


def checked(request: Request, form: Form) -> Response:
    """After a change: what is wrong beside each field, the command line, the plan, the first rows."""
    values = dict(form)
    return render(request, "new_checked.html", **_context(request, values, _SOON_S, values.get("rows_key", "")))


def plan(request: Request) -> Response:
    """The plan, if it is there by now."""
    found = _checked(request, dict(request.query_params))
    return render(request, "new_plan.html", **_plan_context(request, found, _SOON_S))


def glance(request: Request) -> Response:
    """The first rows, if they are there by now."""
    found = _checked(request, dict(request.query_params))
    return render(
        request, "new_glance.html", **_glance(request, found, "", 2.0), checked=found, query=found.draft.query
    )


def rows(request: Request) -> Response:
    """Rows as the model will see them: a page of them, one by its number, or those that are left out."""
    values = dict(request.query_params)
    found = _checked(request, values)
    _whole(found)
    number, page, left_out = _number(values, "row"), max(1, _number(values, "page")), "left_out" in values
    asked = preview.rows_request(
        studio_of(request), found, start=number - 1 if number else (page - 1) * PAGE, count=1 if number else PAGE,
        tokens=number > 0 and "tokens" in values, left_out=left_out,
    )  # fmt: skip
    answer = preview.rows(asked, 2.0 if "hx-request" in request.headers else _PATIENT_S)
    return render(
        request, "new_rows.html", checked=found, answer=answer, number=number, page=page, per_page=PAGE,
        left_out=left_out, tokens="tokens" in values, query=found.draft.query, pairs_of=parse_qsl,
        bars=preview.histogram(answer) if answer and "histogram" in answer else [], job=_preparing(request, found),
        address=f"{request.url.path}?{request.url.query}",
    )  # fmt: skip


def prepare(request: Request, form: Form) -> Response:
    """Start `mlxmath prepare` for rows that are not read unasked."""
    found = _checked(request, dict(form))
    arguments = preview.preparing(found)
    if arguments is None or found.wrong:
        raise InputError("these rows are prepared by the run itself; start it.")
    if _preparing(request, found) is None:
        studio_of(request).jobs.start(*arguments)
    return RedirectResponse(f"/new/rows?{found.draft.query}", 303)


def file(request: Request) -> Response:
    """All settings as a file for `--config`."""
    found = _checked(request, dict(request.query_params))
    text = _whole(found).as_toml(found.draft.sections, {})
    return PlainTextResponse(
        f"# mlxmath {found.draft.command} --config run.toml\n{text}",
        headers={"Content-Disposition": 'attachment; filename="run.toml"'}, media_type="application/toml",
    )  # fmt: skip


def start(request: Request, form: Form) -> Response:
    """Start the command, and go to its run."""
    values = dict(form)
    found = _checked(request, values)
    if found.resolved is None or not found.is_good:
        return _page(request, values, wait_s=_SOON_S, status=422)
    studio = studio_of(request)
    if not any(job.arguments == found.arguments and job.is_alive for job in studio.jobs.all()):
        studio.jobs.start(*found.arguments)
    folder = studio.name(studio.inside(found.resolved.config.training.adapter_path))
    return RedirectResponse(f"/runs/{quote(folder)}", 303)


def _whole(found: Checked) -> Resolved:
    """The settings.

    Raises:
        InputError: they are not right yet.
    """
    if found.resolved is None or found.wrong or found.trouble:
        wrong = "; ".join(f"{name}: {why}" for name, why in found.wrong.items())
        raise InputError(wrong or found.trouble)
    return found.resolved


def _number(values: Mapping[str, str], name: str) -> int:
    """A number of an address, from 1; 0 where it has none."""
    text = values.get(name, "")
    if text and not (text.isascii() and text.isdecimal() and 0 < int(text[:20]) < _MOST_NUMBER):
        raise InputError(f"{name}: expected a whole number from 1; found {text!r}")
    return int(text or 0)


def _checked(request: Request, values: dict[str, str]) -> Checked:
    """The form, checked."""
    studio = studio_of(request)
    if studio.read_only:
        raise HTTPException(403, "This studio was opened with --read-only: it starts nothing.")
    if "command" not in values and values.get("from") and (method := method_of(studio, values["from"])) in COMMANDS:
        values["command"] = str(method)
    return check(studio, draft_of(values))


def _page(request: Request, values: dict[str, str], *, wait_s: float, status: int = 200) -> Response:
    context = _context(request, values, wait_s, "")  # it is made anew: no rows are shown yet
    found: Checked = context["checked"]
    return render(
        request, "new.html", status, **context, commands=TITLES, groups=groups(found),
        recipes=recipes(found.draft.command), found=choices(studio_of(request)), values=values,
    )  # fmt: skip


def _context(request: Request, values: dict[str, str], wait_s: float, shown: str) -> dict[str, Any]:
    """What the page and what follows a change share; `shown` is the key of the rows that are shown already."""
    found = _checked(request, values)
    return {**_plan_context(request, found, wait_s), **_glance(request, found, shown, wait_s), "key_of": keyword}


def _glance(request: Request, found: Checked, shown: str, wait_s: float) -> dict[str, Any]:
    """The first rows, but for those that are shown already."""
    is_whole = found.resolved is not None and not found.wrong and not found.trouble
    if shown and not is_whole:  # what is shown stays until the settings are right again
        return {"rows_key": shown, "rows_changed": False, "shows_rows": True, "answer": None}
    shows = is_whole and preview.names_data(found)
    asked = preview.rows_request(studio_of(request), found, count=3, glance=True) if shows else None
    key = sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16] if asked else "none"
    return {
        "rows_key": key, "rows_changed": shown != key, "shows_rows": shows,
        "answer": preview.rows(asked, wait_s) if asked and shown != key else None,
    }  # fmt: skip


def _plan_context(request: Request, found: Checked, wait_s: float) -> dict[str, Any]:
    can = found.resolved is not None and not found.wrong and not found.trouble and preview.names_model(found)
    answer = preview.plan(studio_of(request), found, wait_s) if can else None
    drawn = answer is not None and "error" not in answer
    return {
        "checked": found, "query": found.draft.query, "can_plan": can, "plan": answer, "unchosen": _unchosen(found),
        "bars": preview.memory_bar(answer) if answer and drawn else [],
        "mark": preview.device_mark(answer) if answer and drawn else 0.0,
        "remedies": [(*each, preview.remedy(each[0])) for each in answer["remedies"]] if answer and drawn else [],
    }  # fmt: skip


def _unchosen(found: Checked) -> list[tuple[str, str]]:
    """The model and the dataset that nobody has chosen: a start would fetch the defaults."""
    if found.resolved is None:
        return []
    config = found.resolved.config
    model = [] if preview.names_model(found) else [("model", config.model.model)]
    return model + ([] if preview.names_data(found) else [("data", config.data.dataset)])


def _preparing(request: Request, found: Checked) -> Any:
    """The command that prepares these rows, while it runs."""
    arguments = preview.preparing(found)
    return next((job for job in studio_of(request).jobs.all() if job.arguments == arguments and job.is_alive), None)


ROUTES = [
    Route("/new", show, methods=["GET"]),
    Route("/new", posted(again), methods=["POST"]),
    Route("/new/check", posted(checked), methods=["POST"]),
    Route("/new/plan", plan),
    Route("/new/glance", glance),
    Route("/new/rows", rows),
    Route("/new/prepare", posted(prepare), methods=["POST"]),
    Route("/new/file", file),
    Route("/new/start", posted(start), methods=["POST"]),
]
