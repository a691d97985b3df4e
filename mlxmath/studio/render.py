"""Templates to pages. What others have written is text, never markup; see `Guard` for what a browser may do with it."""

import time
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse

from mlxmath import __version__
from mlxmath.evaluation.latex import answer_to_html, to_html
from mlxmath.runtime.console import duration, harmless, size
from mlxmath.studio.place import Studio


def render(request: Request, template: str, status: int = 200, **context: Any) -> HTMLResponse:
    """A page, or the part of one that htmx asks for: templates extend `layout`, which is bare then."""
    is_part = "hx-request" in request.headers and "hx-boosted" not in request.headers
    shared = {
        "studio": studio_of(request), "path": request.url.path, "version": __version__,
        "layout": "part.html" if is_part else "page.html",
    }  # fmt: skip
    text = environment().get_template(template).render(shared | context)
    return HTMLResponse(text, status)


def studio_of(request: Request) -> Studio:
    """The folder that is looked at."""
    found: Studio = request.app.state.studio
    return found


@cache
def environment() -> Environment:
    """The templates here; filters: `tex` and `answer` draw formulas; `size`, `duration`, `commas`, `time`."""
    found = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")), undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, autoescape=True, finalize=_shown,
    )  # fmt: skip
    found.filters |= {
        "tex": to_html, "answer": answer_to_html, "size": size, "duration": duration, "commas": "{:,}".format,
        "time": _time,
    }  # fmt: skip
    return found


def _time(seconds: float | None) -> str:
    """Seconds since 1970 as the time of day here; "" for None."""
    return "" if seconds is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def _shown(value: Any) -> Any:
    """A value as it is shown: text of others without control characters and what turns the direction of text."""
    return harmless(value) if type(value) is str else value
