"""The page of a new run: what is here to start from, the file, the start; and all of it in a browser, by keys."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pytest
from starlette.testclient import TestClient

from mlxmath.config.load import settings_from
from mlxmath.studio.choices import choices
from mlxmath.studio.form import Draft, check
from mlxmath.studio.jobs import Job, Jobs
from mlxmath.studio.place import Studio
from tests.helpers import ENVIRONMENT
from tests.studio.browser import PHONE, is_dark, is_too_wide

HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What would have been started."""
    found: list[list[str]] = []
    alive = Job("20260101-000000-abcdef", "train", [], 0.0, 0, 0.0)

    def start(_: Jobs, *arguments: str) -> Job:
        found.append(list(arguments))
        return alive

    monkeypatch.setattr(Jobs, "start", start)
    return found


def test_what_is_here_can_be_started_from(studio: Studio, folder: Path, tmp_path: Path) -> None:
    for name, text in {
        "models/a/mlxmath.json": '{"source": "org/a", "quantization": {"bits": 4}}', "models/b/mlxmath.json": "[",
        "models/c/mlxmath.json": '{"source": "/gone/c"}', "models/d/config.json": "{}", "models/d/x.safetensors": "",
        "x.gguf": "", "data/rows.jsonl": "", "data/more.csv.gz": "", "data/notes.txt": "", "run/run.json": "{}",
        "run/run.toml": "", "run/events.jsonl": "", "data/settings.json": "", ".hidden/rows.jsonl": "",
        f"data/{HOSTILE}.csv": "",
    }.items():  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (tmp_path / "secret.jsonl").write_text("")
    (folder / "data" / "link.jsonl").symlink_to(tmp_path / "secret.jsonl")
    found = choices(studio)
    settings = [dict(parse_qsl(choice.value)) for choice in found.models]
    assert settings == [
        {"model": "demo"}, {"model": "x.gguf"}, {"model": "org/a", "mlx_path": "models/a"},
        {"model": "models/c", "mlx_path": "models/c"}, {"model": "models/d"},
    ]  # fmt: skip
    assert "4 bits" in found.models[2].label
    assert {dict(parse_qsl(choice.value))["dataset"] for choice in found.data} == {
        "demo", "data/rows.jsonl", "data/more.csv.gz", f"data/{HOSTILE}.csv",
    }  # fmt: skip
    assert [dict(parse_qsl(choice.value)) for choice in found.runs] == [{"from": "run"}]


def test_names_that_are_no_text_are_not_offered(client: TestClient, studio: Studio, folder: Path) -> None:
    for name, text in {
        "caf\udce9.jsonl": "", "caf\udce9.gguf": "", "m\udce9/mlxmath.json": '{"source": "org/a"}',
        "m\udce9/d/config.json": "{}", "m\udce9/d/x.safetensors": "", "r\udce9/run.json": "{}", "r\udce9/run.toml": "",
        "half/mlxmath.json": r'{"source": "org/\ud800"}', "rows.jsonl": "",
    }.items():  # fmt: skip
        try:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        except OSError:
            pytest.skip("this file system has no such names")
    assert client.get("/new").status_code == 200
    found = choices(studio)
    assert [choice.label for choice in found.data[1:]] == ["rows.jsonl (0 B)"]
    assert len(found.models) == 1 and found.runs == []


def test_the_page_offers_it_and_shows_a_hostile_name_as_text(client: TestClient, folder: Path) -> None:
    (folder / f"{HOSTILE}.csv").write_text("")
    page = client.get("/new").text
    assert "<img" not in page and "&lt;img" in page and "onerror=alert(1)&gt;.csv" in page
    assert re.search(r'<option value="train" selected>', page) and "style=" not in page
    assert not re.search(r"\son\w+=", page.replace("onerror=", ""))


