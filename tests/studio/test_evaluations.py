"""`/evaluations`: what the list says of each, and every problem of one with filters, as its report has them."""

import html
import json
import re
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

import pytest
from starlette.testclient import TestClient

from mlxmath.evaluation.paired import OUTCOMES
from mlxmath.evaluation.report import page, view_of
from mlxmath.evaluation.samples import SAMPLES, SETTINGS, Sample, save_samples, write_sample
from mlxmath.evaluation.score import collect, results
from mlxmath.runtime.files import atomic_write
from mlxmath.runtime.locks import locked
from mlxmath.runtime.sealed import sealed_json
from mlxmath.studio import explorer
from mlxmath.studio.evaluations import command, evaluations, order
from mlxmath.studio.explorer import PAGE
from mlxmath.studio.place import Studio
from tests.evaluation.make import sample, settings
from tests.helpers import wait_until
from tests.studio.browser import PHONE, is_dark, is_too_wide
from tests.studio.make import HOSTILE


def forty(**changes: Any) -> list[Sample]:
    """Forty problems, two models: 10 fixed, 10 broken, 10 right twice, 10 wrong twice."""
    made = []
    for i in range(40):
        shared = {"subject": ("algebra", "geometry")[i % 2], "level": str(i % 3 + 1), "gold": "\\frac{1}{2}"}
        shared |= {"question": f"Problem {i}: what is $\\frac{{{i}}}{{{2 * i}}}$?"} | changes
        for label, right in (("base", i < 20), ("tuned", 10 <= i < 30)):
            text = f"We get $x = \\frac{{1}}{{2}}$.\n2 + {i} = {i + (2 if i % 4 else 3)}\n#### {1 if right else i + 2}"
            cut: dict[str, Any] = {"finish_reason": "length", "truncated": True} if i % 5 == 0 and not right else {}
            made.append(sample(label, i, "1", correct=right, response=text, **cut, **shared))
    return made


def written(folder: Path, found: Sequence[Sample], **changes: Any) -> Path:
    """An evaluation without its report."""
    folder.mkdir(parents=True)
    made = settings("base", "tuned", **changes)
    made["benchmarks"] = [{"name": "b", "num_problems": len({one.id for one in found})}]
    sealed_json(folder / SETTINGS, made)
    save_samples(folder / SAMPLES, found)
    return folder


def reported(folder: Path, given: Sequence[Sample], **changes: Any) -> Path:
    """One with results.json and report.html, without its charts."""
    written(folder, given, **changes)
    made = json.loads((folder / SETTINGS).read_text())
    scored = collect(given, ["base", "tuned"], made["samples"])
    found = results(scored, made)
    sealed_json(folder / "results.json", found)
    atomic_write(folder / "report.html", page(view_of(found, scored, datetime.now(UTC))))
    return folder


@pytest.fixture
def one(folder: Path) -> Path:
    return reported(folder / "evaluation_results" / "one", forty())


# The list


def test_the_list_says_how_far_each_is(one: Path, folder: Path, studio: Studio, client: TestClient) -> None:
    written(folder / "stopped", forty()[:30])
    running = written(folder / "running", forty()[:50])
    (folder / "damaged").mkdir()
    (folder / "damaged" / SETTINGS).write_text("{")
    (folder / "damaged" / SAMPLES).write_text("{}\n")
    (folder / "another").mkdir()
    (folder / "another" / SETTINGS).write_text('{"editor": 1}')
    with locked(running, "--run-name", "mlxmath evaluate"):
        found = {each.name: each for each in evaluations(studio)}
        text = client.get("/evaluations").text
    states = {name: each.state for name, each in found.items()}
    assert states == {
        "evaluation_results/one": "finished",
        "stopped": "stopped",
        "running": "running",
        "damaged": "damaged",
    }
    assert (found["running"].num_answers, found["running"].num_expected) == (50, 50)
    assert (found["stopped"].num_answers, found["stopped"].num_expected) == (30, 30)
    assert "50.0 %" in text and "tuned − base" in text and "p = 1.000" in text and 'hx-trigger="every 3s,' in text
    assert evaluations(studio)[0].state != "running" and "every 15s" in client.get("/evaluations-list").text


