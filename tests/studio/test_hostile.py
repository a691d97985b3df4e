"""A folder that somebody else has made: no page waits for it, fails at it, or shows what lies outside."""

import json
import math
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from starlette.testclient import TestClient

from mlxmath.errors import InputError, MlxmathError
from mlxmath.runtime.bounded import OverrunError, Pool
from mlxmath.studio import jobs
from mlxmath.studio.jobs import Job
from mlxmath.studio.model_server import Server, _url
from mlxmath.studio.place import Studio
from mlxmath.studio.server import _address
from tests.helpers import ENVIRONMENT, command
from tests.studio.make import make_run, step, write_events

FILES = (
    "mlxmath.json", "config.json", "adapter_config.json", "adapters.safetensors", "settings.json", "samples.jsonl",
    "responses.jsonl", "results.json", "report.html", "run.json", "run.toml", "events.jsonl", ".lock", "data.jsonl",
)  # fmt: skip
PAGES = ("/runs", "/new?recipe=demo", "/compare", "/evaluations", "/rate", "/rate/results")
OF_A_FOLDER = (
    "/runs/{}", "/runs/{}/data?since=", "/runs/{}/run.toml", "/new?from={}", "/evaluations/{}",
    "/evaluation-report/{}", "/rate?source={}", "/compare?evaluation={}", "/compare/problem?source={}",
)  # fmt: skip


def pipe(path: Path) -> None:
    os.mkfifo(path)


def nowhere(path: Path) -> None:
    path.symlink_to("nowhere")


@pytest.mark.parametrize("make", [pipe, Path.mkdir, nowhere])
def test_what_is_no_file_keeps_no_page_waiting(
    studio: Studio, client: TestClient, make: Callable[[Path], object]
) -> None:
    for name in FILES:
        for together in (f"of-{name}", "all"):
            (studio.folder / together).mkdir(exist_ok=True)
            make(studio.folder / together / name)
    (studio.folder / "studio" / "jobs" / "a").mkdir(parents=True)
    (studio.folder / "studio" / "jobs" / "b").mkdir(parents=True)
    make(studio.folder / "studio" / "jobs" / "a" / "job.json")
    note(studio, "b")
    make(studio.folder / "studio" / "jobs" / "b" / "log")
    make(studio.folder / "studio" / "ratings.jsonl")
    names = sorted(path.name for path in studio.folder.iterdir())
    with ThreadPoolExecutor(1) as asking:
        for address in (*PAGES, *(each.format(name) for each in OF_A_FOLDER for name in names)):
            assert asking.submit(client.get, address).result(20).status_code in (200, 404, 422), address


def note(studio: Studio, name: str, **values: Any) -> None:
    """A job as somebody may have noted it."""
    place = studio.folder / "studio" / "jobs" / name
    place.mkdir(parents=True, exist_ok=True)
    found = {"id": name, "kind": "train", "arguments": ["train"], "started": time.time(), "pid": os.getpid(),
             "created": 0.0, "exit_code": None} | values  # fmt: skip
    (place / "job.json").write_text(json.dumps(found))


@pytest.mark.parametrize("values", [
    {"pid": -1}, {"pid": 0}, {"pid": 10**30}, {"arguments": []}, {"arguments": ["\ud800"]}, {"started": 10**400},
    {"created": 10**400}, {"started": math.nan}, {"created": -math.inf}, {"arguments": ["train", "--adapter-path"]},
])  # fmt: skip
def test_a_note_of_a_job_may_say_anything(studio: Studio, client: TestClient, values: dict[str, Any]) -> None:
    note(studio, "a", **values)
    assert client.get("/runs").status_code == client.get("/evaluations").status_code == 200
    assert client.post("/jobs/a/stop").status_code in (200, 404)


