"""What a page's form sends, and options of a command line made of it."""

from collections.abc import Awaitable, Callable

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

Form = dict[str, str]


def posted(handler: Callable[[Request, Form], Response]) -> Callable[[Request], Awaitable[Response]]:
    """A handler that is given the texts of the form that was sent; of several of a name the last."""

    async def handle(request: Request) -> Response:
        async with request.form() as sent:
            form = {name: value for name, value in sent.items() if isinstance(value, str)}
        return await run_in_threadpool(handler, request, form)

    return handle


def option(name: str, value: str) -> list[str]:
    """An option with its value, which may begin with a hyphen."""
    return [f"{name}={value}"] if value.startswith("-") else [name, value]
