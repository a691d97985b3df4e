"""One question: every form of answer, every kind of failure, and the key nowhere but in its header."""

import threading
from typing import Any

import pytest

from mlxmath.distillation.endpoint import Answer, Endpoint, RefusedError, TemporaryError, retry_after, with_thinking
from mlxmath.errors import MlxmathError
from tests.distillation.scripted import KEY, Script, completion, scripted


def endpoint(server: Script, **changes: Any) -> Endpoint:
    return Endpoint(**{"url": server.url, "model": "m", "settings": {}, "timeout_s": 5.0, "key": KEY} | changes)


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
        (
            completion([{"type": "thinking", "thinking": [{"type": "text", "text": "why"}]},
                        {"type": "text", "text": "4"}]),
            "<think>\nwhy\n</think>\n\n4",
        ),
    ],
)  # fmt: skip
def test_reasoning_stands_before_the_answer(reply: dict[str, Any], expected: str) -> None:
    with scripted(lambda request, body, n: request.reply(reply)) as server:
        answer = endpoint(server).ask("2 + 2?")
    assert answer == Answer(expected, reply["choices"][0]["finish_reason"], 10, 20)


def test_the_request_holds_what_was_set_and_the_key_only_in_its_header() -> None:
    bodies = []

    def act(request: Any, body: dict[str, Any], attempt: int) -> None:
        bodies.append((request.path, body))
        request.reply(completion("4"))

    settings = {"temperature": 0.5, "max_tokens": None, "max_completion_tokens": 9}
    with scripted(act) as server:
        asked = endpoint(server, settings=settings)
        asked.ask("2 + 2?", 7)
        endpoint(server, url=f"{server.url}/chat/completions", key=None).ask("2 + 2?")
        assert server.keys == {f"Bearer {KEY}", None}
    message = {"messages": [{"role": "user", "content": "2 + 2?"}], "model": "m"}
    assert bodies == [
        ("/v1/chat/completions", message | {"temperature": 0.5, "max_completion_tokens": 9, "seed": 7}),
        ("/v1/chat/completions", message),
    ]
    assert KEY not in repr(asked)


@pytest.mark.parametrize(
    ("status", "kind"),
    [(500, TemporaryError), (503, TemporaryError), (429, TemporaryError), (408, TemporaryError), (400, RefusedError),
     (422, RefusedError), (401, MlxmathError), (404, MlxmathError), (302, MlxmathError), (307, MlxmathError)],
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
        endpoint(server).ask("2 + 2?")
    assert KEY not in str(caught.value) and not elsewhere
    if isinstance(caught.value, TemporaryError):
        assert caught.value.retry_after_s == 3


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (lambda request: request.hang_up(), "connection: "),
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
)
def test_what_is_no_answer_is_asked_again(act: Any, said: str) -> None:
    with (
        scripted(lambda request, body, n: act(request)) as server,
        pytest.raises(TemporaryError, match=said),
    ):
        endpoint(server).ask("2 + 2?")


def test_silence_and_dripping_both_time_out() -> None:
    def drip(request: Any, body: dict[str, Any], attempt: int) -> None:
        if body["seed"] == 2:
            request.send_response(200)
            request.end_headers()
        while not over.wait(0.05):
            if body["seed"] == 2:
                request.wfile.write(b" ")

    over = threading.Event()
    with scripted(drip) as server:
        for seed in (1, 2):
            with pytest.raises(TemporaryError, match=r"no answer within 0\.3 s"):
                endpoint(server, timeout_s=0.3).ask("2 + 2?", seed)
        over.set()


def test_nobody_there_is_asked_again() -> None:
    with scripted(lambda request, body, n: None) as server:
        gone = endpoint(server)
    with pytest.raises(TemporaryError, match="connection: "):
        gone.ask("2 + 2?")


def test_retry_after_as_a_number_and_as_a_date() -> None:
    assert retry_after("2.5", 0) == 2.5
    assert retry_after("Thu, 01 Jan 1970 00:01:40 GMT", 40.0) == 60.0
    hostile = (None, "soon", "-1", "nan", "inf", "", "Thu, 01 Jan 99999 00:00:00 GMT", "Thu, 99 Xyz 1970 99:99:99")
    assert [retry_after(text, 100.0) for text in hostile] == [None] * len(hostile)
    assert retry_after("Thu, 01 Jan 1970 00:01:40 GMT", 200.0) is None


def test_open_thinking_stays_open_only_where_it_was_cut() -> None:
    assert with_thinking("", "because", finished=False) == "<think>\nbecause\n"
    assert with_thinking("", "because") == "<think>\nbecause\n</think>\n\n"
    assert with_thinking("4", "because", finished=False) == "<think>\nbecause\n</think>\n\n4"
    assert with_thinking(" 4 ") == "4"


def test_a_key_on_its_way_unencrypted_is_noticed() -> None:
    def plain(url: str, key: str | None) -> bool:
        return Endpoint(url, "m", {}, 1.0, key).is_plain_text_abroad

    assert plain("http://example.org/v1", KEY)
    assert not any((plain("https://example.org/v1", KEY), plain("http://localhost:8080/v1", KEY)))
    assert not plain("http://example.org/v1", None)
