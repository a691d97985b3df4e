"""Where the studio listens."""

import contextlib
import html
import ipaddress
import secrets
import signal
import sys
import tempfile
import threading
import webbrowser
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

import uvicorn

from mlxmath.runtime.console import put, say
from mlxmath.runtime.listening import Listener, bound
from mlxmath.studio.app import create_app
from mlxmath.studio.guard import TOKEN, Guard
from mlxmath.studio.place import OWN, Studio

OPEN_TO_ALL = (
    "everybody who can reach this machine over the network and has the token can read this folder and start commands "
    "in it, and nothing is encrypted: put a reverse proxy with TLS before it where that matters."
)


def serve(studio: Studio, host: str, port: int, *, browse: bool = True) -> None:
    """Show the pages until Ctrl-C; what was started goes on then, but for the model that answers questions.

    Args:
        studio: what is shown.
        host: see `bound`.
        port: 0 takes one that is free.
        browse: open them in the browser.

    Raises:
        InputError: there is no such address here.
        MlxmathError: the port is taken, or not for this user.
    """
    with bound(host, port, OPEN_TO_ALL) as listener, ExitStack() as closing:
        token = secrets.token_urlsafe(24)
        pages = create_app(studio)
        if not studio.read_only:
            pages.state.server.end_leftovers()
        app = Guard(pages, token, host, listener.server_port, read_only=studio.read_only)
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=2,
            proxy_headers=False, lifespan="off", ws="none",
            http="h11",  # the strict one, whatever else is installed
        )  # fmt: skip
        url = f"{_origin(listener)}/?{TOKEN}={token}"
        say(f"the studio of {studio.folder} is open at this address; Ctrl-C ends it, and what it started goes on")
        put(url)
        if browse:
            # a browser of the terminal would be waited for, which waits for the pages
            threading.Thread(target=webbrowser.open, args=[_address(studio, url, closing)], daemon=True).start()
        closing.callback(pages.state.server.close)
        server = uvicorn.Server(config)
        try:
            with _ending_with_the_terminal(server):
                server.run(sockets=[listener.socket])
        except KeyboardInterrupt:
            say("stopped")


@contextmanager
def _ending_with_the_terminal(server: uvicorn.Server) -> Iterator[None]:
    """Have SIGHUP end the server, as SIGINT and SIGTERM do, before it does what it did.

    What a handler raises while a page is made, uvicorn takes for that page's failure, and goes on.
    """
    before, signals = signal.getsignal(signal.SIGHUP), list[int]()

    def handle(number: int, _: FrameType | None) -> None:
        signals.append(number)
        server.should_exit = True

    if before != signal.SIG_IGN:  # as under nohup
        signal.signal(signal.SIGHUP, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)
    if signals:
        signal.raise_signal(signals[0])


def _origin(listener: Listener) -> str:
    """Where a browser of this machine finds the pages: browsers open no 0.0.0.0."""
    host, port = str(listener.server_address[0]), listener.server_port
    if ipaddress.ip_address(host.partition("%")[0]).is_unspecified:
        host = "::1" if ":" in host else "127.0.0.1"
        say(f"in the address below, other machines put a name or an address of this one in the place of {host}")
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _address(studio: Studio, url: str, closing: ExitStack) -> str:
    """What a browser is called with: not the token, since all users of a machine see what programs are called with.

    It is a file of this user's alone, which leads to the pages, until `closing`. (On macOS the browser is asked by a
    message that nobody else sees.)
    """
    if sys.platform == "darwin":
        return url
    place = None
    if not studio.read_only:
        with contextlib.suppress(OSError):
            place = studio.folder / OWN  # a browser that is confined, as Ubuntu's, sees the home and no /tmp
            place.mkdir(exist_ok=True)
    file = closing.enter_context(tempfile.NamedTemporaryFile("w", prefix="open-", suffix=".html", dir=place))  # noqa: SIM115
    file.write(f'<!doctype html><meta http-equiv="refresh" content="0;url={html.escape(url)}">')
    file.flush()
    return Path(file.name).as_uri()
