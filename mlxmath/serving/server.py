"""Where `mlxmath serve` listens, and how long."""

import atexit
import ipaddress
import json
import math
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from http.server import ThreadingHTTPServer
from socketserver import BaseRequestHandler, TCPServer
from typing import Any

from mlxmath.errors import InputError, MlxmathError
from mlxmath.generation.engine import Sampling
from mlxmath.generation.model import LanguageModel
from mlxmath.runtime.console import fail, put, say, warn
from mlxmath.runtime.trouble import trouble


class IdleError(Exception):
    """Nobody has asked for as long as the listener was told to wait."""


class Listener(ThreadingHTTPServer):
    """A socket that listens, a thread for each connection."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, *args: Any) -> None:
        self._lock, self._num_open, self._idle_since_s, self._most_idle_s = threading.Lock(), 0, 0.0, math.inf
        super().__init__(*args)

    def end_when_idle(self, seconds: float) -> None:
        """From now on so many seconds without a request end `serve_forever`, with an `IdleError`."""
        self._idle_since_s, self._most_idle_s = time.monotonic(), seconds

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer a request; meanwhile nobody is idle."""
        with self._lock:
            self._num_open += 1
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._lock:
                self._num_open -= 1
                self._idle_since_s = time.monotonic()

    def service_actions(self) -> None:
        """Called between requests, several times a second."""
        with self._lock:
            if not self._num_open and time.monotonic() - self._idle_since_s > self._most_idle_s:
                raise IdleError

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
    cache_bytes: int, idle_minutes: float | None = None,
) -> None:  # fmt: skip
    """Answer requests until Ctrl-C. It is the last thing that a process does.

    A line of JSON on standard output tells programs where it listens, once it does.

    Args:
        models: by name; the first one answers requests that name none.
        listener: see `bound`.
        sampling: of requests that do not say otherwise.
        origins: web pages that may ask.
        cache_bytes: most memory for keys and values of earlier requests.
        idle_minutes: end after so many without a request, too.

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
        put(json.dumps({"url": listener.url, "models": list(models)}))
        if idle_minutes is not None:
            listener.end_when_idle(60 * idle_minutes)
        listener.serve_forever(poll_interval=0.2)
    except KeyboardInterrupt:
        say("stopped")
    except IdleError:
        say(f"ended after {idle_minutes:g} minutes without a request")
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
