"""The list of runs, a run's page, several over one another: what they say, stop and go on with."""

import html
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from starlette.testclient import TestClient

from mlxmath.runtime.sealed import sealed_json
from mlxmath.studio.jobs import Job, Jobs
from mlxmath.studio.place import Studio
from mlxmath.studio.run import LOOKS
from mlxmath.studio.run_folder import why_not_here
from mlxmath.studio.runs import find_run
from tests.helpers import wait_until
from tests.studio.make import make_run, rollout, step, write_events

HOSTILE = "<script>document.title='owned'</script>"


def state(studio: Studio, name: str) -> str:
    run = find_run(studio, name)
    assert run is not None
    return run.state


def rows(client: TestClient, address: str = "/runs") -> list[str]:
    """The names in the list."""
    answer = client.get(address)
    assert answer.status_code == 200
    return [html.unescape(name) for name in re.findall(r'<th scope="row"><a [^>]*>([^<]*)</a>', answer.text)]


def noted(
    studio: Studio, *arguments: str, pid: int = 1, created: float = 0.0, exit_code: int | None = 1
) -> Job:  # fmt: skip
    """A command that the studio has started."""
    job = Job("20260101-000000-abcdef", arguments[0], list(arguments), time.time() - 60, pid, created, exit_code)
    place = studio.folder / "studio" / "jobs" / job.id
    place.mkdir(parents=True)
    (place / "job.json").write_text(json.dumps(vars(job)))
    (place / "log").write_text(f"error: {HOSTILE}\n")
    return job


@pytest.mark.parametrize("status", [*(name for name in LOOKS if name != "running"), "odd", 5, None])
def test_a_run_is_as_it_ended(studio: Studio, client: TestClient, status: Any) -> None:
    make_run(studio.folder, "a", status)
    expected = status if status in LOOKS and status not in ("starting", "judging") else "unknown"
    assert state(studio, "a") == expected and LOOKS[expected][1] in client.get("/runs").text
    assert ("/runs/a/resume" in client.get("/runs/a").text) == (
        status in ("deadline", "paused", "stopped", "killed", "failed")
    )


def test_a_run_that_says_that_it_runs_does_if_somebody_holds_its_folder(
    studio: Studio, client: TestClient, holding: Callable[..., Any]
) -> None:
    place = make_run(studio.folder, "a", "running", steps=5, total=20, training={"max_training_time_hours": 1e6})
    assert state(studio, "a") == "killed"
    assert "every 15s" in client.get("/runs").text and client.post("/runs/a/stop").status_code == 422
    process = holding(place)
    now = time.time()
    write_events(place / "events.jsonl", *(step(n, time=now - 6 + n) for n in range(6, 9)))
    run = find_run(studio, "a")
    assert run is not None and run.holder is not None
    assert (run.state, run.holder.pid, run.step, run.total_steps) == ("running", process.pid, 8, 20)
    assert "every 3s" in client.get("/runs").text
    page = client.get("/runs/a").text
    assert "every 2s" in page and "Stop and save" in page and "8 <small>of 20" in page
    assert client.post("/runs/a/stop", headers={"Origin": "http://evil.example"}).status_code == 403
    assert process.poll() is None and client.post("/runs/a/stop").status_code == 200
    assert process.wait(10) == -signal.SIGTERM
    wait_until(lambda: state(studio, "a") == "killed")
    sealed_json(place / "run.json", {"status": "finished"})
    process = holding(place)
    assert state(studio, "a") == "starting"  # with --resume
    ended = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(time.time() + 1))
    sealed_json(place / "run.json", {"status": "finished", "started": ended})
    assert state(studio, "a") == "finished"  # its process is about to end
    process.kill()
    process.wait()
    holding(place, "--judge")
    assert state(studio, "a") == "judging" and "Stop and save" not in client.get("/runs/a").text


def test_time_left_is_that_of_the_last_steps_or_of_the_deadline(studio: Studio, holding: Callable[..., Any]) -> None:
    place = make_run(studio.folder, "a", "running", steps=0, total=100, training={"max_training_time_hours": 1e6})
    holding(place)
    now = time.time()
    begun = [step(1, time=now - 9000), {"event": "resume", "step": 1, "total_steps": 100}]
    write_events(place / "events.jsonl", *begun, *(step(n, time=now - 20 + 2 * n) for n in range(2, 11)))
    found = find_run(studio, "a")
    assert found is not None and found.left_s == pytest.approx(2 * 90, abs=2)
    started = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(now - 3600))
    config = {"training": {"max_training_time_hours": 1.01}}
    sealed_json(place / "run.json", {"status": "running", "planned_steps": 100, "started": started, "config": config})
    found = find_run(studio, "a")
    assert found is not None and found.left_s == pytest.approx(36, abs=3)


