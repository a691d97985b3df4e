"""`/evaluations`."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mlxmath.studio.render import render


def show(request: Request) -> Response:
    """The page."""
    return render(request, "evaluations.html")


ROUTES = [Route("/evaluations", show)]
