"""One question: every form of answer, every kind of failure, and the key nowhere but in its header."""

import asyncio
import base64
import gzip
import json
import shutil
import ssl
import subprocess
import threading
import time
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import pytest

from mlxmath.config.methods import DistillationConfig
from mlxmath.distillation.endpoint import Endpoint, retry_after
from mlxmath.distillation.teacher import Answer, Refused, TryAgain
from mlxmath.errors import InputError, MlxmathError
from tests.distillation.scripted import KEY, Script, completion, scripted


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEACHER_KEY", KEY)


def ask(server: Script | str, seed: int | None = None, **changes: Any) -> Answer:
    url = server if isinstance(server, str) else server.url
    given = {"teacher_url": url, "teacher_model": "m", "teacher_key_env": "TEACHER_KEY", "timeout_s": 5.0}
    endpoint = Endpoint(DistillationConfig(**given | changes))

    async def once() -> Answer:
        async with endpoint.client() as client:
            return await endpoint.request(client, "2 + 2?", seed)

    return asyncio.run(once())


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (completion("4"), "4"),
        (completion("4", reasoning_content="2 + 2"), "<think>\n2 + 2\n</think>\n\n4"),
        (completion("4", reasoning=" 2 + 2\n"), "<think>\n2 + 2\n</think>\n\n4"),
        (completion("4", reasoning_content=None, reasoning="why"), "<think>\nwhy\n</think>\n\n4"),
        (completion("<think>why</think>4", reasoning_content=""), "<think>why</think>4"),
        (completion("why</think>4"), "<think>\nwhy</think>4"),
        (completion(None, "length", reasoning_content="2 + "), "<think>\n2 +\n"),
        (completion(None, "length"), ""),
        (completion(" 4 "), "4"),
        (completion("", reasoning="why"), "<think>\nwhy\n</think>\n\n"),
        (completion("4", "length", reasoning="why"), "<think>\nwhy\n</think>\n\n4"),
        (
            completion([{"type": "thinking", "thinking": [{"type": "text", "text": "why"}]},
                        {"type": "text", "text": "4"}]),
            "<think>\nwhy\n</think>\n\n4",
        ),
    ],
)  # fmt: skip
def test_reasoning_stands_before_the_answer(reply: dict[str, Any], expected: str) -> None:
    with scripted(lambda request, body, n: request.reply(reply)) as server:
        assert ask(server) == Answer(expected, reply["choices"][0]["finish_reason"], 10, 20)


def test_the_request_holds_what_was_set_and_the_key_only_in_its_header() -> None:
    bodies = []

    def act(request: Any, body: dict[str, Any], attempt: int) -> None:
        bodies.append((request.path, body))
        request.reply(completion("4"))

    nothing = {"top_p": None, "max_tokens": None}
    with scripted(act) as server:
        ask(server, 7, teacher_extra=json.dumps({**nothing, "temperature": 0.5, "max_completion_tokens": 9}))
        bare = json.dumps({**nothing, "temperature": None})
        ask(f"{server.url}/chat/completions", teacher_key_env=None, teacher_extra=bare)
        assert server.keys == {f"Bearer {KEY}", None}
    message = {"messages": [{"role": "user", "content": "2 + 2?"}], "model": "m"}
    assert bodies == [
        ("/v1/chat/completions", message | {"temperature": 0.5, "max_completion_tokens": 9, "seed": 7}),
        ("/v1/chat/completions", message),
    ]


@pytest.mark.parametrize(
    ("status", "kind"),
    [(500, TryAgain), (503, TryAgain), (429, TryAgain), (408, TryAgain), (400, Refused),
     (422, Refused), (401, MlxmathError), (404, MlxmathError), (302, MlxmathError), (307, MlxmathError)],
)  # fmt: skip
def test_statuses(status: int, kind: type[Exception]) -> None:
    elsewhere: list[Any] = []
    with (
        scripted(lambda request, body, n: elsewhere.append(body)) as other,
        scripted(
            lambda request, body, n: request.reply(
                {"error": {"message": f"no: {KEY} is bad"}}, status, Retry_After="3", Location=other.url
            )
        ) as server,
        pytest.raises(kind, match=rf"HTTP {status}: no: \[key\] is bad") as caught,
    ):
        ask(server)
    assert KEY not in str(caught.value) and not elsewhere
    if isinstance(caught.value, TryAgain):
        assert caught.value.retry_after_s == 3


