"""Who may ask the studio: whoever has its token, from its own pages, under its own address.

A page of another site can send requests to this machine, and reach it under a name of its own (DNS rebinding). So each
request is checked before anything else: its Host is an address that the server listens on, its Origin, if it has one,
is that very address, and the cookie holds the token, which the address that the command prints brings.
"""

import html
import ipaddress
import secrets
import socket
from urllib.parse import parse_qsl, quote, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

TOKEN = "token"
"""The parameter of an address that lets a browser in."""
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
_MOST_BYTES = 4_000_000
"""Of what a request sends."""
_SAFE = ("GET", "HEAD")
_FORMS = ("application/x-www-form-urlencoded", "multipart/form-data")


class Guard:
    """Middleware that lets a request through, or answers it with 4xx.

    Args:
        app: what is guarded.
        token: see the module.
        host: as the user gave it: beside this machine's own names, what a request may call it.
        port: that it listens on.
        read_only: nothing but GET and HEAD is let through.
    """

    def __init__(self, app: ASGIApp, token: str, host: str, port: int, *, read_only: bool = False) -> None:
        self._app, self._token, self._port, self._read_only = app, token, port, read_only
        self._cookie = f"mlxmath_studio_{port}"  # cookies of a host are shared by its ports
        self._names = {"localhost", "127.0.0.1", "::1", host.lower()}
        if not _is_loopback(host):
            self._names.add(socket.gethostname().lower())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            await refusal(scope, receive, _guarded(send))
            return
        await self._app(scope, receive, _guarded(send))

    def _refusal(self, scope: Scope, headers: Headers) -> Response | None:
        host = headers.get("host", "").lower()
        if len(headers.getlist("host")) != 1 or not self._is_own(host):
            return _refused(421, "This is not an address of the studio.")
        origins = headers.getlist("origin")
        is_safe = scope["method"] in _SAFE
        if not origins and not is_safe:
            return _refused(403, "A request that changes something names the page that it comes from (Origin).")
        if any(origin.lower() != f"http://{host}" for origin in origins):
            return _refused(403, "Only the studio's own pages may ask.")
        is_own = headers.get("sec-fetch-site", "none") in ("none", "same-origin")
        if not is_own and not (is_safe and _is_navigation(headers)):
            return _refused(403, "Only the studio's own pages may ask.")
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        given = [value for name, value in query if name == TOKEN]
        if given and is_safe and secrets.compare_digest(given[0].encode(), self._token.encode()):
            return self._welcome(scope["path"], [pair for pair in query if pair[0] != TOKEN])
        cookie = cookie_parser(headers.get("cookie", "")).get(self._cookie, "")
        if not secrets.compare_digest(cookie.encode(), self._token.encode()):
            return _refused(403, "Open the address that `mlxmath studio` has printed: it holds the token.")
        if not is_safe and self._read_only:
            return _refused(403, "This studio was opened with --read-only.")
        length = headers.get("content-length", "0")
        if not is_safe and (not length.isdecimal() or int(length) > _MOST_BYTES or "transfer-encoding" in headers):
            return _refused(413, f"At most {_MOST_BYTES:,} bytes can be sent.")
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if not is_safe and kind not in _FORMS and (kind or int(length)):  # else it would be taken for an empty form
            return _refused(415, "Only forms can be sent.")
        return None

    def _welcome(self, path: str, query: list[tuple[str, str]]) -> Response:
        """Give the cookie, and go on without the token. A redirect would not bring the cookie from another page."""
        target = html.escape("/" + quote(path.lstrip("/")) + (f"?{urlencode(query)}" if query else ""))
        answer = HTMLResponse(
            '<!doctype html><link rel="icon" href="data:,">'  # else browsers ask for one
            f'<meta http-equiv="refresh" content="0;url={target}"><title>studio</title>'
        )
        answer.set_cookie(self._cookie, self._token, httponly=True, samesite="strict")
        return answer

    def _is_own(self, host: str) -> bool:
        name, _, port = host.rpartition(":")
        if not name or port != str(self._port):
            return self._port == 80 and host in self._names
        return name.removeprefix("[").removesuffix("]") in self._names or (
            not self._names <= {"localhost", "127.0.0.1", "::1"} and _is_address(name)
        )


def _guarded(send: Send) -> Send:
    """Add to each answer what keeps its page to itself."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers.setdefault("Content-Security-Policy", CSP)
            headers.setdefault("Cache-Control", "no-store")
            headers["X-Content-Type-Options"] = "nosniff"
            headers["Referrer-Policy"] = "same-origin"  # with no-referrer a form that is sent has the Origin "null"
            headers["Cross-Origin-Opener-Policy"] = "same-origin"
            headers["Cross-Origin-Resource-Policy"] = "same-origin"
        await send(message)

    return sending


def _refused(status: int, why: str) -> Response:
    return PlainTextResponse(why + "\n", status)


def _is_navigation(headers: Headers) -> bool:
    """Somebody follows a link: the page is shown to them alone, and the cookie is not sent then."""
    return headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"


def _is_address(name: str) -> bool:
    """Whether a Host is an address, which no name server can make point here."""
    try:
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)
