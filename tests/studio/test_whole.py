"""From the first run to one on what was rated, all by the pages; then the same by the command lines that they show."""

import json
import os
import re
import shlex
import shutil
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mlxmath.config.schema import SourceConfig
from mlxmath.data.sources import load_problems
from mlxmath.studio.place import Studio
from mlxmath.studio.ratings import ratings_of
from tests.helpers import events, json_lines, succeed, wait_for_step, wait_until

STEPS, EVERY = 60, 20
FIRST = {"max_steps": f"{STEPS}", "batch_size": "4", "warmup_steps": "5", "validation_split": "24",
         "eval_every": f"{EVERY}", "save_every": f"{EVERY}"}  # fmt: skip
PREFERRED = {"model": "demo", "adapter_path": "preferred", "max_steps": "3", "batch_size": "2",
             "grad_accumulation_steps": "1"}  # fmt: skip
PATIENCE_MS = 60_000


def test_all_of_it_and_every_file_is_what_the_command_line_writes(
    folder: Path, tmp_path: Path, visit: Callable[..., Any]
) -> None:
    tab = visit("/runs")
    go(tab, "Try the demo", "/new?*")
    tab.locator("#command", has_text="mlxmath train --recipe demo").wait_for()
    lines = [started(tab, FIRST, "adapters")]
    watched_stopped_and_resumed(tab, folder)
    lines.append(evaluated(tab))
    compared(tab)
    rated(tab)
    go(tab, "Train on it", "/new?*")
    lines.append(started(tab, PREFERRED, "preferred"))
    tab.get_by_text("finished", exact=True).wait_for(timeout=PATIENCE_MS)
    tab.get_by_text("3 steps, read in").wait_for()

    pairs = json_lines(folder / "pairs.jsonl")
    read = [(one.question, one.solution, one.rejected) for one in load_problems(
        SourceConfig(dataset=str(folder / "pairs.jsonl")), pairs=True
    )]  # fmt: skip
    sides = {"left": ("left", "right"), "right": ("right", "left")}
    assert read == [(row["prompt"], row["chosen"], row["rejected"]) for row in pairs] == [
        (one.question, *(one.side(side).text for side in sides[one.verdict]))
        for one in ratings_of(Studio(folder)).all()
    ]  # fmt: skip

    typed = tmp_path / "typed"
    typed.mkdir()
    shutil.copy(folder / "pairs.jsonl", typed)
    for line in lines:
        _, name, *arguments = shlex.split(line)
        succeed(typed, name, *arguments)
    ours, theirs = files(folder), files(typed)
    assert len(ours) > 30 and ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name]] == []


def go(tab: Any, link: str, address: str) -> None:
    """Follow a link, and wait for what the page's scripts listen to."""
    tab.get_by_role("link", name=link).click()
    tab.wait_for_url(f"**{address}")
    tab.wait_for_load_state()


def started(tab: Any, fields: Mapping[str, str], place: str) -> str:
    """Fill in the form of a new run, start it, and wait for its page; the command line that it showed."""
    tab.locator("details.group").evaluate_all("all => all.forEach(each => each.open = true)")
    for key, value in fields.items():
        tab.locator(f"#f-{key}").fill(value)
        tab.locator(f"#f-{key}").blur()
    for key, value in fields.items():
        tab.locator("#command", has_text=f"--{key.replace('_', '-')} {value}").wait_for()
    line = tab.locator("#command").inner_text()
    tab.get_by_role("button", name="Start", exact=True).click()
    tab.wait_for_url(f"**/runs/{place}")
    return str(line)


def watched_stopped_and_resumed(tab: Any, folder: Path) -> None:
    """The run holds its breath twice, so that the page sees it however fast it is."""
    (job,) = Studio(folder).jobs.all()

    def steps() -> int:
        found = re.match(r"([\d,]+) steps, read in", tab.locator("#read").inner_text())
        return int(found[1].replace(",", "")) if found else 0

    wait_for_step(folder, 2)
    os.kill(job.pid, signal.SIGSTOP)
    wait_until(steps, "no curve")
    first = steps()
    os.kill(job.pid, signal.SIGCONT)
    wait_for_step(folder, first + 2)
    os.kill(job.pid, signal.SIGSTOP)
    wait_until(lambda: steps() > first, "the curve does not grow")
    told = tab.locator("#charts figure", has_text="Loss").first.locator("figcaption").inner_text()
    assert int(re.findall(r"at step (\d+)", told)[0]) > first and tab.locator("#charts canvas").count() >= 4
    tab.get_by_role("button", name="Stop and save").click()
    tab.wait_for_timeout(100)
    os.kill(job.pid, signal.SIGCONT)
    tab.get_by_text("stopped", exact=True).wait_for()
    assert len(events(folder)) < STEPS
    assert tab.locator("#state code").inner_text() == (
        "mlxmath train --config=adapters/run.toml --adapter-path=adapters --resume"
    )
    tab.get_by_role("button", name="Resume").click()
    tab.get_by_text("finished", exact=True).wait_for(timeout=PATIENCE_MS)
    tab.get_by_text(f"{STEPS} steps, read in").wait_for()
    assert tab.get_by_text("Best on held-out problems").is_visible()