def test_nobody_is_stopped_who_does_not_hold_the_folder(studio: Studio, client: TestClient) -> None:
    """A folder of somebody else may name any process in its lock."""
    place = make_run(studio.folder, "a", "running")
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        host = os.uname().nodename
        for pid in (process.pid, 0, 10**17, 4_000_000):
            (place / ".lock").write_text(f"`mlxmath train`, process {pid} on {host} since 2099-01-01 00:00:00 UTC")
            assert state(studio, "a") == "killed" and client.post("/runs/a/stop").status_code == 422
        (place / ".lock").write_text(
            f"`mlxmath train`, process {process.pid} on elsewhere since 2026-01-01 00:00:00 UTC"
        )
        assert state(studio, "a") == "running" and "on elsewhere" in client.get("/runs/a").text
        assert "Stop and save" not in client.get("/runs/a").text and client.post("/runs/a/stop").status_code == 422
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()


def test_the_list_is_sorted_and_searched(studio: Studio, client: TestClient) -> None:
    verdict = {"said": "better", "difference": 0.05, "low": 0.01, "high": 0.09, "p_value": 0.01}
    make_run(studio.folder, "b", steps=3, validation={"metric": "loss", "best": {"step": 2, "loss": 0.5}})
    make_run(studio.folder, "sweeps/one", "stopped", steps=5, verdict=verdict)
    make_run(
        studio.folder,
        "C",
        steps=1,
        method="dpo",
        validation={"metric": "answers", "best": {"step": 1, "answers": 0.25}},
    )
    assert rows(client, "/runs?sort=name") == ["b", "C", "sweeps/one"]
    assert rows(client, "/runs?sort=name&down=1") == ["sweeps/one", "C", "b"]
    assert rows(client, "/runs?sort=best") == ["C", "b", "sweeps/one"]
    assert rows(client, "/runs?sort=best&down=1") == ["b", "C", "sweeps/one"]  # without a value: last
    assert rows(client, "/runs?sort=progress&down=1") == ["sweeps/one", "b", "C"]
    assert rows(client, "/runs?q=dpo") == ["C"] and rows(client, "/runs?q=STOPPED+one") == ["sweeps/one"]
    assert rows(client, "/runs?q=nothing") == [] and len(rows(client, f"/runs?q={'x ' * 5000}&sort=odd&down=x")) == 0
    page = client.get("/runs?sort=best").text
    assert 'aria-sort="ascending"' in page and "25.0 %" in page and "0.5000" in page
    assert '<span class="good" title="better">+5.0 points <small class="below">+1.0 to +9.0</small>' in page