def write(content: bytes, request: Any) -> None:
    request.wfile.write(content)


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (lambda request: request.hang_up(), "connection: "),
        *(
            (partial(write, b"HTTP/1.1 200 OK\r\nContent-Length: " + length + b"\r\n\r\n{}"), "connection: ")
            for length in (b"abc", "\u00b2".encode("latin-1"), b"-1", b"", b"5\r\nContent-Length: 7", b"9" * 5000)
        ),
        (lambda request: request.cut(completion("4" * 100)), "connection: "),
        (lambda request: request.reply(b'{"choices": ['), "the reply is not JSON"),
        (lambda request: request.reply(b"<html>"), "the reply is not JSON"),
        (lambda request: request.reply(b"[" * 200_000), "the reply is not JSON"),
        (lambda request: request.reply(b'data: {"choices": []}\n\ndata: [DONE]\n'), "the reply is a stream"),
        (lambda request: request.reply(b"[]"), "the reply holds no answer"),
        (lambda request: request.reply({"choices": []}), "the reply holds no answer"),
        (lambda request: request.reply({"choices": [{"message": None}]}), "the reply holds no answer"),
        (lambda request: request.reply({"error": {"message": f"{KEY}!"}}), r"the reply holds no answer: \[key\]!"),
    ],
)  # fmt: skip
def test_what_is_no_answer_is_asked_again(act: Any, said: str) -> None:
    with (
        scripted(lambda request, body, n: act(request)) as server,
        pytest.raises(TryAgain, match=said),
    ):
        ask(server)


SPELT = (
    KEY, KEY.replace("s", "\\u0073"), KEY.replace("-", "\\\\u002D"), KEY.replace("-", "%2d"), KEY.replace("-", "%252D"),
    "".join(f"\\u{ord(c):04x}" for c in KEY), KEY.encode().hex(), "\\n".join(KEY), KEY[:9] + " + '" + KEY[9:],
)  # fmt: skip


@pytest.mark.parametrize("spelt", SPELT)
def test_the_key_does_not_come_back_however_it_is_spelt(spelt: str) -> None:
    def act(request: Any, body: dict[str, Any], attempt: int) -> None:
        told = f"https://h/v1?key={spelt}&{'x' * 170} {spelt}"
        if body["seed"] == 1:
            request.reply(json.dumps(completion("@")).replace("@", told).encode())
        else:
            request.reply(
                json.dumps({"error": {"message": "@"}}).replace("@", told).encode(), (400, 200)[body["seed"] - 2]
            )

    with scripted(act) as server:
        assert ask(server, 1).text == f"https://h/v1?key=[key]&{'x' * 170} [key]"
        for seed in (2, 3):
            with pytest.raises((Refused, TryAgain), match=r"https://h/v1\?key=\[key\]&xxx") as caught:
                ask(server, seed)
            assert KEY[:6] not in str(caught.value) and spelt[:6] not in str(caught.value)


@pytest.mark.parametrize("before", ["", "a", "Bearer ", "user:"])
@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
def test_the_key_does_not_come_back_in_base64(before: str, encode: Any) -> None:
    told = encode(f"{before}{KEY}".encode()).decode()
    with (
        scripted(lambda request, body, n: request.reply({"error": {"message": f"({told})"}}, 400)) as server,
        pytest.raises(Refused, match=r"\(\w*\[key\]\w?=*\)") as caught,
    ):
        ask(server)
    assert told[12:24] not in str(caught.value)


def test_an_error_that_ends_in_half_a_key_is_not_said() -> None:
    body = " " * ((1 << 16) - 12) + KEY * 2
    with (
        scripted(lambda request, _, n: request.reply(body.encode(), 400)) as server,
        pytest.raises(Refused, match=r"^HTTP 400$"),
    ):
        ask(server)


def test_nothing_that_a_terminal_obeys_is_said() -> None:
    hostile = "\x1b]0;pwned\x07\x1b[2J\r\u202e\ud800 plain é\n"
    with (
        scripted(lambda request, body, n: request.reply({"error": {"message": hostile}}, 400)) as server,
        pytest.raises(Refused, match=r"^HTTP 400: \]0;pwned \[2J plain é$"),
    ):
        ask(server)


def trickle(request: Any, *pieces: bytes, over: threading.Event) -> None:
    """Write a piece each 20 ms until it is over, the last one again and again."""
    for piece in chain(pieces, repeat(pieces[-1])):
        request.wfile.write(piece)
        if over.wait(0.02):
            break


