"""The pictures of docs/studio/: each page of `mlxmath studio`, wide, on a phone and in the dark.

    python tools/screenshots.py [--work FOLDER] [--only runs,rate,…]

The folder that they show is made with the demo: runs with a verdict, one of grpo, an evaluation, ratings, and a run
that goes on meanwhile. Some ten minutes; where FOLDER has been made already, one. Needs Chromium and
`pip install 'mlxmath[dev,browser]'`.
"""

import argparse
import io
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from PIL import Image
from playwright.sync_api import sync_playwright

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY))

from mlxmath.studio.desk import Desk, rating_of
from mlxmath.studio.place import Studio
from mlxmath.studio.ratings import ratings_of
from mlxmath.studio.sources import problems_in, source
from tests.chromium import CHROMIUM, FLAGS
from tests.helpers import wait_until
from tests.studio.browser import Served, opened

PICTURES = REPOSITORY / "docs" / "studio"
LOOKS: Mapping[str, tuple[tuple[int, int], bool]] = {
    "": ((1280, 1290), False), "-phone": ((390, 1266), False), "-dark": ((1280, 1290), True),
}  # fmt: skip
"""Endings of names: the window, half as high again as one is, and whether it is dark."""
BEGUN = 60
"""Steps of the run that goes on, before it is looked at."""
MOST_BYTES = 2_000_000
"""Of all pictures together."""
EVALUATION = "evaluation_results/first"
MADE: Mapping[str, tuple[str, ...]] = {
    "runs/first": ("train", "--recipe", "demo", "--adapter-path", "runs/first", "--max-steps", "240",
                   "--validation-split", "100", "--eval-every", "30", "--judge", "demo:100"),
    "runs/rank 2": ("train", "--recipe", "demo", "--adapter-path", "runs/rank 2", "--lora-rank", "2", "--max-steps",
                    "240", "--validation-split", "100", "--eval-every", "30", "--learning-rate", "5e-4"),
    "runs/rewarded": ("grpo", "--recipe", "demo-grpo", "--adapter-path", "runs/rewarded", "--init-adapter",
                      "runs/first", "--max-steps", "12"),
    EVALUATION: ("evaluate", "--mlx-path=mlx_model", "--adapter-path=runs/first", "--compare", "--benchmark=demo",
                 "--limit=80", "--run-name=first"),
}  # fmt: skip
"""What each folder comes from."""
LIVE = ("train", "--recipe", "demo", "--adapter-path", "runs/long", "--num-epochs", "20", "--validation-split", "100",
        "--eval-every", "25")  # fmt: skip


def main() -> None:
    """Make the folder, and take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("/tmp/mlxmath/maths"), help="the folder that is shown")
    parser.add_argument("--only", default=",".join(PAGES), help="which pages, divided by commas")
    options = parser.parse_args()
    folder = options.work.resolve()
    made(folder)
    PICTURES.mkdir(exist_ok=True)
    with going_on(folder), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        served = Served(folder)
        for name in options.only.split(","):
            for look, (size, is_dark) in LOOKS.items():
                take(browser, served, name, PICTURES / f"{name}{look}.png", size, is_dark=is_dark)
        browser.close()
        served.end()
    total = sum(path.stat().st_size for path in PICTURES.glob("*.png"))
    sys.exit(f"{total:,} bytes, of at most {MOST_BYTES:,}" if total > MOST_BYTES else 0)


def made(folder: Path) -> None:
    """The folder, as far as it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, command in MADE.items():
        if not (folder / name).is_dir():
            subprocess.run([sys.executable, "-m", "mlxmath", *command], cwd=folder, check=True)
    if not (folder / "studio" / "ratings.jsonl").exists():
        rated(Studio(folder))


def rated(studio: Studio) -> None:
    """Two raters, who prefer what is right, the second of them not always; and who pass over much that is alike."""
    found = source(studio, EVALUATION)
    pairs, desk = problems_in(studio.folder / EVALUATION).pairs(found, 0, 1), Desk()
    for rater, every, count in (("Ann", 1000, 45), ("Ben", 5, 30)):
        for number, pair in enumerate(pairs[:count], 1):
            shown = desk.show(pair, rater)
            left, right = (shown.side(side).correct for side in ("left", "right"))
            verdict = ("left" if left else "right") if left != right else "same" if left else "both bad"
            ratings_of(studio).add(rating_of(shown, {"verdict": "same" if number % every == 0 else verdict}))