def test_a_folder_that_takes_long_to_search_is_not_searched_each_time(
    studio: Studio, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(studio.folder, "a")
    real, times = Studio.holding, []

    def holding(self: Studio, *names: str) -> list[Path]:
        times.append(time.sleep(0.05))
        return list(real(self, *names))

    monkeypatch.setattr(Studio, "holding", holding)
    assert rows(client) == ["a"]
    noted(studio, "train", "--adapter-path=new")
    for name in ("new", "other"):
        make_run(studio.folder, name)
    assert sorted(rows(client)) == ["a", "new"] and len(times) == 1  # what was started here is known
    shutil.rmtree(studio.folder / "a")
    assert rows(client) == ["new"]


def test_what_has_no_run_yet_is_shown_with_what_it_said(studio: Studio, client: TestClient) -> None:
    job = noted(studio, "train", "--adapter-path=new")
    page = client.get("/runs").text
    assert "mlxmath train --adapter-path=new" in page and html.escape(HOSTILE).replace("&#x27;", "&#39;") in page
    assert HOSTILE not in page and ">failed<" in page
    assert "/new?command=train&amp;adapter_path=new" in page  # to be mended
    make_run(studio.folder, "new")  # it has come to something since
    assert "--adapter-path=new" not in client.get("/runs").text
    page = client.get("/runs/new").text
    assert "<summary>Log<" in page and HOSTILE not in page
    assert client.get("/runs/other").status_code == 404 and client.get("/runs/new").status_code == 200
    assert client.post("/jobs/nope/stop").status_code == 404 and client.post(f"/jobs/{job.id}/stop").status_code == 200


def test_what_has_failed_is_dismissed_and_what_runs_is_not(studio: Studio, client: TestClient) -> None:
    own = psutil.Process()
    alive = noted(studio, "train", "--adapter-path=a", pid=own.pid, created=own.create_time(), exit_code=None)
    refusal = client.post(f"/jobs/{alive.id}/dismiss", headers={"HX-Request": "true"})
    assert refusal.status_code == 422 and "still runs" in refusal.text and studio.jobs.get(alive.id)
    assert refusal.headers["HX-Retarget"] == "#lost"
    shutil.rmtree(studio.folder / "studio" / "jobs" / alive.id)
    failed = noted(studio, "train", "--adapter-path=a")
    assert failed.command_line in client.get("/runs").text
    assert failed.command_line not in client.post(f"/jobs/{failed.id}/dismiss").text
    assert client.post(f"/jobs/{failed.id}/dismiss").status_code == 404


@pytest.mark.parametrize("name", [HOSTILE, "a b&c=d?e#f%", "x..", "-rf", "é\u202egnp", "'\"`$(touch x)", "n" * 200])
def test_a_run_may_have_any_name(
    studio: Studio, client: TestClient, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    make_run(studio.folder, name, "stopped", method="train", steps=3)
    (page,) = (client.get("/runs").text,)
    assert HOSTILE not in page
    address = re.search(r'<th scope="row"><a [^>]*href="([^"]*)"', page)
    assert address is not None
    page = client.get(html.unescape(address[1])).text
    assert HOSTILE not in page and "3 <small>of 5" in page
    answer = client.get(f"{html.unescape(address[1])}/data?since=")
    assert answer.json()["tables"]["step"]["over"]["step"] == [1, 2, 3]
    assert client.get(f"{html.unescape(address[1])}/run.toml").text == '[model]\nmodel = "demo"\n'
    started: list[tuple[str, ...]] = []
    monkeypatch.setattr(Jobs, "start", lambda _, *arguments: started.append(arguments))
    assert client.post(f"{html.unescape(address[1])}/resume").status_code == 200
    assert started == [("train", f"--config={name}/run.toml", f"--adapter-path={name}", "--resume")]


def test_the_folder_itself_may_be_a_run(folder: Path, clients: Callable[..., TestClient]) -> None:
    client = clients(Studio(make_run(folder, "a", "stopped")))
    assert rows(client) == ["."] and 'href="/runs/"' in client.get("/runs").text
    assert "mlxmath train --config=run.toml --adapter-path=. --resume" in client.get("/runs/").text
    assert client.get("/runs//data?since=").json()["tables"]["step"]["over"]["step"][-1] == 5


def test_runs_may_have_the_names_of_our_addresses(studio: Studio, client: TestClient) -> None:
    for name in ("over", "a/data", "a/stop", "a/resume"):
        make_run(studio.folder, name)
        assert f"<h1>{name}</h1>" in client.get(f"/runs/{name}").text


@pytest.mark.parametrize("address", [
    "/runs/nope", "/runs/../../etc", "/runs/%2e%2e", "/runs/a/%2e%2e/%2e%2e/x", "/runs//etc", "/runs/%00", "/runs/out",
    "/runs/out/data?since=", "/runs/out/run.toml", "/runs/over?run=a&run=../x", "/runs/over?run=/etc",
    "/runs/over?run=nope", "/runs/nope/data?since=", "/runs/a/nope", "/runs/" + "x" * 5000,
    "/runs/a/events.jsonl", "/runs/a/run.json",
])  # fmt: skip
def test_what_is_outside_or_no_run_is_refused(studio: Studio, client: TestClient, tmp_path: Path, address: str) -> None:
    make_run(studio.folder, "a")
    make_run(tmp_path, "x")
    (studio.folder / "out").symlink_to(tmp_path / "x")
    answer = client.get(address)
    assert answer.status_code in (404, 422) and "demo" not in answer.text
    assert rows(client) == ["a"]


def test_links_out_of_the_folder_are_not_followed(studio: Studio, client: TestClient, tmp_path: Path) -> None:
    place = make_run(studio.folder, "a", "stopped")
    (tmp_path / "secret").write_text('{"event": "step", "step": 77, "secret": 1, "checkpoint": "secret"}\n')
    for name in ("events.jsonl", "run.toml", "adapters.safetensors"):
        (place / name).unlink(missing_ok=True)
        (place / name).symlink_to(tmp_path / "secret")
    for address in ("/runs", "/runs/a", "/runs/a/data?since=", "/runs/a/run.toml"):
        assert not re.search("secret|77", client.get(address).text)


@pytest.mark.parametrize("content", [
    b"", b"5", b"[]", b"{", b"\xff", b'{"status": "finished", "checksum": "x"}',
    b'{"config": 5, "verdict": [], "steps": "x"}', b"[" * 100_000,
    b'{"started": "10000-99-99", "steps": 1' + b"0" * 400 + b', "planned_steps": -1, "method": ["x"]}',
    b'{"validation": {"metric": "loss", "best": {"step": "x", "loss": NaN}}, "peak_bytes": "x", "planned_bytes": true}',
    b'{"started": 5, "status": "running", "config": {"model": {"model": 5}, "training": {"max_steps": true}}}',
])  # fmt: skip
def test_a_damaged_or_foreign_record_is_shown_as_far_as_it_goes(
    studio: Studio, client: TestClient, content: bytes
) -> None:
    place = make_run(studio.folder, "a")
    (place / "run.json").write_bytes(content)
    (place / "events.jsonl").write_bytes(b'{"event": "step", "step": 1, "time": "x", "seconds": {}}\n' + content)
    for address in ("/runs", "/runs?sort=best", "/runs/a", "/runs/a/data?since=", "/runs/over?run=a&run=a"):
        assert client.get(address).status_code == 200, address


def test_samples_are_shown_with_their_grade(studio: Studio, client: TestClient) -> None:
    place = make_run(studio.folder, "a", method="grpo")
    wrong = rollout(
        2, question=HOSTILE, completion=f"{HOSTILE} $\\frac{{1}}{{2}}$", correct=False, reward=0, extracted=None
    )
    write_events(
        place / "events.jsonl", rollout(1), wrong, {"event": "rollout", "step": 3, "example": {"gold": [HOSTILE]}}
    )
    page = client.get("/runs/a").text
    assert HOSTILE not in page and "<mfrac>" in page
    assert page.index("Step 3") < page.index("Step 2") < page.index("Step 1") and page.count(">wrong<") == 2
    assert "reward 0, answer none, expected 2" in page and "reward 1.0, answer 2, expected 2" in page


@pytest.mark.parametrize(("settings", "reason"), [
    ('[model]\nmodel = "demo"\n[grpo.reward_weights]\ncorrectness = 1.0\n"model:judges" = 1\n', ""),
    ('[grpo.reward_weights]\n"mine:reward" = 1.0\n', "code"), ("[model]\ntrust_remote_code = true\n", "code"),
    ("[model]\noverwrite = true\n", "replace"), ('[model]\nmlx_path = "~/Documents"\n', "lies outside"),
    ('[data]\ncache_dir = "../elsewhere"\n', "lies outside"), ('[grpo.reward_weights]\n"model:/x" = 1\n', "outside"),
    ('[training]\nreport_to = ["wandb"]\n', "figures elsewhere"), ("[model", "TOML"),
    ("a = " + "[" * 9999, "TOML"), ("[grpo]\nreward_weights = 5\n", "grpo"),
])  # fmt: skip
def test_what_executes_code_or_leads_out_is_not_gone_on_with_by_a_click(
    studio: Studio, client: TestClient, monkeypatch: pytest.MonkeyPatch, settings: str, reason: str
) -> None:
    make_run(studio.folder, "a", "stopped", method="grpo", settings=settings)
    run = find_run(studio, "a")
    assert run is not None
    told = why_not_here(studio, run)
    assert reason in told and bool(reason) == bool(told)
    started: list[tuple[str, ...]] = []
    monkeypatch.setattr(Jobs, "start", lambda _, *arguments: started.append(arguments))
    assert client.post("/runs/a/resume").status_code == (422 if reason else 200)
    assert len(started) == (not reason)
    page = client.get("/runs/a").text
    assert ("/runs/a/resume" in page) == (not reason) and "mlxmath grpo --config=a/run.toml" in page


def test_links_that_lead_out_of_a_run_are_not_written_through(
    studio: Studio, client: TestClient, tmp_path: Path
) -> None:
    make_run(studio.folder, "a", "stopped")
    (studio.folder / "a" / "kept").symlink_to("run.toml")
    assert "/runs/a/resume" in client.get("/runs/a").text
    (studio.folder / "a" / "checkpoints").symlink_to(tmp_path)
    assert "/runs/a/resume" not in client.get("/runs/a").text
    assert "lies outside" in client.post("/runs/a/resume").text
    new = client.post("/new/check", data={"recipe": "demo", "adapter_path": "a", "overwrite": "yes"}).text
    assert "lies outside" in new


def test_a_run_that_has_just_been_started_has_a_page(
    studio: Studio, client: TestClient, holding: Callable[..., Any]
) -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    created = psutil.Process(process.pid).create_time()
    noted(studio, "train", "--adapter-path", "new", pid=process.pid, created=created, exit_code=None)
    page = client.get("/runs/new").text
    assert "starting" in page and "every 2s" in page and "mlxmath train --adapter-path new" in page
    assert client.get("/runs/new/data?since=").json()["charts"] == [] and "every 3s" in client.get("/runs").text
    held = holding(studio.folder / "new")  # it is loaded, and has no run.json yet
    assert "starting" in client.get("/runs/new").text
    held.kill()
    held.wait()
    assert client.post("/runs/new/stop").status_code == 200
    assert process.wait(10) == -signal.SIGTERM
    page = client.get("/runs/new").text
    assert ">failed<" in page and "every" not in page and '<details id="said" open>' in page


def test_a_finished_run_and_one_of_no_method_of_ours_are_not_gone_on_with(studio: Studio, client: TestClient) -> None:
    make_run(studio.folder, "a")
    make_run(studio.folder, "b", "stopped", method="push")
    for name in ("a", "b"):
        assert client.post(f"/runs/{name}/resume").status_code == 422


def test_read_only_offers_nothing_that_changes(folder: Path, clients: Callable[..., TestClient]) -> None:
    make_run(folder, "a", "stopped")
    client = clients(Studio(folder, read_only=True))
    page = client.get("/runs/a").text
    assert "hx-post" not in page and "/compare" not in page
    assert client.post("/runs/a/resume").status_code == client.post("/runs/a/stop").status_code == 403


def test_runs_over_one_another_tell_what_differs(studio: Studio, client: TestClient) -> None:
    make_run(studio.folder, "a", training={"learning_rate": 1e-3, "judge": None, "adapter_path": "a"})
    make_run(studio.folder, "b", training={"learning_rate": 1e-4, "judge": HOSTILE, "adapter_path": "b"})
    page = client.get("/runs/over?run=a&run=b&run=a").text
    assert re.findall(r'<th scope="row">(training[^<]*)</th>', page) == ["training.learning_rate", "training.judge"]
    assert "<td>0.001</td><td>0.0001</td>" in page and "<td>not set</td>" in page and HOSTILE not in page
    assert json.loads(html.unescape(re.findall(r'data-runs="([^"]*)"', page)[0])) == [
        ["a", "/runs/a/data"], ["b", "/runs/b/data"]
    ]  # fmt: skip
    for name in "cdefg":
        make_run(studio.folder, name)
    page = client.get("/runs/over?" + "&".join(f"run={name}" for name in "abcdefg")).text
    assert "<h1>6 runs" in page and "The first 6" in page


def test_evaluations_and_adapters_of_a_run_are_named(studio: Studio, client: TestClient) -> None:
    place = make_run(studio.folder, "a")
    for name in ("", "best", "checkpoints/step-5", "checkpoints/step-12"):
        (place / name).mkdir(parents=True, exist_ok=True)
        (place / name / "adapters.safetensors").write_bytes(b"x")
    for name, adapter in (("one", "a/best"), ("two", str(place)), ("three", "b"), ("four", 5)):
        (studio.folder / "evaluations" / name).mkdir(parents=True)
        record = {"contestants": [{"adapter_folder": None}, {"adapter_folder": adapter}]}
        sealed_json(studio.folder / "evaluations" / name / "settings.json", record)
    page = client.get("/runs/a").text
    assert re.findall(r"/compare\?adapter=([^\"]*)", page) == [
        "a/best", "a", "a/best", "a/checkpoints/step-12", "a/checkpoints/step-5"
    ]  # fmt: skip
    assert [name for name in ("one", "two", "three", "four") if f"evaluations/{name}<" in page] == ["one", "two"]


def test_many_may_look_while_a_run_goes_on(studio: Studio, client: TestClient) -> None:
    place = make_run(studio.folder, "a", "running")
    with ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(client.get, f"/runs/a{part}") for part in ["", "/data?since=", "?part=state"] * 20]
        for n in range(6, 60):
            write_events(place / "events.jsonl", step(n, **{f"of step {n}": n}), rollout(n))
            asked.append(pool.submit(client.get, "/runs/a/data?since="))
    assert {answer.result().status_code for answer in asked} == {200}
    assert client.get("/runs/a/data?since=").json()["tables"]["step"]["over"]["step"] == list(range(1, 60))
