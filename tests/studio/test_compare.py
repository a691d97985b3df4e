"""`/compare`: answers as they come, graded as evaluation does; the process that gives them, and when it ends."""

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
import uvicorn
from starlette.testclient import TestClient

from mlxmath.errors import InputError, MlxmathError
from mlxmath.grading import grade
from mlxmath.studio import questions
from mlxmath.studio.answers import question
from mlxmath.studio.app import create_app
from mlxmath.studio.form import check, draft_of
from mlxmath.studio.guard import Guard
from mlxmath.studio.jobs import Job, runs
from mlxmath.studio.model_server import Server
from mlxmath.studio.place import Studio
from mlxmath.studio.tuned import Adapter, argument, further, models, served_names
from tests.helpers import wait_until
from tests.studio.browser import PHONE, Served, is_dark, is_too_wide
from tests.studio.make import HOSTILE

ASKED = {"model": "mlx_model", "adapter": ["", "adapters"], "question": "What is 12 + 7?", "gold": "19",
         "temperature": "0", "max_tokens": "80"}  # fmt: skip


@pytest.fixture
def tuned(folder: Path, debug_run: Path) -> Path:
    """The studio's folder with the demo's model and an adapter."""
    shutil.copytree(debug_run / "mlx_model", folder / "mlx_model")
    shutil.copytree(debug_run / "adapters", folder / "adapters", ignore=shutil.ignore_patterns("checkpoints"))
    return folder


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


# What is there to be asked


def test_a_run_begins_with_an_adapter_of_its_own_shape(tuned: Path, studio: Studio, client: TestClient) -> None:
    shutil.copytree(tuned / "adapters", tuned / "run" / "checkpoints" / "step-1")
    for name in ("adapters", "run/checkpoints/step-1"):
        settings = further(studio, "", name)
        assert settings["init_adapter"] == name and settings["mlx_path"] == "mlx_model" and settings["lora_rank"]
        checked = check(studio, draft_of(settings | {"command": "dpo", "adapter_path": "new"}))
        assert checked.is_good and checked.resolved
        assert checked.resolved.config.lora.targets
        page = client.get("/compare", params={"adapter": name}).text
        assert re.search(f'value="{name}" checked', page) and page.count(" checked") == 2
    assert further(studio, "mlx_model", None) == {"model": "demo", "mlx_path": "mlx_model"}
    assert further(studio, "", "nowhere") == {}


def test_models_have_their_own_adapters(tuned: Path, studio: Studio, client: TestClient) -> None:
    shutil.copytree(tuned / "adapters", tuned / "runs" / "a run" / "best")
    shutil.copy(tuned / "adapters" / "adapter_config.json", tuned / "runs" / "a run")
    config = json.loads((tuned / "adapters" / "adapter_config.json").read_text())
    others = {
        "other": {"base_fingerprint": "of another"},
        "peft": {"base_fingerprint": None},
        "rm": {"reward_model": True},
    }
    for name, change in others.items():
        shutil.copytree(tuned / "adapters", tuned / name)
        (tuned / name / "adapter_config.json").write_text(json.dumps(config | change))
    (tuned / "damaged").mkdir()
    (tuned / "damaged" / "mlxmath.json").write_text("{")
    (found,) = models(studio)
    assert found.name == "mlx_model" and {one.name for one in found.adapters} == {"adapters", "runs/a run/best", "peft"}
    page = client.get("/compare", params={"adapter": "runs/a run/best", "question": "<b>"}).text
    assert 'value="runs/a run/best" checked' in page and 'value="adapters">' in page and ">&lt;b&gt;</textarea>" in page
    assert 'value="peft">' in client.get("/compare/contestants?model=mlx_model").text
    assert client.post("/compare/end").status_code == 204


