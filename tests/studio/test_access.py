"""Pages for people who do not look, do not use a mouse, or have a phone: names, headings, order, contrast, width."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlxmath.studio.place import Studio
from mlxmath.studio.ratings import ratings_of
from tests.studio.answers import evaluation, rating
from tests.studio.browser import PHONE, Served, is_too_wide
from tests.studio.make import make_run, rollout, write_events

STATIC = Path(__file__).parents[2] / "mlxmath" / "studio" / "static"
SCRIPT = Path(__file__).with_name("access.js").read_text()
EMPTY = ("/runs", "/new", "/compare", "/evaluations", "/rate", "/rate/results", "/runs/nowhere")
FULL = (
    "/runs", "/runs?q=nothing", "/runs/a", "/runs/b", "/runs/over?run=a&run=b", "/new?recipe=demo&lora_rank=0",
    "/evaluations", "/evaluations/evaluation_results/x", "/evaluations/evaluation_results/x?problem=gsm8k/1", "/rate",
    "/rate?source=evaluation_results/x", "/rate/next?source=evaluation_results/x&rater=Ann",
    "/rate/next?source=evaluation_results/x&rater=Ann&one=0&other=0", "/rate/results",
)  # fmt: skip
_NAMED = "button|link|textbox|searchbox|combobox|spinbutton|checkbox|radio|progressbar|img|table|region|navigation"
_UNNAMED = re.compile(rf"^\s*- (?:{_NAMED})(?!\w)(?! \")", re.MULTILINE)


def colors(text: str) -> dict[str, str]:
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", text))


def contrast(one: str, other: str) -> float:
    """Of WCAG 2.2, 1.4.3."""
    parts = ([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)] for color in (one, other))
    linear = ([c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in part] for part in parts)
    low, high = sorted(0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in linear)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_are_told_apart(scheme: str) -> None:
    blocks = re.findall(r":root \{(.*?)\}", (STATIC / "studio.css").read_text(), re.DOTALL)
    found = colors(blocks[scheme == "dark"])
    texts = ("ink", "quiet", "accent", "good", "bad", "warn")
    pairs = [(text, ground) for text in texts for ground in ("ground", "paper", "wash")]
    pairs += [(name, f"{name}-wash") for name in ("good", "bad", "warn")]
    pairs += [(text, ground) for text in ("ink", "quiet", "accent") for ground in ("good-wash", "bad-wash")]
    pairs.append(("on-accent", "accent"))
    faint = {pair: round(value, 2) for pair in pairs if (value := contrast(found[pair[0]], found[pair[1]])) < 4.5}
    drawn = [("edge", "paper"), ("edge", "ground"), *((f"c{i}", "paper") for i in range(6))]  # 1.4.11: no text
    faint |= {pair: round(value, 2) for pair in drawn if (value := contrast(found[pair[0]], found[pair[1]])) < 3}
    assert contrast("#000000", "#ffffff") == pytest.approx(21) and faint == {}


def test_all_pages_have_names_headings_contrast_and_room(folder: Path, visit: Callable[..., Any]) -> None:
    tab = visit("/runs", PHONE)
    origin = tab.url.removesuffix("/runs")
    assert faults(tab, origin, EMPTY) == {}
    figures = {"difference": 0.1, "low": 0.05, "high": 0.2, "p_value": 0.01}
    make_run(folder, "a", verdict={"benchmark": "demo", "said": "better", **figures})
    write_events(make_run(folder, "b", "killed", method="grpo") / "events.jsonl", rollout(6), rollout(7, correct=False))
    evaluation(folder / "evaluation_results" / "x")
    for number, verdict in enumerate(["left", "right", "same", "both bad"]):
        ratings_of(Studio(folder)).add(rating(number, verdict))
    assert faults(tab, origin, FULL) == {}
    # what is not there is no trouble here
    visit.troubles[0][:] = [each for each in visit.troubles[0] if "404" not in each and "422" not in each]  # type: ignore[attr-defined]


def faults(tab: Any, origin: str, paths: tuple[str, ...]) -> dict[str, set[str]]:
    """What is wrong with pages, by their addresses."""
    found = {}
    for path in paths:
        tab.goto(origin + path)
        wrong = {f"no name: {line.strip()}" for line in _UNNAMED.findall(tab.locator("body").aria_snapshot())}
        for scheme in ("light", "dark"):
            tab.emulate_media(color_scheme=scheme)
            wrong.update(tab.evaluate(SCRIPT))
        wrong |= {"too wide"} if is_too_wide(tab) else set()
        found |= {path: wrong} if wrong else {}
    return found


def test_what_happens_is_said_and_nothing_is_lost(
    folder: Path, serving: Callable[..., Served], visit: Callable[..., Any]
) -> None:
    for number in range(30):
        make_run(folder, f"run-{number:02}", "stopped", settings=f"[lora]\nrank = {number + 1}\n")
    served = serving()
    tab = visit("/runs", served=served)
    tab.get_by_label("Choose run-07").check()
    tab.get_by_label("Search runs").fill("run-1")
    tab.locator("#count", has_text="11 of 30 runs").wait_for()  # the chosen one stays
    tab.get_by_role("status").get_by_text("11 of 30 runs", exact=True).wait_for()
    tab.get_by_label("Choose run-12").check()
    tab.get_by_role("link", name="Held out").click()
    tab.locator("th[aria-sort=ascending]", has_text="Held out").wait_for()
    tab.get_by_role("button", name="together").click()
    tab.get_by_role("heading", name="2 runs together").wait_for()
    assert tab.locator("thead th").all_inner_texts() == ["run-07", "run-12"]
    tab.get_by_role("link", name="Runs", exact=True).last.click()
    assert tab.get_by_role("checkbox", checked=True).count() == 2
    tab.goto(f"{served.url}/runs/run-03")
    served.process.kill()
    served.process.wait()
    tab.get_by_role("button", name="Resume").click()
    tab.get_by_role("alert").get_by_text("does not answer").wait_for()
    assert visit.troubles[0]  # type: ignore[attr-defined]
    visit.troubles[0].clear()  # type: ignore[attr-defined]
