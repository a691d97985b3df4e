"""Sockets that listen on this machine, or, where the user says so, to the network."""

import ipaddress
import math
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from socketserver import BaseRequestHandler, TCPServer
from typing import Any

from mlxmath.errors import InputError, MlxmathError
from mlxmath.runtime.console import fail, warn


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


@contextmanager
def bound(host: str, port: int, warning: str) -> Iterator[Listener]:
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