def test_a_log_that_is_a_link_is_not_shown(studio: Studio, client: TestClient, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hunter2")
    note(studio, "a", exit_code=1)
    (studio.folder / "studio" / "jobs" / "a" / "log").symlink_to(tmp_path / "secret")
    page = client.get("/runs").text
    assert "mlxmath train" in page and "hunter2" not in page


def test_the_settings_of_a_run_are_no_link_that_leads_out(studio: Studio, client: TestClient, tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text('secret = "hunter2"\n')
    make_run(studio.folder, "a")
    (studio.folder / "a" / "run.toml").unlink()
    (studio.folder / "a" / "run.toml").symlink_to(tmp_path / "own.toml")
    page = client.get("/new?from=a").text
    assert "holds no run.toml" in page and "hunter2" not in page


def test_settings_of_another_run_replace_nothing_unasked(studio: Studio, client: TestClient) -> None:
    make_run(studio.folder, "theirs", settings='[model]\nmodel = "demo"\noverwrite = true\n')
    assert "would replace what is there" in client.get("/new?from=theirs").text
    asked = client.post("/new/start", data={"start": "from=theirs", "adapter_path": "theirs"})
    assert asked.status_code == 422 and not studio.jobs.all()


def test_folders_of_data_hold_no_link_that_leads_out(studio: Studio, client: TestClient, tmp_path: Path) -> None:
    (tmp_path / "secret.jsonl").write_text('{"question": "hunter2", "answer": "#### 2"}\n')
    (studio.folder / "data").mkdir()
    (studio.folder / "data" / "train.jsonl").symlink_to(tmp_path / "secret.jsonl")
    page = client.get("/new/rows?model=demo&dataset=data").text
    assert "lies outside" in page and "hunter2" not in page


def test_the_studio_s_own_folder_is_no_link_that_leads_out(studio: Studio, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (studio.folder / "studio").symlink_to(tmp_path / "theirs")
    with pytest.raises(InputError, match="lies outside"):
        Studio(studio.folder)


def test_no_figure_of_a_log_is_too_much(studio: Studio, client: TestClient) -> None:
    place = make_run(studio.folder, "a", "running", total=100)
    write_events(
        place / "events.jsonl", step(6, tokens=1e308, time=-(10**308)), step(7, tokens=1e308, seconds=1e-300),
        step(8, loss=1e308, time=10**308),
        {"event": "rollout", "step": 9, "example": {"question": [[[]]], "gold": "$\\text{&#x202e;x}$"}},
    )  # fmt: skip
    found = client.get("/runs/a/data?since=")
    assert found.status_code == 200 and found.json()["tables"]["step"]["over"]["tokens"][-1] is None
    page = client.get("/runs/a")
    assert page.status_code == client.get("/runs").status_code == 200 and "\u202e" not in page.text


def test_a_command_that_cannot_be_noted_does_not_run(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def starting(*arguments: Any, **options: Any) -> "subprocess.Popen[bytes]":
        started.append(popen([sys.executable, "-c", "import time; time.sleep(60)"], **options))
        return started[-1]

    def full(*_: Any) -> None:
        raise MlxmathError("cannot write job.json: No space left on device.")

    monkeypatch.setattr(jobs.subprocess, "Popen", starting)
    monkeypatch.setattr(jobs, "atomic_json", full)
    with pytest.raises(MlxmathError, match="No space"):
        studio.jobs.start("train")
    assert started[0].returncode is not None


PARENT = """
import subprocess, sys, time
print(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "serve", "--port=0"]).pid, flush=True)
time.sleep(60)
"""


@pytest.fixture
def another() -> Iterator["subprocess.Popen[str]"]:
    """A studio that lives, with a model that answers."""
    command = [sys.executable, "-c", PARENT, "studio", "."]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def test_the_model_of_another_studio_on_this_folder_goes_on(studio: Studio, another: "subprocess.Popen[str]") -> None:
    assert another.stdout is not None
    pid = int(another.stdout.readline())
    note(studio, "a", kind="serve", arguments=["serve", "--port=0"], pid=pid, created=jobs._created(pid))
    job = studio.jobs.get("a")
    assert isinstance(job, Job) and job.is_alive
    Server(studio).end_leftovers()
    assert job.is_alive
    another.kill()
    another.wait()
    Server(studio).end_leftovers()
    assert not job.is_alive


def test_the_model_s_address_is_of_this_machine() -> None:
    assert _url('{"url": "http://127.0.0.1:8080/v1"}') == "http://127.0.0.1:8080/v1"
    for other in ("http://127.0.0.1:80@evil.example/v1", "http://127.0.0.1:80/v1/../x", "http://127.0.0.1:x/v1"):
        assert _url(json.dumps({"url": other})) is None


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS's browser is asked by a message")
def test_no_other_user_sees_the_token_that_a_browser_is_called_with(studio: Studio) -> None:
    with ExitStack() as closing:
        path = Path(_address(studio, "http://127.0.0.1:1/?token=abc", closing).removeprefix("file://"))
        assert "url=http://127.0.0.1:1/?token=abc" in path.read_text()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not path.exists()


BOMB = """
import time
from mlxmath.runtime.bounded import serve
def work(request):
    kept = bytearray(request)
    time.sleep(request / 1e9)
    return len(kept)
serve(work, 1)
"""


def test_what_unpacks_to_more_than_the_memory_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bomb.py").write_text(BOMB)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    pool = Pool("bomb", 1, 20.0, 1 << 46, 400_000_000)
    assert pool.reply(1000) == 1000
    with pytest.raises(OverrunError):
        pool.reply(1_000_000_000)
    pool.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_studio_that_is_asked_to_ends_with_a_line(folder: Path, number: signal.Signals) -> None:
    command_line = [*command("studio", str(folder)), "--no-browser", "--host", "0.0.0.0"]
    with subprocess.Popen(
        command_line, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            url = process.stdout.readline().strip()
            assert url.startswith("http://127.0.0.1:") and urlopen(url).status == 200
            process.send_signal(number)
            told = process.communicate(timeout=30)[1]
        finally:
            process.kill()
    assert process.returncode == (0 if number == signal.SIGINT else 128 + number)
    assert "Traceback" not in told and "in the place of 127.0.0.1" in told
