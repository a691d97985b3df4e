"""`mlxmath serve`, asked by OpenAI's client and by hostile ones."""

import json
import shutil
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from mlxmath.errors import InputError
from mlxmath.runtime.listening import IdleError, bound
from mlxmath.serving.engine import ended
from mlxmath.serving.names import adapters_by_name
from tests.helpers import run, succeed
from tests.serving.served import serving

QUESTIONS = ["What is 12 + 7?", "Tom has 5 apples. He buys 4 more. How many apples does Tom have?"]


@pytest.fixture(scope="module")
def folder(debug_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with two adapters: the trained one, and its opposite."""
    import mlx.core as mx

    folder = tmp_path_factory.mktemp("serve")
    shutil.copytree(debug_run / "mlx_model", folder / "mlx_model")
    for name in ("adapters", "opposite"):
        shutil.copytree(debug_run / "adapters", folder / name, ignore=shutil.ignore_patterns("checkpoints"))
    path = str(folder / "opposite" / "adapters.safetensors")
    arrays = dict(mx.load(path))
    mx.save_safetensors(path, {name: -a if name.endswith("lora_b") else a for name, a in arrays.items()})
    return folder


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    with serving(folder, "--adapter", "sft=adapters", "--adapter", "team/opposite=opposite") as found:
        yield found


def infer(folder: Path, question: str, *arguments: str) -> dict[str, Any]:
    return json.loads(succeed(folder, "infer", "--json", "--prompt", question, *arguments).stdout)


def post(url: str, body: Any, path: str = "/chat/completions", **headers: str) -> tuple[int, dict[str, Any]]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        with urllib.request.urlopen(urllib.request.Request(url + path, data, headers), timeout=60) as found:
            return found.status, json.loads(found.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def user(text: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


@pytest.fixture(scope="module")
def client(url: str) -> Any:
    openai = pytest.importorskip("openai", reason="the parity extra is not installed")
    return openai.OpenAI(base_url=url, api_key="none", timeout=60, max_retries=0)


def test_each_model_answers_by_its_name(client: Any, folder: Path) -> None:
    options = {"sft": (), "team/opposite": ("--adapter-path", "opposite"), "base": ("--no-adapter",)}
    texts = set()
    for name, arguments in options.items():
        for question in QUESTIONS:
            expected = infer(folder, question, *arguments)
            for _ in range(2):  # the second time from what was kept
                served = client.chat.completions.create(model=name, **user(question))
                assert served.choices[0].message.content == expected["text"]
                assert served.choices[0].finish_reason == expected["finish_reason"]
                assert (served.model, served.usage.prompt_tokens) == (name, expected["prompt_tokens"])
        texts.add(expected["text"])
    assert len(texts) > 1
    assert [one.id for one in client.models.list()] == list(options)
    assert client.models.retrieve("team/opposite").id == "team/opposite"


def test_streaming_gives_the_same_in_pieces(client: Any, folder: Path) -> None:
    pieces = client.chat.completions.create(
        model="default_model", stream=True, stream_options={"include_usage": True}, **user(QUESTIONS[0])
    )
    *chunks, last = list(pieces)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    expected = infer(folder, QUESTIONS[0])
    assert text == expected["text"] and len(chunks) > 3
    assert last.usage.prompt_tokens == expected["prompt_tokens"]


def test_several_turns_are_those_of_chat(client: Any, folder: Path) -> None:
    messages: list[dict[str, str]] = []
    for text in QUESTIONS:
        messages.append({"role": "user", "content": text})
        served = client.chat.completions.create(model="sft", messages=messages).choices[0].message.content
        messages.append({"role": "assistant", "content": served})
    said = succeed(folder, "chat", stdin="\n".join(QUESTIONS))
    assert said.stdout == "".join(f"{one['content']}\n" for one in messages[1::2])


def test_a_stop_string_ends_an_answer_wherever_tokens_end(client: Any, folder: Path) -> None:
    whole = infer(folder, QUESTIONS[0])["text"]
    for stop in (whole[3:6], whole[5:12], whole[0]):
        served = client.chat.completions.create(model="sft", stop=[stop, "never"], **user(QUESTIONS[0]))
        assert (served.choices[0].message.content or "") == whole.partition(stop)[0]
        assert served.choices[0].finish_reason == "stop"
    short = client.chat.completions.create(model="sft", max_tokens=3, **user(QUESTIONS[0])).choices[0]
    expected = infer(folder, QUESTIONS[0], "--max-new-tokens", "3")
    assert (short.message.content, short.finish_reason) == (expected["text"], "length")


def test_many_at_once(client: Any, folder: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    expected = [infer(folder, question)["text"] for question in QUESTIONS]

    def ask(number: int) -> str:
        more = {"seed": 3} if number % 5 == 0 else {}
        found = client.chat.completions.create(
            model=("sft", "base")[number % 3 == 0], **user(QUESTIONS[number % 2]), **more
        )
        return found.choices[0].message.content

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(16)))
    assert all(answers[i] == expected[i % 2] for i in range(16) if i % 3)


def test_a_text_that_ends_where_an_answer_did_goes_on(client: Any, folder: Path) -> None:
    """At this mlx_lm's own server ends (0.32.2)."""
    first = client.completions.create(model="sft", prompt=QUESTIONS[0], max_tokens=5).choices[0].text
    more = client.completions.create(model="sft", prompt=QUESTIONS[0] + first, max_tokens=5)
    assert more.usage.prompt_tokens_details.cached_tokens == more.usage.prompt_tokens - 1
    expected = infer(folder, QUESTIONS[0] + first, "--raw", "--max-new-tokens", "5")
    assert more.choices[0].text.strip() == expected["text"].strip()


def test_an_unknown_model_is_none(client: Any) -> None:
    import openai

    with pytest.raises(openai.NotFoundError, match="there are sft, team/opposite, base"):
        client.chat.completions.create(model="gpt-4o", **user("Hello"))


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"{", 400, "not JSON"),
        (b"\xff\xfe", 400, "not JSON"),
        (b"[" * 100_000, 400, "not JSON"),
        (b"[]", 400, "a JSON object"),
        (b'{"temperature": NaN}', 400, "NaN"),
        ({"messages": []}, 400, "a list of 1 to 512"),
        ({"messages": [{"role": "user", "content": "a"}] * 600}, 400, "a list of 1 to 512"),
        ({"messages": ["a"]}, 400, "messages[0]"),
        ({"messages": [{"role": "tool", "content": "a"}]}, 400, "messages[0]"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, 400, "must be the user's"),
        (user(5), 400, "content"),
        (user([{"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/secret"}}]), 400, "content"),
        (user("12 + " * 900), 400, "context ends at 1,024"),
        (user("a") | {"tools": [{"type": "function"}]}, 400, "tools"),
        (user("a") | {"n": 2}, 400, "n: one answer"),
        (user("a") | {"adapters": "/etc"}, 400, "adapters"),
        (user("a") | {"draft_model": "x"}, 400, "draft_model"),
        (user("a") | {"chat_template_kwargs": {"chat_template": "x"}}, 400, "chat_template_kwargs"),
        (user("a") | {"stop": [""]}, 400, "stop"),
        (user("a") | {"seed": -1}, 400, "seed"),
        (user("a") | {"max_tokens": 0}, 400, "max_tokens"),
        (user("a") | {"temperature": "warm"}, 400, "temperature"),
        (user("a") | {"logit_bias": {"99999999": 5}}, 400, "logit_bias"),
        (user("a") | {"logit_bias": {"5": 10**400}}, 400, "logit_bias"),
        (user("a") | {"temperature": 10**400}, 400, "temperature"),
        (user("a") | {"top_k": 10**30}, 400, "top_k"),
        (user("a") | {"repetition_penalty": 1.2, "repetition_context_size": 1 << 70}, 400, "repetition_context_size"),
        (user("a") | {"stream": True, "stream_options": 5}, 400, "stream_options"),
        (json.dumps(user("a")).encode("utf-16"), 400, "not JSON"),
        (user("a") | {"model": "/etc/passwd"}, 404, "there is no model"),
        (user("a") | {"model": ["sft"]}, 404, "there is no model"),
    ],
    ids=str,
)
def test_bad_requests(url: str, body: Any, status: int, message: str) -> None:
    found, answer = post(url, body)
    text = answer["error"] if isinstance(answer["error"], str) else answer["error"]["message"]
    assert (found, message in text) == (status, True), answer


