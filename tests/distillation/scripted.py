"""An OpenAI-compatible endpoint that answers sums, and misbehaves as its script says."""

import json
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-secret-0123456789"
SUM = re.compile(r"What is (\d+) \+ (\d+)\?")


def completion(text: str | None, reason: str = "stop", **message: Any) -> dict[str, Any]:
    """A chat completion's JSON."""
    choice = {"index": 0, "finish_reason": reason, "message": {"role": "assistant", "content": text, **message}}
    return {"choices": [choice], "usage": {"prompt_tokens": 10, "completion_tokens": 20}}


class Script(ThreadingHTTPServer):
    """Counts the requests of each body and has `act` answer them."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, act: "Callable[[Request, dict[str, Any], int], object]") -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.act = act
        self.seen: Counter[str] = Counter()
        """Requests by their body."""
        self.answered: Counter[str] = Counter()
        """Whole answers sent, by body."""
        self.times: list[float] = []
        self.keys: set[str | None] = set()
        self.most_at_once = self.at_once = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, *_: Any) -> None:
        """Clients that have gone are part of the play."""


class Request(BaseHTTPRequestHandler):
    """One request; `act` calls the methods below."""

    server: Script
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        server = self.server
        self.body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        with server.lock:
            server.seen[self.body] += 1
            attempt = server.seen[self.body]
            server.times.append(time.monotonic())
            server.keys.add(self.headers.get("Authorization"))
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
        try:
            server.act(self, json.loads(self.body), attempt)
        finally:
            with server.lock:
                server.at_once -= 1
            self.close_connection = True

    def reply(self, value: Any, status: int = 200, **headers: str) -> None:
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in ({"Content_Length": str(len(content))} | headers).items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        self.wfile.write(content)
        if isinstance(value, dict) and "choices" in value:
            with self.server.lock:
                self.server.answered[self.body] += 1

    def cut(self, value: Any) -> None:
        """Send half of a reply, and hang up."""
        content = json.dumps(value).encode()
        self.reply(content[: len(content) // 2], Content_Length=str(len(content)))
        self.hang_up()

    def hang_up(self) -> None:
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_: Any) -> None:
        """Silent."""


def sum_of(body: dict[str, Any]) -> tuple[int, int]:
    found = SUM.search(body["messages"][-1]["content"])
    assert found, body
    return int(found[1]), int(found[2])


def solution(a: int, b: int) -> str:
    return f"We add the two numbers: {a} + {b} = {a + b}. The answer is \\boxed{{{a + b}}}."


@contextmanager
def scripted(act: Callable[[Request, dict[str, Any], int], object]) -> Iterator[Script]:
    """Serve until the block ends."""
    server = Script(act)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