def test_adapters_are_served_under_names_that_can_be(studio: Studio) -> None:
    given = ["adapters", "a b", "a,b", "base", "/../x", "~x", "ü", "d" * 200, "."]
    names = served_names([Adapter(name, 1, None) for name in given])
    assert list(names)[:5] == ["adapters", "a_b", "a_b-2", "base-2", "../x"] and len(names) == len(given)
    from mlxmath.serving.names import adapters_by_name

    read = adapters_by_name(
        [f"{name}={argument(studio, one.name)}" for name, one in names.items()], Path(), base_only=False
    )
    assert read["_x"] == studio.folder / "~x" and read["a_b-2"] == Path("a,b")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"model": "../elsewhere"}, "lies outside"), ({"model": "/etc"}, "lies outside"),
        ({"model": ""}, "expected a folder"), ({"model": "mlx_model\0"}, "zero byte"),
        ({"adapter": "../x"}, "lies outside"), ({"adapter": "none"}, "holds none"),
        ({"question": "  "}, "there is none"), ({"temperature": ""}, "from 0 to 2"),
        ({"temperature": "nan"}, "from 0 to 2"), ({"temperature": "-1"}, "from 0 to 2"),
        ({"max_tokens": "0"}, "from 1"),
        ({"max_tokens": "1e9"}, "from 1"), ({"max_tokens": ""}, "from 1"),
    ],
)  # fmt: skip
def test_a_question_that_cannot_be_asked_says_why(
    folder: Path, client: TestClient, studio: Studio, change: dict[str, str], why: str
) -> None:
    (folder / "mlx_model").mkdir()
    (folder / "mlx_model" / "config.json").write_text("{}")
    values = {"model": "mlx_model", "question": "?", "temperature": "0", "max_tokens": "5"} | change
    with pytest.raises(InputError, match=why):
        question(studio, values, [values["adapter"]] if "adapter" in change else [])
    (told,) = lines(client.post("/compare/answer", data=values).text)
    assert why in told["error"] and not list(studio.jobs.all())