def test_fifty_evaluations_are_listed_quickly(folder: Path, client: TestClient) -> None:
    first = reported(folder / "e0", forty())
    for i in range(1, 50):
        shutil.copytree(first, folder / f"e{i}")
    client.get("/evaluations-list")
    begun = time.process_time()
    assert client.get("/evaluations-list").text.count('scope="row"') == 50
    assert time.process_time() - begun < 0.2


# Every problem


def shown(client: TestClient, name: str, **filters: str) -> tuple[dict[str, int], int]:
    """The counts on a page of problems, and how many are on it."""
    found = client.get(f"/evaluation-problems/{quote(name)}", params=filters, headers={"HX-Request": "true"})
    assert found.status_code == 200, found.text
    counts = re.findall(r'value="[a-z ]*"(?: checked)?> ([a-z ]+) <b>([\d,]+)</b>', found.text)
    return {key: int(count.replace(",", "")) for key, count in counts}, found.text.count('class="problem"')


def report_of(folder: Path) -> list[dict[str, str]]:
    """What the report's page says of each problem, for its filters."""
    text = (folder / "report.html").read_text()
    found = []
    for tag in re.findall(r'<details class="problem"[^>]*>.*?(?=<details class="problem"|</main>)', text, re.DOTALL):
        found.append(dict(re.findall(r'data-(\w+)="([^"]*)"', tag)) | {"text": re.sub(r"<[^>]*>", " ", tag).lower()})
    return found


def test_filters_are_those_of_the_report(one: Path, client: TestClient) -> None:
    report = report_of(one)
    assert len(report) == 40
    for filters in ({}, {"subject": "algebra"}, {"level": "2"}, {"level": "2", "subject": "geometry"},
                    *({"category": kind} for kind in ("right", "wrong", "slip", "truncated", "none", "loop")),
                    {"search": "17"}, {"search": "PROBLEM  39:"}, {"search": "nothing like it"}):  # fmt: skip
        fitting = [
            each for each in report
            if all(each.get(name) == value for name, value in filters.items() if name in ("subject", "level"))
            and filters.get("category", "") in ("", *each["kinds"].split())
            and all(word in each["text"] for word in filters.get("search", "").lower().split())
        ]  # fmt: skip
        expected = {name: sum(each["outcomes"] == name for each in fitting) for name in OUTCOMES}
        counts, num = shown(client, "evaluation_results/one", **filters)
        assert counts == {"all": len(fitting)} | expected and num == min(PAGE, len(fitting)), filters
        for name in OUTCOMES:
            assert shown(client, "evaluation_results/one", outcome=name, **filters)[1] == expected[name]
    assert len({each["kinds"] for each in report}) > 3  # else the test says little


def test_several_samples_and_pairs_are_the_report_s_too(folder: Path, client: TestClient) -> None:
    made = [
        sample(label, i, str((i * n + len(label)) % 3), gold="1", correct=(i * n + len(label)) % 3 == 1, sample=n)
        for label in ("base", "tuned") for i in range(12) for n in range(3)
    ]  # fmt: skip
    path = reported(folder / "several", made, samples=3, temperature=0.7)
    found = json.loads((path / "results.json").read_text())["comparisons"][0]["outcomes"]
    assert shown(client, "several")[0] == {"all": 12} | found
    body = client.get("/evaluation-problem/several", params={"problem": "b/3"}).text
    assert "one of 3 answers" in body


def test_answers_appear_as_they_are_written(folder: Path, client: TestClient) -> None:
    samples = forty()
    path = written(folder / "run", [])
    assert shown(client, "run") == ({"all": 0, **dict.fromkeys(OUTCOMES, 0)}, 0)
    with (path / SAMPLES).open("ab", buffering=0) as file:
        for each in samples[:3]:
            write_sample(file, each)
        assert shown(client, "run")[0]["all"] == 1  # the second one has one answer of two
        file.write(b'{"contestant": "tun')
        assert shown(client, "run")[0]["all"] == 1
    save_samples(path / SAMPLES, samples)  # as --resume does
    assert shown(client, "run")[0]["all"] == 40
    page = client.get("/evaluations/run").text
    assert "80 of 0 answers" not in page and "stopped" in page