@contextmanager
def going_on(folder: Path) -> Iterator[None]:
    """While the pictures are taken, a run goes on that the studio has started."""
    shutil.rmtree(folder / "runs" / "long", ignore_errors=True)
    studio = Studio(folder)
    job = studio.jobs.start(*LIVE)
    try:
        events = folder / "runs" / "long" / "events.jsonl"
        wait_until(lambda: events.exists() and len(events.read_bytes().splitlines()) > BEGUN, "no steps", 300)
        yield
    finally:
        studio.jobs.stop(job)


def take(browser: Any, served: Served, name: str, path: Path, size: tuple[int, int], *, is_dark: bool) -> None:
    """A picture of a page, with as many colors as it needs."""
    address, prepare = PAGES[name]
    tab, troubles = opened(browser, served, address, size, is_dark=is_dark)
    prepare(tab)
    if troubles:  # before the picture: Playwright's own style is against the policy
        sys.exit(f"{name}: {troubles}")
    width, height = size
    height = min(height, tab.evaluate("Math.ceil(document.body.getBoundingClientRect().bottom)"))
    png = tab.screenshot(clip={"x": 0, "y": 0, "width": width, "height": height})
    few_colors(Image.open(io.BytesIO(png))).save(path, optimize=True)
    print(f"{path.relative_to(REPOSITORY)}: {path.stat().st_size:,} bytes")
    tab.context.close()


def few_colors(picture: Image.Image) -> Image.Image:
    """The 256 most frequent colors as they are, which Pillow's mapping tints; the edges of letters in the nearest."""
    pixels_HWC = np.asarray(picture.convert("RGB")).astype(np.int64)
    packed_HW = pixels_HWC @ [1 << 16, 1 << 8, 1]
    packed_N, places, counts_N = np.unique(packed_HW, return_inverse=True, return_counts=True)
    colors_NC = np.stack([packed_N >> shift & 255 for shift in (16, 8, 0)], axis=1)
    kept_KC = colors_NC[np.argsort(-counts_N, kind="stable")[:256]]
    nearest_N = ((colors_NC[:, None] - kept_KC) ** 2).sum(2).argmin(1)
    drawn = Image.fromarray(nearest_N[places].reshape(packed_HW.shape).astype(np.uint8), "P")
    drawn.putpalette(kept_KC.astype(np.uint8).tobytes())
    return drawn


def _curves(tab: Any) -> None:
    tab.get_by_text("steps, read in").wait_for(timeout=120_000)
    tab.wait_for_timeout(300)


def _plan(tab: Any) -> None:
    tab.locator("#plan table").wait_for(timeout=120_000)
    tab.locator("#glance mark.target").first.wait_for(timeout=120_000)
    tab.locator("#glance").evaluate("e => e.scrollIntoView({block: innerWidth > 600 ? 'end' : 'start'})")


def _answers(tab: Any) -> None:
    tab.get_by_role("button", name="Ask").click()
    tab.locator(".answer .verdict").nth(1).wait_for(timeout=120_000)
    tab.locator(".asked").evaluate("e => scrollTo(0, innerWidth > 600 ? 0 : e.offsetTop - 500)")


def _problem(tab: Any) -> None:
    tab.locator(".problem summary").first.click()
    tab.locator(".problem .side").nth(1).wait_for()


def _nothing(tab: Any) -> None:
    tab.wait_for_load_state("networkidle")


PAGES: Mapping[str, tuple[str, Callable[[Any], None]]] = {
    "runs": ("/runs", _nothing),
    "run": ("/runs/runs/long", _curves),
    "rewarded": ("/runs/runs/rewarded", _curves),
    "over": (f"/runs/over?run=runs/first&run={quote('runs/rank 2')}", _curves),
    "new": ("/new?recipe=demo&adapter_path=runs/next", _plan),
    "compare": (f"/compare?evaluation={EVALUATION}&problem=demo/59&adapter=runs/first", _answers),
    "evaluation": (f"/evaluations/{EVALUATION}?outcome=fixed", _problem),
    "rate": (f"/rate/next?source={quote(EVALUATION, '')}&rater=Cleo&differ=on", _nothing),
    "results": ("/rate/results", _nothing),
}
"""Address of each page, and what is done before its picture is taken."""

if __name__ == "__main__":
    main()