def test_extreme_ways_of_drawing_leave_the_server_alone(url: str, folder: Path) -> None:
    few = user(QUESTIONS[0]) | {"max_tokens": 8}
    assert post(url, few | {"temperature": 1, "top_k": 1_000_000})[0] == 200
    _, answer = post(url, few | {"temperature": 1e-300})
    expected = infer(folder, QUESTIONS[0], "--max-new-tokens", "8")["text"]
    assert answer["choices"][0]["message"]["content"] == expected


def test_what_is_no_request_and_who_may_not_ask(url: str) -> None:
    assert post(url, user("a"), Origin="https://example.com")[0] == 403
    assert post(url, b" " * (5 << 20))[0] == 413
    assert post(url, {"prompt": [1, 2]}, "/completions")[0] == 400
    host, port = url.removeprefix("http://").removesuffix("/v1").split(":")
    for length in (b"-1", b"x", b"", b"1_0"):
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: " + length + b"\r\n\r\n")
            assert b" 411 " in connection.recv(1000).splitlines()[0]
    with socket.create_connection((host, int(port)), timeout=10) as connection:  # gone before the answer
        body = json.dumps(user("a") | {"stream": True}).encode()
        connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    assert post(url, user(QUESTIONS[0]) | {"max_tokens": None, "temperature": None})[0] == 200