def test_problems_are_drawn_with_their_answers(folder: Path, client: TestClient, studio: Studio) -> None:
    rows = [{"question": f"What is {i} + {i}? {HOSTILE}", "answer": f"{i + i}"} for i in range(5)]
    (folder / "some problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "samples.jsonl").write_text("{}\n")
    (folder / "out.jsonl").symlink_to("/etc/passwd")
    assert questions.sources(studio) == ["demo", "some problems.jsonl"]
    assert questions.draw(studio, "some problems.jsonl", 3).gold == "6"
    assert questions.draw(studio, "demo", 0).total == 200
    page = client.get("/compare/problem?source=some problems.jsonl&number=3", headers={"HX-Request": "true"}).text
    assert "What is 3 + 3?" in page and 'value="6"' in page and "<script>" not in page and "\u202e" not in page
    for name in ("none.jsonl", "../x.jsonl", "out.jsonl", "mlx\0"):
        assert client.get("/compare/problem", params={"source": name}).status_code == 422


# An answer, from a stand-in for `mlxmath serve`


class Upstream(BaseHTTPRequestHandler):
    """Answers as `serve` does; what it says is the test's."""

    def do_POST(self) -> None:
        server: Any = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server.asked.append((self.path, body))
        if self.path.endswith("/prompt"):
            self._reply(200, json.dumps({"prompt": f"<s>{body['messages'][0]['content']}", "num_tokens": 3}).encode())
        elif isinstance(server.says, tuple):
            self._reply(*server.says)
        else:
            self._reply(200, b"")
            try:
                for part in server.says(self):
                    self.wfile.write(part if isinstance(part, bytes) else f"data: {json.dumps(part)}\n\n".encode())
            except OSError:
                server.gone.set()

    def _reply(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None: ...


def piece(text: str = "", finish: str | None = None, **more: str) -> dict[str, Any]:
    return {"choices": [{"index": 0, "finish_reason": finish, "delta": {"role": "assistant", "content": text} | more}]}


class StandIn(Server):
    """Has its model loaded already, at an address of the test's."""

    at = ""
    ended = ""

    def serving(self, model: str, adapters: Any) -> tuple[Job, dict[str, str]]:
        job = Job("1", "serve", [], 0, 0, 0)
        return job, {"": "base"} | {one.name: one.name for one in adapters}

    def url(self, job: Job) -> str | None:
        if self.ended:
            raise MlxmathError(self.ended)
        return self.at


@pytest.fixture
def upstream() -> Iterator[Any]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Upstream)
    server.asked, server.gone = [], threading.Event()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def app(folder: Path, studio: Studio, upstream: Any) -> Any:
    (folder / "mlx_model").mkdir()
    (folder / "mlx_model" / "config.json").write_text("{}")
    made = create_app(studio)
    made.state.server = StandIn(studio)
    made.state.server.at = f"http://127.0.0.1:{upstream.server_address[1]}/v1"
    return made


@pytest.fixture
def ask(app: Any) -> Callable[..., list[dict[str, Any]]]:
    client = TestClient(app)

    def asked(**change: str) -> list[dict[str, Any]]:
        found = client.post("/compare/answer", data=ASKED | {"adapter": ""} | change)
        assert found.status_code == 200 and found.headers["content-type"].startswith("application/x-ndjson")
        return lines(found.text)

    return asked


def test_an_answer_comes_in_pieces_and_is_graded_as_evaluation_does(ask: Callable[..., Any], upstream: Any) -> None:
    parts = ["We get $x = \\frac{38}", "{2}$.\n", "#### 19"]
    upstream.says = lambda _: [*map(piece, parts), b": keepalive 1/2\n\n", piece(finish="stop"),
                               {"choices": [], "usage": {"completion_tokens": 12}}, b"data: [DONE]\n\n"]  # fmt: skip
    given, *pieces, done = ask(question="What is\r\n12 + 7? ", temperature="0.5")
    assert (given["prompt"], given["tokens"], given["gold"]) == ("<s>What is\n12 + 7?", 3, "19")
    assert [one["text"] for one in pieces] == parts
    assert done["verdict"] == "right" and "<mfrac>" in done["done"] and "12 tokens" in done["done"]
    assert grade("".join(parts), "19").rule in done["done"]
    path, body = upstream.asked[-1]
    assert path == "/v1/chat/completions"
    assert (body["temperature"], body["max_tokens"], body["model"]) == (0.5, 80, "base")


@pytest.mark.parametrize(
    ("parts", "gold", "verdict", "told"),
    [
        ([piece("#### 18"), piece(finish="stop")], "19", "wrong", "✗ wrong"),
        ([piece("#### 19"), piece(finish="length")], "19", "wrong", "cut off"),
        ([piece("#### 19"), piece(finish="stop")], "", "", "<b>19</b>"),
        ([piece(finish="stop")], "", "", "<b>none</b>"),
        ([piece(reasoning="it is 18"), piece("#### 19"), piece(finish="stop")], "19", "right", "✓ right"),
        ([piece(reasoning="is it 19"), piece(finish="length")], "19", "wrong", "cut off"),
        ([piece(finish="stop")], "19", "wrong", "<b>none</b>"),
    ],
)  # fmt: skip
def test_verdicts(ask: Callable[..., Any], upstream: Any, parts: list[Any], gold: str, verdict: str, told: str) -> None:
    upstream.says = lambda _: parts
    done = ask(gold=gold)[-1]
    assert done["verdict"] == verdict and told in done["done"] and ("badge" in done["done"]) == bool(gold)


def test_what_a_model_writes_is_text(ask: Callable[..., Any], upstream: Any) -> None:
    upstream.says = lambda _: [
        piece(HOSTILE),
        piece("\\boxed{<img src=x onerror=alert(1)>}\ud800"),
        piece(finish="stop"),
    ]
    given, *pieces, done = ask(question=HOSTILE, gold=HOSTILE)
    assert "<script" not in given["question"] + given["gold"] and "\u202e" not in "".join(map(str, given.values()))
    assert not set("".join(one["text"] for one in pieces)) & set("\u202e\u2066\x1b\ud800")
    assert "<script" not in done["done"] and "<img" not in done["done"] and "\u202e" not in done["done"]


def test_a_very_long_answer_is_relayed_whole_and_drawn_in_part(ask: Callable[..., Any], upstream: Any) -> None:
    upstream.says = lambda _: [*[piece("\\[" * 5000)] * 100, piece(finish="stop")]
    *pieces, done = ask()[1:]
    assert sum(len(one["text"]) for one in pieces) == 1_000_000
    assert len(done["done"]) < 50_000 and "980,000 more characters" in done["done"]
    upstream.says = lambda _: [piece("x" * 1_000_001)] * 3
    assert "longer than 2,000,000 characters" in ask()[-1]["error"]


@pytest.mark.parametrize(
    ("says", "told"),
    [
        ((400, b'{"error": "the prompt has 9 tokens; the context ends at 8"}'), "the prompt has 9 tokens"),
        ((404, b'{"error": {"message": "there is no model"}}'), "there is no model"),
        ((500, b"<html>"), "does not take the question"),
        (lambda _: [piece("#### 1")], "does not answer"),
        (lambda _: [b'data: {"choices": [{"del'], "does not answer"),
    ],
)  # fmt: skip
def test_trouble_is_one_line(ask: Callable[..., Any], upstream: Any, says: Any, told: str) -> None:
    upstream.says = says
    assert told in ask()[-1]["error"]


def test_a_model_that_ends_meanwhile_says_why(ask: Callable[..., Any], upstream: Any, app: Any) -> None:
    def says(_: object) -> Iterator[dict[str, Any]]:
        app.state.server.ended = "memory ran out"
        yield piece("1")

    upstream.says = says
    assert ask()[-1] == {"error": "memory ran out"}


def test_who_stops_listening_ends_the_answer(app: Any, upstream: Any) -> None:
    def says(_: object) -> Iterator[dict[str, Any]]:
        while True:
            yield piece("more ")
            time.sleep(0.02)

    upstream.says = says
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        server = uvicorn.Server(uvicorn.Config(Guard(app, "t", "127.0.0.1", port), log_level="warning", ws="none"))
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])))
        thread.start()
        origin = f"http://127.0.0.1:{port}"
        body = "model=mlx_model&adapter=&question=q&temperature=0&max_tokens=9&who="
        asked = urllib.request.Request(
            f"{origin}/compare/answer", body.encode(), {"Origin": origin, "Cookie": f"mlxmath_studio_{port}=t"}
        )
        with urllib.request.urlopen(asked, timeout=10) as answer:
            assert b"prompt" in answer.readline() and b"more" in answer.readline()
            assert not upstream.gone.is_set()
        assert upstream.gone.wait(5)
        server.should_exit = True
        thread.join()


