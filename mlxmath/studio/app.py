"""The studio's pages as an ASGI application."""

import os
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from mlxmath.errors import MlxmathError
from mlxmath.studio.model_server import Server
from mlxmath.studio.pages import PAGES
from mlxmath.studio.place import Studio
from mlxmath.studio.render import render


def create_app(studio: Studio) -> Starlette:
    """All pages over a folder. It checks nobody: see `Guard`. What answers questions is its `state.server`."""
    routes = [
        Route("/", lambda _: RedirectResponse("/runs", 303)),
        *(route for page in PAGES for route in page.ROUTES),
        Mount("/static", StaticFiles(directory=Path(__file__).with_name("static"))),
    ]
    app = Starlette(routes=routes, exception_handlers=_HANDLERS)
    app.state.studio, app.state.server = studio, Server(studio)
    return app


async def _failed(request: Request, error: Exception) -> Response:
    """What a user's error says: on a page, or above the one that asked for a part, which stays as it is."""
    return _told(request, str(error))


async def _unread(request: Request, error: Exception) -> Response:
    """A file that has gone while it was looked at, or is not for this user."""
    assert isinstance(error, OSError)
    name = "a file" if error.filename is None else os.fsdecode(error.filename)
    return _told(request, f"{name}: {error.strerror or error}; reload the page.")


def _told(request: Request, message: str) -> Response:
    answer = render(request, "error.html", 422, heading="That did not work", message=message)
    answer.headers.update({"HX-Retarget": "#lost", "HX-Reswap": "innerHTML"})
    return answer


async def _absent(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    heading = "Not found" if error.status_code == 404 else "Not allowed here"
    return render(request, "error.html", error.status_code, heading=heading, message=error.detail)


_HANDLERS = {MlxmathError: _failed, OSError: _unread, HTTPException: _absent}
