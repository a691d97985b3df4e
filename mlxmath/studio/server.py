"""Where the studio listens."""

import secrets
import webbrowser

import uvicorn

from mlxmath.runtime.console import put, say
from mlxmath.serving.server import bound
from mlxmath.studio.app import create_app
from mlxmath.studio.guard import TOKEN, Guard
from mlxmath.studio.place import Studio

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
    with bound(host, port, OPEN_TO_ALL) as listener:
        token = secrets.token_urlsafe(24)
        pages = create_app(studio)
        if not studio.read_only:
            pages.state.server.end_leftovers()
        app = Guard(pages, token, host, listener.server_port, read_only=studio.read_only)
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=2,
            proxy_headers=False, ws="none", http="h11",  # the strict one, whatever else is installed
        )  # fmt: skip
        url = f"{listener.url.removesuffix('/v1')}/?{TOKEN}={token}"
        say(f"the studio of {studio.folder} is open at this address; Ctrl-C ends it, and what it started goes on")
        put(url)
        if browse:
            webbrowser.open(url)
        try:
            uvicorn.Server(config).run(sockets=[listener.socket])
        except KeyboardInterrupt:
            say("stopped")
        finally:
            pages.state.server.close()