def test_a_taken_port_and_a_wrong_host_are_one_line(url: str, folder: Path) -> None:
    port = url.removesuffix("/v1").rpartition(":")[2]
    taken = run(folder, "serve", "--port", port)
    assert taken.returncode == 1 and f"cannot listen at 127.0.0.1, port {port}" in taken.stderr.splitlines()[-1]
    wrong = run(folder, "serve", "--host", "no such host")
    assert wrong.returncode == 2 and "--host no such host" in wrong.stderr.splitlines()[-1]
    opened = run(folder, "serve", "--host", "0.0.0.0", "--port", "0", "--adapter-path", "nowhere")
    assert opened.returncode == 1 and "everybody who can reach this machine" in opened.stderr


def test_names(tmp_path: Path) -> None:
    usual = Path("runs/adapters")
    (loop := tmp_path / "loop").symlink_to(loop)  # what it leads to is told where it is opened
    assert adapters_by_name((), loop, base_only=False) == {"loop": loop}
    assert adapters_by_name((), usual, base_only=False) == {"adapters": usual}
    assert adapters_by_name((), Path("base"), base_only=False) == {"tuned": Path("base")}
    assert adapters_by_name((), usual, base_only=True) == {}
    assert adapters_by_name(("a=x", "b=y=z"), usual, base_only=False) == {"a": Path("x"), "b": Path("y=z")}
    for wrong in (("x",), ("=x",), ("a=",), ("a b=x",), ("base=x",), ("default_model=x",), ("a=x", "a=y")):
        with pytest.raises(InputError, match="--adapter"):
            adapters_by_name(wrong, usual, base_only=False)
    with pytest.raises(InputError, match="--no-adapter"):
        adapters_by_name(("a=x",), usual, base_only=True)


@dataclass
class Response:
    text: str
    finish_reason: str | None = None