def test_a_problem_has_an_address_and_ways_on(one: Path, client: TestClient) -> None:
    text = client.get("/evaluations/evaluation_results/one", params={"problem": "b/39"}).text
    opened = text[text.index('id="chosen"') :]
    assert opened.index("</details>") > opened.index("<mfrac>") > 0 and text.count("<article") == 2
    assert "/compare?evaluation=evaluation_results%2Fone&amp;problem=b%2F39" in text
    assert "/rate?source=evaluation_results%2Fone" in text
    asked = client.get("/compare", params={"evaluation": "evaluation_results/one", "problem": "b/39"})
    assert asked.status_code == 200
    assert client.get("/evaluation-problem/evaluation_results/one", params={"problem": "b/40"}).status_code == 404


def test_twenty_thousand_rows_stay_quick(folder: Path, client: TestClient) -> None:
    path = written(folder / "large", [sample(), sample("tuned")])
    one = asdict(sample())
    with (path / SAMPLES).open("w") as file:
        for label in ("base", "tuned"):
            for i in range(10_000):
                change = {
                    "contestant": label, "fingerprint": f"f-{label}", "id": f"b/{i}", "extracted": str(i % 7),
                    "correct": i % 7 == 1 or (label == "tuned" and i % 7 == 2), "subject": f"s{i % 5}",
                    "question": f"How much is {i} and $\\frac{{{i}}}{{3}}$, when {'x' * 100}?",
                    "response": f"{'It is so. ' * 30}\n{i} + 1 = {i + 1}\n#### {i % 7}",
                }  # fmt: skip
                file.write(f"{json.dumps(one | change)}\n")
    shown(client, "large")
    for filters in (
        {},
        {"outcome": "fixed"},
        {"subject": "s3", "page": "17"},
        {"search": "how 9999"},
        {"problem": "b/9998"},
    ):
        begun = time.process_time()
        counts, num = shown(client, "large", **filters)
        assert time.process_time() - begun < 0.2, filters
        assert 0 < num <= PAGE and counts["all"] in (10_000, 2000, 2)
    begun = time.process_time()
    assert client.get("/evaluations/large", params={"problem": "b/9998"}).text.count("<article") == 2
    assert time.process_time() - begun < 0.3


