"""All pages in a browser: nothing goes wrong in them, on a phone and in the dark."""

import re
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from mlxmath.studio.place import Studio
from mlxmath.studio.server import _address
from tests.studio.browser import PHONE, Served, is_dark, is_too_wide
from tests.studio.make import make_run, rollout, step, write_events


def test_all_pages_of_an_empty_folder_on_a_phone_in_the_dark(visit: Callable[..., Any]) -> None:
    tab = visit("/runs", PHONE, is_dark=True)
    origin = tab.url.removesuffix("/runs")
    for path in ("/runs", "/new", "/compare", "/evaluations", "/rate"):
        tab.goto(origin + path)
        assert tab.url.endswith(path) and tab.get_by_role("heading", level=1).is_visible()
        assert is_dark(tab) and not is_too_wide(tab), path


def test_a_curve_grows_while_somebody_looks_until_the_run_is_stopped(
    folder: Path, visit: Callable[..., Any], holding: Callable[..., Any]
) -> None:
    place = make_run(folder, "a", "running", total=2000)
    process = holding(place)
    tab = visit("/runs/a")
    tab.get_by_text("5 steps, read in").wait_for()
    charts = tab.locator("#charts figure")
    assert charts.count() == 4 and "0.4 at step 5" in charts.first.inner_text()
    assert charts.first.locator("canvas").bounding_box()["width"] > 300
    assert tab.get_by_role("img", name="Curve: Loss").is_visible() and not tab.locator("#samples article").count()
    first = {"event": "validation", "step": 0, "loss": 3.0}
    write_events(place / "events.jsonl", first, *(step(n) for n in range(6, 1500)), rollout(1500), step(1500, odd=1.0))
    tab.get_by_text("1,500 steps, read in").wait_for()
    assert charts.count() == 8 and "at step 1,500" in charts.first.inner_text()
    tab.locator("#samples .sample mn").first.wait_for()
    tab.get_by_label("tokens", exact=True).check()
    tab.get_by_label("logarithmic").check()
    tab.get_by_label("steps").last.fill("1000")
    charts.first.hover()  # else the legend is but names
    assert charts.first.locator(".u-legend").inner_text().startswith("tokens learned from")
    tab.emulate_media(color_scheme="dark")
    assert is_dark(tab)
    tab.get_by_role("button", name="Stop and save").focus()
    tab.keyboard.press("Enter")
    tab.get_by_text("killed", exact=True).wait_for()
    tab.get_by_role("status").get_by_text("The run is now: killed", exact=True).wait_for()
    assert process.wait(60) != 0 and tab.get_by_role("button", name="Resume").is_visible()


def test_runs_over_one_another_on_a_phone(folder: Path, visit: Callable[..., Any]) -> None:
    names = ["<script>document.title='owned'</script>", "a-very-long-name-of-a-run" * 6, "b"]
    for name in names:
        make_run(folder, name, "stopped", steps=30, total=40, training={"judge": name})
    tab = visit("/runs", PHONE, is_dark=True)
    tab.get_by_label("Search runs").fill("b")
    tab.locator("#count", has_text="1 of 3 runs").wait_for()
    tab.get_by_label("Search runs").fill("")
    tab.locator("#count", has_text="3 of 3 runs").wait_for()
    assert not is_too_wide(tab) and tab.title().startswith("Runs")
    for box in tab.get_by_role("checkbox").all():
        box.check()
    tab.get_by_role("button", name="together").click()
    tab.get_by_text("90 steps, read in").wait_for()
    assert tab.locator("#charts figure").count() == 3 and tab.locator("#charts canvas").count() == 3
    assert not is_too_wide(tab) and tab.title().startswith("3 runs")
    tab.get_by_role("link", name="b", exact=True).click()
    tab.get_by_text("30 steps, read in").wait_for()
    assert not is_too_wide(tab) and is_dark(tab)


def test_the_list_asks_again_and_loses_no_search_over_it(folder: Path, visit: Callable[..., Any]) -> None:
    for name in ("a", "b"):
        make_run(folder, name)
    tab = visit("/runs")
    tab.clock.install()
    tab.reload()
    tab.wait_for_load_state()
    tab.evaluate("() => { window.asked = 0; document.addEventListener('htmx:beforeSend', () => { asked += 1; }); }")
    make_run(folder, "c")  # as a sweep does a while after its last run has ended
    tab.clock.fast_forward(16_000)
    tab.locator("#count", has_text="3 of 3 runs").wait_for()
    held: list[Any] = []
    tab.route(re.compile(r"/runs\?q="), lambda route: held.append(route))  # a slow link
    with tab.expect_request(re.compile(r"/runs\?q=&")):
        tab.clock.fast_forward(16_000)
    with tab.expect_event("requestfailed"), tab.expect_request(re.compile(r"/runs\?q=b")):
        tab.get_by_label("Search runs").fill("b")
        tab.clock.fast_forward(300)
    tab.clock.fast_forward(16_000)
    assert tab.evaluate("asked") == 3  # nothing more while the search is under way
    held[1].continue_()
    tab.locator("#count", has_text="1 of 3 runs").wait_for()
    tab.unroute_all()
    tab.evaluate("Object.defineProperty(document, 'hidden', { configurable: true, value: true })")
    tab.clock.fast_forward(16_000)
    assert tab.evaluate("asked") == 3  # nor while nobody looks
    with tab.expect_request(re.compile(r"/runs\?q=b&")):
        tab.evaluate("() => { delete document.hidden; document.dispatchEvent(new Event('visibilitychange')); }")
    tab.wait_for_function("() => !document.querySelector('#list.htmx-request')")
    with tab.expect_request(re.compile(r"/runs\?q=b&")):
        tab.clock.fast_forward(16_000)


def test_a_browser_comes_in_through_a_file(chromium: Any, studio: Studio, serving: Callable[..., Served]) -> None:
    with ExitStack() as closing:
        context = chromium.new_context()
        closing.callback(context.close)
        tab = context.new_page()
        tab.goto(_address(studio, serving().address("/"), closing))
        tab.get_by_role("heading", name="Runs").wait_for()
        assert tab.url.endswith("/runs")


def test_a_page_says_that_its_studio_has_ended(
    folder: Path, visit: Callable[..., Any], serving: Callable[..., Served]
) -> None:
    make_run(folder, "a")
    served = serving()
    tab = visit("/runs", served=served)
    served.process.kill()
    served.process.wait()
    tab.get_by_role("searchbox").fill("a")
    tab.get_by_role("alert").filter(has_text="does not answer").wait_for()
    visit.troubles.clear()