def evaluated(tab: Any) -> str:
    go(tab, "Evaluations", "/evaluations")
    choose(tab)
    tab.get_by_label("Benchmark", exact=True).select_option("demo")
    tab.get_by_label("Problems (empty: all)").fill("14")
    tab.get_by_label("Longest answer").fill("40")
    tab.locator("#command", has_text="--compare --benchmark=demo --limit=14 --max-tokens=40").wait_for()
    line = tab.locator("#command").inner_text()
    tab.get_by_role("button", name="Start").click()
    tab.get_by_text("finished", exact=True).wait_for(timeout=PATIENCE_MS)
    return str(line)


def compared(tab: Any) -> None:
    go(tab, "Compare", "/compare")
    choose(tab)
    tab.get_by_role("textbox", name="Question").fill("What is 12 + 7?")
    tab.get_by_label("Right answer").fill("19")
    tab.get_by_label("Longest answer").fill("40")
    tab.get_by_role("button", name="Ask").click()
    tab.locator(".answer .verdict").nth(1).wait_for(timeout=PATIENCE_MS)
    assert tab.locator(".who").all_inner_texts() == ["base", "adapters"]
    assert [one.inner_text() for one in tab.locator(".state").all()] == ["done", "done"]


def choose(tab: Any) -> None:
    for box in tab.get_by_role("checkbox").all():
        box.set_checked(box.get_attribute("value") in ("", "adapters"))


def rated(tab: Any) -> None:
    """Ten pairs by keys, and the file of them."""
    go(tab, "Rate", "/rate")
    go(tab, "evaluation_results", "/rate?source=*")
    tab.keyboard.type("Ann")
    tab.keyboard.press("Enter")
    tab.wait_for_selector("#desk")
    tab.wait_for_load_state()  # and what listens to keys
    for number in range(1, 11):
        tab.keyboard.press("12"[number % 2])
        tab.locator("#told", has_text=f". {number} of ").wait_for(state="attached")  # the next pair has the focus
    go(tab, "results", "/rate/results")
    tab.get_by_label("Into the file").fill("pairs.jsonl")
    tab.get_by_role("button", name="Write the file").click()
    tab.get_by_text("10 rows are in pairs.jsonl").wait_for()


ANEW = {"time", "seconds", "started", "updated", "checksum", "tokens_per_second", "origin"}
"""What the same command writes anew each time, or by whether it was given options or their file."""
STOPPED = {"resume", "measurements", "history"}
"""What tells that a run was stopped and resumed: it is measured once more."""


def files(folder: Path) -> dict[str, Any]:
    """What lies in a folder, but for what the studio itself keeps, times, memory, and that a run was stopped.

    Nor is compared what is drawn with the measurement at the stop, a page with times, and what finds the cache's files.
    """
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_file() or name.startswith("studio/"):
            continue
        text = path.read_bytes().replace(f"{folder}/".encode(), b"").replace(f"{folder}".encode(), b".")
        if name == "adapters/loss.png" or path.suffix in (".html", ".verified") or path.name == "prepared.json":
            found[name] = None
        elif path.suffix == ".json":
            found[name] = bare(json.loads(text))
        elif path.suffix == ".jsonl":
            found[name] = [bare(row) for row in map(json.loads, text.splitlines()) if not is_of_a_stop(row)]
        else:
            found[name] = text
    return found


def is_of_a_stop(row: Mapping[str, Any]) -> bool:
    kind = row.get("event")
    return kind in ("start", "resume", "end") or (kind == "validation" and row["step"] % EVERY != 0)


def bare(value: Any) -> Any:
    if isinstance(value, dict):
        left_out = ANEW | STOPPED | {key for key in value if key.endswith("_bytes")}
        return {key: bare(one) for key, one in value.items() if key not in left_out}
    return [bare(one) for one in value] if isinstance(value, list) else value