def test_a_page_does_not_wait_for_many_answers_to_be_measured(
    one: Path, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    measure = explorer._measure
    monkeypatch.setattr(explorer, "_measure", lambda *given: go_on.wait() and measure(*given))
    address = "/evaluation-problems/evaluation_results/one?category=slip"
    assert "how 40 more answers ended" in client.get(address).text and shown(client, "evaluation_results/one")[1] == 40
    waiting = re.search(
        r'hx-get="([^"]*)"[^>]*>finding out', client.get(f"{address}&search=problem&page=2&problem=b%2F39").text
    )
    assert waiting
    part = client.get(html.unescape(waiting[1]))  # what may be read below stays, and so does the address
    assert "more answers ended" in part.text and 'class="problem"' not in part.text and 'id="in-all"' in part.text
    assert part.headers["HX-Retarget"] == "#in-all" and "HX-Replace-Url" not in part.headers
    go_on.set()
    wait_until(lambda: "more answers ended" not in client.get(address).text)
    last = client.get(html.unescape(waiting[1]))
    assert 'class="problem"' in last.text and "HX-Retarget" not in last.headers
    kept = dict(parse_qsl(urlsplit(last.headers["HX-Replace-Url"]).query))
    assert kept == {"category": "slip", "search": "problem", "page": "2", "problem": "b/39"}
    assert shown(client, "evaluation_results/one", category="slip")[1] == sum(
        "slip" in each["kinds"].split() for each in report_of(one)
    )


# Hostile ones


def test_nothing_hostile_is_markup(folder: Path, studio: Studio, client: TestClient) -> None:
    name = "<img src=x onerror=alert(1)>\u202e '\"&"
    changes = {"question": HOSTILE, "solution": HOSTILE, "gold": HOSTILE, "subject": HOSTILE, "level": f"{HOSTILE}!"}
    made = [
        sample(label, i, HOSTILE, correct=i % 2 == 0, response=HOSTILE, id=f"{HOSTILE}/{i}", **changes)
        for label in ("base", "tuned") for i in range(4)
    ]  # fmt: skip
    made[0] = sample("base", 0, "1", response="x" * 1_000_000, id=f"{HOSTILE}/0", **changes)
    reported(folder / name, made)
    pages = [
        client.get(address) for address in (
            "/evaluations", f"/evaluations/{quote(name)}",
            f"/evaluations/{quote(name)}?subject={quote(HOSTILE)}&search=x",
            f"/evaluations/{quote(name)}?problem={quote(HOSTILE)}%2F1", f"/compare?evaluation={quote(name)}",
            f"/evaluation-problem/{quote(name)}?problem={quote(HOSTILE)}%2F0",
        )
    ]  # fmt: skip
    for found in pages:
        assert found.status_code == 200, found.text[:500]
        assert "<img" not in found.text and "document.title='owned'</script>" not in found.text
        assert not set(found.text) & set("\u202e\u2066\x1b") and len(found.text) < 150_000
    assert "<article" in pages[3].text and "980,000 more characters" in pages[5].text


def test_a_report_is_a_document_of_its_own(one: Path, client: TestClient) -> None:
    found = client.get("/evaluation-report/evaluation_results/one")
    policy = found.headers["content-security-policy"]
    assert found.status_code == 200 and found.content == (one / "report.html").read_bytes()
    assert (
        policy.startswith("sandbox allow-scripts")
        and "allow-same-origin" not in policy
        and "default-src 'none'" in policy
    )
    inside = re.search(r"script-src '(sha256-[^']+)'", found.text)
    assert inside and inside[1] in policy and "unsafe" not in policy


def test_links_that_lead_out_are_refused(one: Path, folder: Path, client: TestClient) -> None:
    outside = reported(folder.parent / "outside", forty())
    for name in (SETTINGS, SAMPLES, "results.json", "report.html"):
        linked = folder / f"linked-{name}"
        shutil.copytree(one, linked)
        (linked / name).unlink()
        (linked / name).symlink_to(outside / name)
        assert client.get("/compare", params={"evaluation": f"linked-{name}"}).status_code == 422
        for part in ("evaluations", "evaluation-problems", "evaluation-report"):
            assert client.get(f"/{part}/linked-{name}").status_code == 422, (part, name)
    for name in ("none", "evaluation_results"):
        assert client.get(f"/evaluations/{name}").status_code in (404, 422)


@pytest.mark.parametrize(
    "change", [{"contestants": []}, {"contestants": {"base": {"accuracy": {"value": 7}}}}, {"comparisons": "x"}]
)
def test_damaged_results_are_told(one: Path, client: TestClient, change: dict[str, Any]) -> None:
    found = json.loads((one / "results.json").read_text())
    found.pop("checksum")
    (one / "results.json").write_text(json.dumps(found | change))
    assert (
        "is damaged" in client.get("/evaluations").text
        and "is damaged" in client.get("/evaluations/evaluation_results/one").text
    )


# A new one


def test_the_form_is_a_command_line(folder: Path, studio: Studio, client: TestClient) -> None:
    for name in ("mlx_model", "-m"):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text("{}")
    (folder / "p.jsonl").write_text("{}\n")
    values = {"model": "mlx_model", "benchmark": "gsm8k", "limit": "20", "max_tokens": ""}

    def made(adapters: list[str], **change: str) -> list[str]:
        return command(studio, order(studio, values | change, adapters))

    assert made([""]) == [
        "evaluate",
        "--mlx-path=mlx_model",
        "--no-adapter",
        "--benchmark=gsm8k",
        "--limit=20",
        "--resume",
    ]
    assert made(["", "a", "b"], limit="", max_tokens="9", benchmark="p.jsonl") == [
        "evaluate", "--mlx-path=mlx_model", "--adapter-path=a", "--adapter-path=b", "--compare",
        "--benchmark=./p.jsonl",
        "--max-tokens=9", "--resume",
    ]  # fmt: skip
    assert made(["~a"], model="-m")[1:3] == [f"--mlx-path={folder}/-m", f"--adapter-path={folder}/~a"]
    (folder / "a,b=c.jsonl").write_text("{}\n")
    for change, adapters, why in (
        ({"model": "none"}, [""], "expected a folder"), ({}, [], "none is chosen"), ({}, ["../x"], "lies outside"),
        ({"benchmark": "none"}, [""], "there is no"), ({"benchmark": "a,b=c.jsonl"}, [""], "rename"),
        ({"limit": "0"}, [""], "from 1"), ({"max_tokens": "x"}, [""], "from 1"),
        ({"benchmark": "/etc/passwd"}, [""], "lies outside"),
    ):  # fmt: skip
        found = client.post("/evaluations-start", data=values | change | {"adapter": adapters})
        assert found.status_code == 422 and why in found.text, change
    assert not studio.jobs.all()
    line = client.get("/evaluations-command", params=values | {"adapter": ["", "a b"]}, headers={"HX-Request": "true"})
    assert "mlxmath evaluate --mlx-path=mlx_model &#39;--adapter-path=a b&#39; --compare" in line.text


def test_an_evaluation_is_started_from_the_page_and_explored(
    folder: Path, debug_run: Path, studio: Studio, visit: Callable[..., Any]
) -> None:
    for name in ("mlx_model", "adapters"):
        shutil.copytree(debug_run / name, folder / name, ignore=shutil.ignore_patterns("checkpoints"))
    shutil.copytree(folder / "mlx_model", folder / "another")
    manifest = json.loads((folder / "another" / "mlxmath.json").read_text()) | {"fingerprint": "another"}
    del manifest["checksum"]
    (folder / "another" / "mlxmath.json").write_text(json.dumps(manifest))
    tab = visit("/evaluations", PHONE, is_dark=True)
    tab.get_by_label("Model", exact=True).select_option("another")
    tab.locator("#command", has_text="--mlx-path=another --no-adapter").wait_for()
    tab.get_by_label("Model", exact=True).select_option("mlx_model")
    tab.locator("#command", has_text="--adapter-path=adapters --compare").wait_for()
    tab.get_by_label("Benchmark", exact=True).select_option("demo")
    tab.get_by_label("Problems (empty: all)").fill("6")
    tab.get_by_label("Longest answer").fill("30")
    tab.locator("#command", has_text="--max-tokens=30").wait_for()
    told = tab.locator("#command").inner_text()
    expected = "--mlx-path=mlx_model --adapter-path=adapters --compare --benchmark=demo --limit=6 --max-tokens=30"
    assert told == f"mlxmath evaluate {expected} --resume"
    tab.get_by_role("button", name="Start").press("Enter")
    tab.get_by_text("running").first.wait_for()
    tab.get_by_text("finished").wait_for(timeout=60_000)
    (job,) = studio.jobs.all()
    assert job.command_line == told and not is_too_wide(tab) and is_dark(tab)
    tab.locator("tbody a").click()
    assert tab.locator(".problem").count() == 6 and not is_too_wide(tab)
    tab.locator(".problem summary").first.focus()
    tab.keyboard.press("Enter")
    tab.locator(".problem .side").nth(1).wait_for()
    assert tab.locator(".problem .side").count() == 2 and not is_too_wide(tab)
    counts = [int(each) for each in tab.locator(".chip b").all_inner_texts()]
    assert counts[0] == sum(counts[1:]) == 6
    tab.get_by_label("both wrong").check()
    tab.locator("#count", has_text=f"{counts[4]} of 6 problems").wait_for()
    assert tab.locator(".problem").count() == counts[4]
    assert "outcome=both+wrong" in tab.url
    tab.get_by_label("Search").fill("nothing like it")
    tab.get_by_text("No problem fits these filters.").wait_for()
    with tab.context.expect_page() as opening:
        tab.get_by_text("the report as a page of its own").click()
    report = opening.value
    report.get_by_role("button", name="both wrong").click()
    assert report.locator(".problem:visible").count() == counts[4]
    assert report.evaluate("origin") == "null"


def test_hostile_reports_do_nothing(one: Path, visit: Callable[..., Any]) -> None:
    (one / "report.html").write_text(
        "<title>report</title><script>document.title='owned'; fetch('/runs')</script><img src=/static/icon.svg>"
        "<form action=/evaluations-start method=post><button>x</button></form>"
    )
    tab = visit("/evaluation-report/evaluation_results/one")
    tab.get_by_role("button").click()
    tab.wait_for_timeout(100)
    assert tab.title() == "report" and "evaluation-report" in tab.url
    assert all("Content Security Policy" in each or "sandbox" in each for each in visit.troubles[0])  # type: ignore[attr-defined]
    visit.troubles[0].clear()  # type: ignore[attr-defined]