SLOW: dict[str, tuple[type[Exception], str, tuple[bytes, ...]]] = {
    "silence": (TryAgain, "no answer within 0.4 s", (b"",)),
    "headers": (TryAgain, "no answer within 0.4 s", (b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n")),
    "one header": (TryAgain, "no answer within 0.4 s", (b"HTTP/1.1 200 OK\r\nX-A: ", b"b")),
    "continue": (TryAgain, "no answer within 0.4 s", (b"HTTP/1.1 100 Continue\r\n\r\n",)),
    "body": (TryAgain, "no answer within 0.4 s", (b"HTTP/1.1 200 OK\r\n\r\n", b" ")),
    "error body": (TryAgain, "HTTP 500$", (b"HTTP/1.1 500 No\r\n\r\na", b"b")),
    "fatal error body": (MlxmathError, "HTTP 401; name", (b"HTTP/1.1 401 No\r\n\r\na", b"b")),
}


@pytest.mark.parametrize("name", SLOW)
def test_the_time_limit_bounds_every_part_of_a_reply(name: str) -> None:
    kind, said, pieces = SLOW[name]
    over = threading.Event()
    with scripted(lambda request, body, n: trickle(request, *pieces, over=over)) as server:
        start = time.monotonic()
        with pytest.raises(kind, match=said):
            ask(server, timeout_s=0.4)
        assert 0.4 <= time.monotonic() - start < 3
        over.set()


def test_continue_without_end_and_without_pause_is_bounded_too() -> None:
    flood = repeat(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000)
    with (
        scripted(lambda request, body, n: request.wfile.writelines(flood)) as server,
        pytest.raises(TryAgain, match=r"no answer within 0\.3 s|connection: "),
    ):
        ask(server, timeout_s=0.3)


@pytest.mark.parametrize("headers", [{}, {"Content_Encoding": "gzip"}])
def test_a_reply_without_measure_is_not_held(headers: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlxmath.distillation.endpoint._MOST_BYTES", 1 << 20)
    content = gzip.compress(b" " * (2 << 20)) if headers else b" " * (2 << 20)
    with (
        scripted(lambda request, body, n: request.reply(content, **headers)) as server,
        pytest.raises(TryAgain, match="a reply of more than 1 MB"),
    ):
        ask(server)


def test_nobody_there_is_asked_again() -> None:
    with scripted(lambda request, body, n: None) as server:
        pass
    with pytest.raises(TryAgain, match="connection: "):
        ask(server)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl, which makes a certificate")
def test_a_certificate_that_nobody_vouches_for_ends_the_run(tmp_path: Path) -> None:
    key, certificate = str(tmp_path / "key.pem"), str(tmp_path / "certificate.pem")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", key,
         "-out", certificate, "-subj", "/CN=localhost"], check=True, capture_output=True,
    )  # fmt: skip
    with scripted(lambda request, body, n: None) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        with pytest.raises(MlxmathError, match="its certificate is not valid .self"):
            ask(server.url.replace("http:", "https:"))


def test_no_proxy_stands_before_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "socks9://nowhere")
    with scripted(lambda request, body, n: request.reply(completion("4"))) as server:
        assert ask(server).text == "4"
    with pytest.raises(MlxmathError, match="the proxy that the environment names cannot be used"):
        ask("https://example.invalid/v1")


@pytest.mark.parametrize("host", ["a..b", "a" * 64 + ".org", "\u202eabc", "\u00b2"])
def test_a_host_that_cannot_be_is_refused(host: str) -> None:
    with pytest.raises(InputError, match="--teacher-url"):
        ask(f"http://{host}/v1", teacher_key_env=None)


def test_odd_counts_of_tokens_are_none() -> None:
    odd = completion("4") | {"usage": {"prompt_tokens": True, "completion_tokens": -1}}
    with scripted(lambda request, body, n: request.reply(odd)) as server:
        assert repr(ask(server)) == repr(Answer("4", "stop", 0, 0))


def test_retry_after_as_a_number_and_as_a_date() -> None:
    assert retry_after("2.5", 0) == 2.5
    assert retry_after("Thu, 01 Jan 1970 00:01:40 GMT", 40.0) == 60.0
    hostile = (None, "soon", "-1", "nan", "inf", "", "Thu, 01 Jan 99999 00:00:00 GMT", "Thu, 99 Xyz 1970 99:99:99")
    assert [retry_after(text, 100.0) for text in hostile] == [None] * len(hostile)
    assert retry_after("Thu, 01 Jan 1970 00:01:40 GMT", 200.0) is None


def test_a_key_on_its_way_unencrypted_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("mlxmath.distillation.endpoint.warn", said.append)
    for url, key in [
        ("https://example.org/v1", "TEACHER_KEY"), ("http://localhost:8080/v1", "TEACHER_KEY"),
        ("http://example.org/v1", None), ("http://example.org/v1", "TEACHER_KEY"),
    ]:  # fmt: skip
        assert not said
        Endpoint(DistillationConfig(teacher_url=url, teacher_model="m", teacher_key_env=key))
    assert len(said) == 1 and "the key crosses the network unencrypted" in said[0]