# The process that answers


SLEEPER = (
    "import json, sys, time; sys.argv[1:] or exit(1); "
    "print(json.dumps({'url': 'http://127.0.0.1:1/v1', 'models': []}), flush=True); time.sleep(60)"
)


@pytest.fixture
def sleepers(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Server]]:
    """A `Server` whose jobs run a program of the test's instead of a model."""
    popen, started = subprocess.Popen, list[Any]()

    def make(program: str = SLEEPER) -> Server:
        def start(command: list[str], **options: Any) -> Any:
            started.append(popen([sys.executable, "-c", program, *command[4:]], **options))
            return started[-1]

        monkeypatch.setattr("mlxmath.studio.jobs.subprocess.Popen", start)
        return Server(studio)

    yield make
    for process in started:
        process.kill()
        process.wait()


def ready(server: Server, job: Job) -> None:
    wait_until(lambda: server.url(job), "it does not say its address")


def test_one_process_at_a_time(sleepers: Callable[..., Server], studio: Studio) -> None:
    server, (one, two) = sleepers(), (Adapter("a", 1, None), Adapter("b", 1, None))
    first, names = server.serving("m", [one, two])
    ready(server, first)
    assert names == {"": "base", "a": "a", "b": "b"}
    assert first.arguments == [
        "serve",
        "--mlx-path=m",
        "--adapter=a=a",
        "--adapter=b=b",
        "--port=0",
        "--idle-minutes=10",
    ]
    assert server.serving("m", [two])[0] == server.serving("m", [])[0] == first and first.is_alive
    retrained, _ = server.serving("m", [Adapter("a", 2, None)])
    assert not first.is_alive and retrained.is_alive
    other, _ = server.serving("-other", [])
    assert not retrained.is_alive and other.arguments[1:3] == [f"--mlx-path={studio.folder}/-other", "--no-adapter"]
    ready(server, other)
    server.close()
    assert not other.is_alive
    left, _ = server.serving("m", [])  # by a studio that is killed: another one, at its start
    assert left.is_alive
    Server(studio).end_leftovers()
    assert not left.is_alive


def test_a_model_that_is_made_anew_is_loaded_anew(sleepers: Callable[..., Server], studio: Studio) -> None:
    server, manifest = sleepers(), studio.folder / "m" / "mlxmath.json"
    manifest.parent.mkdir()
    manifest.write_text("{}")
    first, _ = server.serving("m", [])
    ready(server, first)
    assert server.serving("m", [])[0] == first
    os.utime(manifest, ns=(1, 1))
    second, _ = server.serving("m", [])
    assert second.is_alive and not first.is_alive