def test_an_earlier_run_s_settings_come_back_with_its_command(client: TestClient, folder: Path) -> None:
    (folder / "runs" / "a").mkdir(parents=True)
    (folder / "runs" / "a" / "run.json").write_text('{"method": "grpo"}')
    (folder / "runs" / "a" / "run.toml").write_text('[model]\nmodel = "demo"\n[lora]\nrank = 3\n')
    page = client.get("/new?from=runs/a").text
    assert re.search(r'<option value="grpo" selected>', page)
    assert "mlxmath grpo --config runs/a/run.toml" in page and "3 (" in page
    assert "nowhere holds no run.toml" in client.get("/new?from=nowhere").text
    assert "lies outside" in client.get("/new?from=..").text and client.get("/new?command=rm").status_code == 422
    (folder / "runs" / "a" / "run.toml").unlink()  # while the page is open
    part = client.post("/new/check", data={"command": "grpo", "start": "from=runs/a"}, headers={"HX-Request": "true"})
    assert part.status_code == 200 and 'id="outcome"' in part.text and "holds no run.toml" in part.text


def test_what_makes_pages_loads_no_model_library(folder: Path) -> None:
    program = (
        "import sys\nfrom pathlib import Path\nfrom mlxmath.studio.fields import groups\n"
        "from mlxmath.studio.form import Draft, check\nfrom mlxmath.studio import choices, preview\n"
        "from mlxmath.studio.place import Studio\nassert groups(check(Studio(Path.cwd()), Draft('train', 'demo')))\n"
        "print(sorted({'mlx', 'mlx.core', 'numpy', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
    program = "import sys, mlxmath.studio.server\nassert not {'mlx.core', 'transformers', 'sympy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], env=ENVIRONMENT, check=True)


def test_the_file_holds_the_settings_of_the_form(client: TestClient, studio: Studio, tmp_path: Path) -> None:
    answer = client.get("/new/file?command=grpo&recipe=demo-grpo&lora_rank=5&reward_weights=correctness=1,format=0.5")
    assert answer.status_code == 200 and "attachment" in answer.headers["content-disposition"]
    (tmp_path / "run.toml").write_text(answer.text)
    given = {"lora.rank": "5", "grpo.reward_weights": "correctness=1,format=0.5"}
    checked = check(studio, Draft("grpo", "demo-grpo", given=given))
    assert checked.resolved is not None
    found = settings_from(checked.draft.sections, config=tmp_path / "run.toml").config
    assert found == checked.resolved.config and found.grpo.reward_weights == {"correctness": 1.0, "format": 0.5}
    assert client.get("/new/file?command=train&lora_rank=0").status_code == 422


def test_start_starts_the_command_and_goes_to_its_run(client: TestClient, started: list[list[str]]) -> None:
    values = {"command": "train", "start": "recipe=demo", "lora_rank": "4", "adapter_path": "runs/one two"}
    answer = client.post("/new/start", data=values)
    assert (answer.status_code, answer.headers["location"]) == (303, "/runs/runs/one%20two")
    assert started == [["train", "--recipe", "demo", "--lora-rank", "4", "--adapter-path", "runs/one two"]]


def test_a_second_click_starts_nothing_more(
    client: TestClient, started: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"command": "train", "start": "recipe=demo"}
    client.post("/new/start", data=values)
    job = Job("20260101-000000-abcdef", "train", started[0], 0.0, 1, 0.0)
    monkeypatch.setattr(Job, "is_alive", True)
    monkeypatch.setattr(Jobs, "all", lambda _: [job])
    assert client.post("/new/start", data=values).status_code == 303 and len(started) == 1


@pytest.mark.parametrize(
    "values",
    [
        {"lora_rank": "0"}, {"adapter_path": "../out"}, {"dataset": "/etc/passwd.csv"}, {"start": "recipe=none"},
        {"adapter_path": "taken"}, {"model": "ollama:x"}, {"quantize": "7"}, {"adapter_path": "a\x00b"},
        {"adapter_path": "."},
    ],
)  # fmt: skip
def test_what_is_not_right_starts_nothing(
    client: TestClient, folder: Path, started: list[list[str]], values: dict[str, str]
) -> None:
    (folder / "taken").mkdir()
    for place in (folder, folder / "taken"):
        (place / "run.json").write_text("{}")
    answer = client.post("/new/start", data={"command": "train", "start": "recipe=demo"} | values)
    assert answer.status_code == 422 and started == []
    assert 'class="trouble"' in answer.text


def test_options_that_are_not_offered_are_left_out(client: TestClient, started: list[list[str]]) -> None:
    values = {"command": "train", "start": "recipe=demo", "trust_remote_code": "yes", "report_to": "wandb",
              "resume": "yes", "teacher_url": "http://x", "nonsense": "1"}  # fmt: skip
    assert client.post("/new/start", data=values).status_code == 303
    assert started == [["train", "--recipe", "demo"]]


def test_prepare_is_started_for_what_is_not_read_unasked(client: TestClient, started: list[list[str]]) -> None:
    values = {"command": "train", "recipe": "demo", "dataset": "org/name", "lora_rank": "4"}
    answer = client.post("/new/prepare", data=values)
    assert answer.status_code == 303 and answer.headers["location"].startswith("/new/rows?command=train&recipe=demo")
    assert started == [["prepare", "--recipe", "demo", "--dataset", "org/name"]]
    assert client.post("/new/prepare", data=values | {"command": "dpo"}).status_code == 422


def test_a_studio_that_only_shows_starts_nothing(
    studio: Studio, clients: Callable[..., TestClient], started: list[list[str]]
) -> None:
    client = clients(Studio(studio.folder, read_only=True))
    assert client.get("/new").status_code == 403 and client.get("/new/rows?recipe=demo").status_code == 403
    assert client.post("/new/start", data={"start": "recipe=demo"}).status_code == 403 and started == []


def test_a_run_is_put_together_looked_at_and_started_by_keys(visit: Callable[..., Any], folder: Path) -> None:
    """From the recipe to the run, without a mouse; a phone in the dark shows the same."""
    (folder / "adapters").mkdir()
    (folder / "adapters" / "run.json").write_text("{}")
    tab = visit("/new")
    tab.locator("#start").focus()
    tab.locator("#start").select_option("recipe=demo")
    tab.locator("#command", has_text="mlxmath train --recipe demo").wait_for()
    tab.locator("#plan table").wait_for(timeout=60_000)
    tab.locator("#glance mark.target").first.wait_for(timeout=60_000)
    assert "text-decoration-line: underline" in tab.locator("#glance mark.target").first.evaluate(
        "e => 'text-decoration-line: ' + getComputedStyle(e).textDecorationLine"
    )
    adapters = tab.locator("#plan tr", has_text="adapters").inner_text()
    tab.locator("#f-lora_rank").focus()
    tab.keyboard.type("0")
    tab.locator("#w-lora_rank p", has_text="greater than or equal to 1").wait_for()
    assert tab.locator("#f-lora_rank").get_attribute("aria-invalid") == "true"
    assert tab.locator("#glance mark.target").count() > 0
    tab.keyboard.press("Backspace")
    tab.keyboard.type("64")
    tab.keyboard.press("Enter")  # looks, and does not send the form
    tab.locator("#command", has_text="--lora-rank 64").wait_for()
    tab.locator("#plan table").wait_for(timeout=60_000)
    assert tab.locator("#plan tr", has_text="adapters").inner_text() != adapters and tab.url.endswith("/new")
    tab.locator("#w-adapter_path button", has_text="adapters-2").focus()
    tab.keyboard.press("Enter")
    tab.locator("#command", has_text="--adapter-path adapters-2").wait_for()
    tab.locator("#f-max_steps").fill("1")
    tab.locator("#command", has_text="--max-steps 1").wait_for()
    tab.locator("#find").focus()
    tab.keyboard.type("neftune")
    assert tab.locator("#f-neftune_noise_alpha").is_visible() and not tab.locator("#f-seed").is_visible()
    for path in ("/new?recipe=demo", "/new/rows?recipe=demo"):
        phone = visit(path, size=PHONE, is_dark=True)
        phone.locator("mark.target").nth(1).wait_for(timeout=60_000)
        for each in phone.locator("summary").all():
            each.click()
        assert not is_too_wide(phone) and is_dark(phone)
    tab.locator("#start-button").focus()
    tab.keyboard.press("Enter")
    tab.wait_for_url("**/runs/adapters-2")
    (job,) = (folder / "studio" / "jobs").glob("*/job.json")
    note = json.loads(job.read_text())
    os.killpg(note["pid"], signal.SIGKILL)  # it was started, which is enough here
    assert note["arguments"] == [
        "train", "--recipe", "demo", "--lora-rank", "64", "--adapter-path", "adapters-2", "--max-steps", "1",
    ]  # fmt: skip
    tab.locator("h1", has_text="adapters-2").wait_for()
