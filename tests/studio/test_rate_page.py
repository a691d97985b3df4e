"""Rating in a real browser, by keys alone; and a server that is killed right after it has kept a rating."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2

from mlxmath.studio.place import Studio
from mlxmath.studio.ratings import ratings_of
from tests.helpers import events, json_lines, wait_for_step, wait_until
from tests.studio.answers import evaluation
from tests.studio.browser import PHONE, Served, is_dark, is_too_wide

PLACE = "/rate/next?source=evaluation_results/x&rater=Ann"


def test_ten_pairs_by_keys_alone(folder: Path, visit: Callable[..., Any]) -> None:
    evaluation(folder / "evaluation_results" / "x")
    tab = visit("/rate?source=evaluation_results/x")
    tab.keyboard.type("Ann")  # the focus is there
    tab.keyboard.press("Enter")
    tab.wait_for_selector("#desk")
    tab.wait_for_load_state()  # and what listens to keys
    for number, key in enumerate(["1", "2", "3", "4", "ArrowLeft", "ArrowRight", "1", "2", "3"]):
        if number == 1:  # a step, from what has the focus after a rating
            tab.locator("input[name=left_step]").nth(0).focus()
            tab.keyboard.press("ArrowDown")
            assert tab.locator("input[name=left_step]:checked").get_attribute("value") == "2"
            tab.keyboard.press("Enter")  # is no verdict
        tab.keyboard.press(key)
        tab.locator("#told", has_text=f"{number + 1} of 10 rated").wait_for(state="attached")  # the next has the focus
    assert tab.evaluate("document.activeElement.id") == "place"
    tab.keyboard.press("u")
    tab.wait_for_selector("text=undone: rate it again")
    tab.keyboard.press("g")
    tab.wait_for_selector("#gold math, #gold b")
    tab.keyboard.press("2")
    tab.wait_for_selector("text=9 of 10 rated")
    tab.click("summary:has-text('Comment')")
    tab.locator("#comment").type("1 2 su")  # keys that are typed are no verdicts
    tab.locator("#place").focus()
    tab.keyboard.press("4")
    tab.wait_for_selector("text=Nothing is left to rate")
    assert tab.locator("#told").text_content() == "kept: both bad"
    found = ratings_of(Studio(folder)).all()
    said = [one.verdict for one in found]
    assert said == ["left", "right", "same", "both bad", "left", "right", "left", "right", "right", "both bad"]
    assert len(json_lines(folder / "studio" / "ratings.jsonl")) == 12
    assert found[1].left_wrong_step == 2 and found[8].gold_seen and found[9].comment == "1 2 su"
    tab.click("text=See the results")
    assert tab.locator("h2").first.text_content() == "base or tuned?"
    tab.click("text=Write the file")
    tab.wait_for_selector("text=7 rows are in rated_pairs.jsonl")
    assert len(json_lines(folder / "rated_pairs.jsonl")) == 7
    assert tab.get_attribute("text=Train on it", "href") == "/new?command=dpo&dataset=rated_pairs.jsonl"


def test_the_second_click_of_a_double_one_rates_nothing(folder: Path, visit: Callable[..., Any]) -> None:
    evaluation(folder / "evaluation_results" / "x", num=3)
    tab = visit(PLACE)
    tab.wait_for_load_state()
    better = tab.get_by_role("button", name="A is better")
    better.click()
    tab.locator("#told", has_text="1 of 3 rated").wait_for(state="attached")
    better.hover()
    tab.mouse.down(click_count=2)
    tab.mouse.up(click_count=2)
    tab.keyboard.press("2")
    tab.locator("#told", has_text="2 of 3 rated").wait_for(state="attached")
    assert [one.verdict for one in ratings_of(Studio(folder)).all()] == ["left", "right"]


def test_on_a_phone_and_in_the_dark(folder: Path, visit: Callable[..., Any]) -> None:
    wide = f"$${'x + ' * 60}x$$\n{'9' * 300} and <b>{'word ' * 40}\n#### 1"
    made = evaluation(folder / "evaluation_results" / "x", num=1)
    evaluation(folder / "wide", num=1, question=wide)
    assert made.is_dir()
    tab = visit(PLACE.replace("evaluation_results/x", "wide"), PHONE, is_dark=True)
    for path in ("", "/rate", "/rate?source=wide", "/rate/results"):
        if path:
            tab.goto(re.sub(r"/rate.*", path, tab.url))
            tab.wait_for_load_state("networkidle")
        assert is_dark(tab) and not is_too_wide(tab), path
        assert tab.locator("h1").count() == 1
        unnamed = "e => !(e.labels && e.labels.length) && !e.getAttribute('aria-label')"
        inputs = "document.querySelectorAll('input:not([type=hidden]), select, textarea')"
        assert tab.evaluate(f"[...{inputs}].filter({unnamed}).length") == 0


def test_a_killed_server_loses_no_rating_and_stops_no_run(folder: Path, serving: Callable[..., Served]) -> None:
    evaluation(folder / "evaluation_results" / "x")
    served = serving()
    with httpx2.Client(headers={"Origin": served.url}) as client:
        assert client.get(served.address("/rate")).status_code == 200
        run = {"command": "train", "start": "recipe=demo", "max_steps": "5000", "batch_size": "1"}
        assert client.post(f"{served.url}/new/start", data=run).headers["location"] == "/runs/adapters"
        wait_for_step(folder, 1)
        ticket = re.search(r'name="ticket" value="([^"]+)"', client.get(f"{served.url}{PLACE}").text)
        assert ticket
        form = {"source": "evaluation_results/x", "rater": "Ann", "ticket": ticket[1], "verdict": "both bad"}
        answer = client.post(f"{served.url}/rate/verdict", data=form)
        served.process.kill()
        assert "1 of 10 rated" in answer.text
    served.process.wait()
    assert [one.verdict for one in ratings_of(Studio(folder)).all()] == ["both bad"]
    wait_for_step(folder, len(events(folder)) + 5)
    again = serving()
    with httpx2.Client(headers={"Origin": again.url}) as client:
        assert client.get(again.address("/rate")).status_code == 200
        assert "1 of 10 rated" in client.get(f"{again.url}{PLACE}").text
        assert ">running<" in client.get(f"{again.url}/runs").text
        assert ">running<" in client.get(f"{again.url}/runs/adapters").text
        assert client.post(f"{again.url}/runs/adapters/stop").status_code == 200
        wait_until(lambda: ">stopped<" in client.get(f"{again.url}/runs/adapters").text)