@pytest.mark.parametrize(
    ("pieces", "stops", "expected"),
    [
        (["a", "b", ("", "stop")], (), ("ab", "stop")),
        (["a", "b", ("c", "length")], (), ("abc", "length")),
        (["a", "b", (" ", "stop")], (), ("ab ", "stop")),
        (["a\n", "\nb", ("c", "length")], ("\n\n",), ("a", "stop")),
        (["ab\n\n", "c", ("d", "length")], ("\n\n",), ("ab", "stop")),
        (["a\n", "b", ("\n", "stop")], ("\n\n",), ("a\nb\n", "stop")),
        (["stop", "x"], ("stop",), ("", "stop")),
    ],
)
def test_an_answer_is_cut_before_a_stop_string(pieces: list[Any], stops: tuple[str, ...], expected: Any) -> None:
    given = iter([Response(one) if isinstance(one, str) else Response(*one) for one in pieces])
    found = list(ended(given, stops))
    shown = "".join(one.text for one in found if one.finish_reason != "stop")  # mlx_lm drops that one's
    assert (shown, found[-1].finish_reason) == expected
    assert all(one.finish_reason is None for one in found[:-1])


def test_a_program_is_told_the_address_and_what_a_model_is_given(url: str, folder: Path) -> None:
    told = json.loads(next(line for line in (folder / "serve.log").read_text().splitlines() if line.startswith("{")))
    assert told == {"url": url, "models": ["sft", "team/opposite", "base"]}
    status, found = post(url, user(QUESTIONS[0]) | {"model": "sft"}, "/chat/prompt")
    assert status == 200 and QUESTIONS[0] in found["prompt"] and found["prompt"].startswith("You are a helpful math")
    assert found["num_tokens"] == infer(folder, QUESTIONS[0])["prompt_tokens"]
    assert post(url, {"messages": []}, "/chat/prompt")[0] == 400
    assert post(url, user("?") | {"model": "none"}, "/chat/prompt")[0] == 404
    assert post(url, user("?"), "/chat/prompt", Origin="http://evil.example")[0] == 403


def test_what_is_drawn_depends_on_the_seed(folder: Path) -> None:
    from mlx_lm.server import (
        CompletionRequest,
        GenerationArguments,
        LogitsProcessorArguments,
        ModelDescription,
        SamplingArguments,
    )

    from mlxmath.generation.model import open_model
    from mlxmath.generation.sampling import Sampling
    from mlxmath.serving.engine import Engine, Models

    model = open_model(folder / "mlx_model", "float32", raw=True)
    asked = GenerationArguments(
        ModelDescription("base", "default_model", None), SamplingArguments(2.0, 1.0, 0, 0.0, 0.0, 0.0),
        LogitsProcessorArguments(None, 0.0, 20, 0.0, 20, 0.0, 20), [], 16, 3, False, 0, None, None,
    )  # fmt: skip

    def answers(seed: int) -> list[str]:
        engine = Engine(Models({"base": model}, Sampling(16, 2.0, seed=seed), [], 1 << 20), lambda _: None)
        try:
            found = []
            for question in QUESTIONS:
                request = CompletionRequest("text", model.tokenizer.encode(question), [], None, None)
                found.append("".join(each.text for each in engine.generate(request, asked)[1]))
            return found
        finally:
            engine.stop_and_join()

    first = answers(5)
    assert first == answers(5) != answers(6) and first[0] != first[1]


def test_a_listener_ends_when_nobody_has_asked_for_a_while() -> None:
    answered = threading.Event()

    class Slow(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            time.sleep(0.5)  # longer than it may be idle
            self.send_response(204)
            self.end_headers()
            answered.set()

        def log_message(self, *_: object) -> None: ...

    with bound("127.0.0.1", 0, "") as listener:
        listener.RequestHandlerClass = Slow
        listener.end_when_idle(0.3)
        asking = threading.Thread(target=lambda: urllib.request.urlopen(listener.url, timeout=10).close())
        begun = time.monotonic()
        asking.start()
        with pytest.raises(IdleError):
            listener.serve_forever(poll_interval=0.05)
        assert answered.is_set() and time.monotonic() - begun > 0.7
        asking.join()