@pytest.mark.parametrize(
    ("program", "told"),
    [
        ("import sys; sys.exit('warning: x\\nerror: adapters holds no adapter')", "answer: adapters holds no adapter"),
        ("import sys; sys.exit('Usage: mlxmath serve\\n\\nError: no such option --x')", "no such option"),
        ("import os; os.kill(os.getpid(), 9)", "when memory runs out"),
        ("print('loading')", "(loading)"),
        ("print('{\"url\": \"http://evil.example/v1\"}')", "was ended"),
    ],
)  # fmt: skip
def test_a_model_that_cannot_be_loaded_says_why(sleepers: Callable[..., Server], program: str, told: str) -> None:
    server = sleepers(program)
    job, _ = server.serving("m", [])
    wait_until(lambda: not job.is_alive)
    wait_until(lambda: (found := server._studio.jobs.get(job.id)) and found.exit_code is not None)
    with pytest.raises(MlxmathError) as error:
        server.url(job)
    assert told in str(error.value) and "\n" not in str(error.value)


def test_a_note_of_others_ends_no_process_of_ours(studio: Studio) -> None:
    own = psutil.Process()
    place = studio.folder / "studio" / "jobs" / "x"
    place.mkdir(parents=True)
    note = {"id": "x", "kind": "serve", "arguments": ["serve"], "started": 0.0, "pid": own.pid,
            "created": own.create_time(), "exit_code": None}  # fmt: skip
    (place / "job.json").write_text(json.dumps(note))
    Server(studio).end_leftovers()  # else this test would end here


# Whole


def test_the_page_with_the_keyboard_on_a_phone_in_the_dark(
    tuned: Path, studio: Studio, serving: Callable[..., Served], visit: Callable[..., Any]
) -> None:
    hostile = tuned / "<img src=x onerror=alert(1)>" / "\u202eevil"
    shutil.copytree(tuned / "adapters", hostile)
    served = serving()
    tab = visit("/compare", PHONE, is_dark=True, served=served)
    assert is_dark(tab) and not is_too_wide(tab) and tab.get_by_role("checkbox").count() == 3
    tab.get_by_role("textbox", name="Question").fill(ASKED["question"])
    tab.get_by_label("Right answer").fill("$\\frac{38}{2}$")
    tab.get_by_label("Longest answer").fill("40")
    for box in tab.get_by_role("checkbox").all():
        box.set_checked(box.get_attribute("value") in ("", "adapters"))
    tab.get_by_role("textbox", name="Question").press("Control+Enter")
    tab.locator(".verdict").nth(1).wait_for(timeout=60_000)
    assert [one.inner_text() for one in tab.locator(".state").all()] == ["done", "done"]
    assert tab.locator(".who").all_inner_texts() == ["base", "adapters"]
    assert tab.locator(".verdict .badge").count() >= 2 and ": " in tab.locator("#told").inner_text()
    given = tab.locator(".given").nth(1)
    given.locator("summary").focus()
    tab.keyboard.press("Enter")
    assert ASKED["question"] in given.locator("pre").inner_text()
    text = tab.locator(".answer").nth(1).locator(".text").last.inner_text()
    is_right = grade(text, "19").correct
    assert tab.locator(".answer").nth(1).get_by_text("✓ right" if is_right else "✗ wrong").is_visible()
    tab.get_by_role("button", name="Draw one").press("Enter")
    tab.locator("#drawn", has_text="of 200").wait_for()
    tab.get_by_label("Longest answer").fill("9")
    tab.get_by_role("button", name="Ask").press("Enter")
    tab.locator(".asked").nth(1).wait_for()
    tab.get_by_text("cut off").nth(1).wait_for()
    assert not is_too_wide(tab)

    said = [{"loading": HOSTILE}, {"prompt": HOSTILE, "tokens": 3, "question": "", "gold": ""}, {"thought": HOSTILE},
            {"text": HOSTILE}, {"error": HOSTILE}]  # fmt: skip
    body = "".join(f"{json.dumps(one)}\n" for one in said)
    tab.route("**/compare/answer", lambda route: route.fulfill(body=body, content_type="application/x-ndjson"))
    tab.get_by_role("button", name="Ask").press("Enter")
    tab.locator(".asked").first.get_by_role("alert").first.wait_for()
    assert tab.locator(".asked img, .asked script").count() == 0 and tab.title() == "Compare · mlxmath studio"

    (job,) = studio.jobs.all()
    os.kill(served.process.pid, signal.SIGKILL)
    served.process.wait()
    assert runs(job.pid, job.created)
    serving()  # the next studio ends what the killed one has left
    assert not runs(job.pid, job.created)
