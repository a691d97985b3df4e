"""What a page's form sends."""

from collections.abc import Awaitable, Callable

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import ImmutableMultiDict
from starlette.requests import Request
from starlette.responses import Response

Form = ImmutableMultiDict[str, str]


def posted(handler: Callable[[Request, Form], Response]) -> Callable[[Request], Awaitable[Response]]:
    """A handler, in a thread, that is given the texts of the form that was sent."""

    async def handle(request: Request) -> Response:
        async with request.form() as sent:
            texts = [(name, value) for name, value in sent.multi_items() if isinstance(value, str)]
        return await run_in_threadpool(handler, request, ImmutableMultiDict(texts))

    return handle
