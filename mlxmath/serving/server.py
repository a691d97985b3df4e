"""Where `mlxmath serve` listens, and how long."""

import atexit
import ipaddress
import os
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from http.server import ThreadingHTTPServer
from socketserver import BaseRequestHandler, TCPServer
from typing import Any

from mlxmath.errors import InputError, MlxmathError
from mlxmath.generation.engine import Sampling
from mlxmath.generation.model import LanguageModel
from mlxmath.runtime.console import fail, say, warn
from mlxmath.runtime.trouble import trouble


class Listener(ThreadingHTTPServer):
    """A socket that listens, a thread for each connection."""

    daemon_threads = True
    request_queue_size = 64

    def server_bind(self) -> None:
        """As of `HTTPServer`, without asking a name server for this machine's name."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        """Say in a line what went wrong with a request; a client that has gone is no trouble."""
        error = sys.exc_info()[1]
        if not isinstance(error, ConnectionError | TimeoutError):
            fail(f"a request failed: {type(error).__name__}: {error}")

    @property
    def url(self) -> str:
        """Where clients find it."""
        host = str(self.server_address[0])
        return f"http://{f'[{host}]' if ':' in host else host}:{self.server_port}/v1"


OPEN_TO_ALL = (
    "everybody who can reach this machine over the network can use the model. There is no password and no encryption; "
    "put a reverse proxy before it where that matters."
)


@contextmanager
def bound(host: str, port: int, warning: str = OPEN_TO_ALL) -> Iterator[Listener]:
    """Listen; who connects waits until somebody answers.

    Args:
        host: a name or an address. Whoever can reach one that is not this machine's own can ask.
        port: 0 takes one that is free.
        warning: what is said where `host` is not this machine's own.

    Raises:
        InputError: there is no such address here.
        MlxmathError: the port is taken, or not for this user.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (OSError, UnicodeError) as error:
        raise InputError(f"--host {host}: {error}; give an address of this machine, for example 127.0.0.1.") from None
    of_family = type("Listener", (Listener,), {"address_family": family})
    try:
        listener = of_family(address, BaseRequestHandler)
    except OSError as error:
        raise MlxmathError(
            f"cannot listen at {host}, port {port}: {error.strerror}. Give another --port (0 takes a free one), or end "
            "the program that has it."
        ) from None
    with listener:
        if not ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback:
            warn(f"--host {host}: {warning}")
        yield listener


def serve(
    models: Mapping[str, LanguageModel], listener: Listener, sampling: Sampling, origins: Sequence[str],
    cache_bytes: int,
) -> None:  # fmt: skip
    """Answer requests until Ctrl-C. It is the last thing that a process does.

    Args:
        models: by name; the first one answers requests that name none.
        listener: see `bound`.
        sampling: of requests that do not say otherwise.
        origins: web pages that may ask.
        cache_bytes: most memory for keys and values of earlier requests.

    Raises:
        MlxmathError: the device failed, or ran out of memory.
    """
    from mlxmath.serving.engine import Engine, Models
    from mlxmath.serving.handler import Handler

    failures: list[Exception] = []

    def end(error: Exception) -> None:
        failures.append(error)
        listener.shutdown()

    engine = Engine(Models(models, sampling, origins, cache_bytes), end)
    try:
        listener.RequestHandlerClass = partial(Handler, engine)
        first, *_ = models
        templates = (
            f"{name} (template {one.template.name if one.template else 'none'})" for name, one in models.items()
        )
        say(f"serving at {listener.url}: {', '.join(templates)}; requests that name no model get {first}. Ctrl-C ends.")
        listener.serve_forever(poll_interval=0.2)
    except KeyboardInterrupt:
        say("stopped")
    finally:
        engine.stop_and_join()
        # One of MLX's threads may still free what it has computed, and ends the process if Python is gone then.
        atexit.register(os._exit, 1 if failures else 0)
    if failures:
        found = trouble(failures[0])
        what = (
            f"{found.what} ({failures[0]}). {found.remedy}" if found else f"{type(failures[0]).__name__}: {failures[0]}"
        )
        raise MlxmathError(f"the server ends, since the model does not answer any more: {what}")
