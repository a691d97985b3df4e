"""How quick is the studio on large folders, and how much does it slow a training that is watched?

    python benchmarks/bench_studio.py [--only pages,watched] [--pairs 5] [--steps 400]

`pages`: `mlxmath studio` on a folder with a run of 100,000 steps, 50 runs and an evaluation of two models on 20,000
problems; each page is asked for once after the start (first), then ten times (warm: the median and the worst); the
points of the long run after each of ten steps more (refresh).
`watched`: the demo's training, in turns with and without a client that asks for its run's state and points every two
seconds as its page does; the studio runs both times. Steps a second, from the 20th step on, and the ratio of each pair;
as speeds differ by more than is asked for, also the processor time of the studio's process, which is what it can take.
On a machine that does nothing else. Each part adds to benchmarks/results/studio.json.
"""

import contextlib
import json
import math
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.cookiejar import CookieJar
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any
from urllib.parse import urlsplit
from urllib.request import HTTPCookieProcessor, build_opener

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import common
from mlxmath.evaluation.samples import SAMPLES, SETTINGS, Sample, write_sample
from mlxmath.runtime.sealed import sealed_json, sealed_line

STEPS, RUNS, PROBLEMS, WARM = 100_000, 50, 20_000, 10
EVERY_S = 2.0
"""Between two refreshes, as in static/runs.js."""
LEFT_OUT = 20
"""Steps at the start of a training that do not count."""
EVALUATION = "evaluations/large"
PAGES = (
    "/runs", "/runs?sort=best&q=run", "/runs/long", "/runs/long?part=state", "/runs/long/data?since=",
    "/runs/over?run=long&run=runs/00", "/new", "/compare", "/evaluations", f"/evaluations/{EVALUATION}",
    f"/evaluation-problems/{EVALUATION}?q=17", "/rate",
)  # fmt: skip

Ask = Callable[[str], bytes]


@contextlib.contextmanager
def studio(folder: Path) -> Iterator[tuple[Ask, psutil.Process]]:
    """`mlxmath studio` on a folder: a function that asks for an address, and its process."""
    command = [sys.executable, "-m", "mlxmath", "studio", str(folder), "--no-browser"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        parts = urlsplit(url)
        opener = build_opener(HTTPCookieProcessor(CookieJar()))
        opener.open(url).read()
        yield (
            lambda address: opener.open(f"{parts.scheme}://{parts.netloc}{address}", timeout=120).read(),
            psutil.Process(process.pid),
        )
    finally:
        process.terminate()
        process.communicate()


def timed_ms(ask: Ask, address: str) -> tuple[float, bytes]:
    """Milliseconds of an answer, and the answer."""
    start = time.perf_counter()
    answer = ask(address)
    return 1000 * (time.perf_counter() - start), answer


def pages(options: Any) -> dict[str, Any]:
    """Times of all pages."""
    folder = options.work / "studio"
    make_folder(folder)
    found: dict[str, Any] = {"run_steps": STEPS, "runs": RUNS, "problems": PROBLEMS, "ms": {}}
    with studio(folder) as (ask, _):
        for address in PAGES:
            try:
                first, answer = timed_ms(ask, address)
            except OSError as error:
                found["ms"][address] = {"failed": str(error)}
                continue
            warm = [timed_ms(ask, address)[0] for _ in range(WARM)]
            found["ms"][address] = rounded({"first": first, "warm": median(warm), "worst": max(warm)}) | {
                "bytes": len(answer)
            }
        times, mark = [], json.loads(ask("/runs/long/data?since="))["mark"]
        for number in range(STEPS + 1, STEPS + WARM + 1):
            with (folder / "long" / "events.jsonl").open("ab") as file:
                file.write(sealed_line(step(number)))
            milliseconds, answer = timed_ms(ask, f"/runs/long/data?since={mark}")
            mark = json.loads(answer)["mark"]
            times.append(milliseconds)
        found["refresh_ms"] = rounded({"median": median(times), "worst": max(times)})
    rows = [
        [name, *(f"{of.get(k, math.nan):.1f}" for k in ("first", "warm", "worst"))] for name, of in found["ms"].items()
    ]
    rows.append(["a refresh of the points", "", *(f"{each:.1f}" for each in found["refresh_ms"].values())])
    common.show_table("Milliseconds a page", ("page", "first", "warm", "worst"), rows)
    return found


def rounded(values: dict[str, float]) -> dict[str, float]:
    """To tenths."""
    return {name: round(value, 1) for name, value in values.items()}


def step(number: int) -> dict[str, Any]:
    """An event of a long run."""
    loss = 2 * math.exp(-number / 20_000) + 0.3 * math.sin(number) ** 2
    return {
        "event": "step", "time": 1.75e9 + number, "step": number, "epoch": 0, "loss": loss, "smoothed_loss": loss,
        "grad_norm": 0.5, "learning_rate": 1e-3, "tokens": 900, "targets": 300, "seconds": 0.5, "applied": True,
    }  # fmt: skip


def make_folder(folder: Path) -> None:
    """What is looked at: runs and an evaluation as the commands leave them."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, steps in (("long", STEPS), *((f"runs/{n:02}", 750) for n in range(RUNS - 1))):
        place = folder / name
        place.mkdir(parents=True)
        config = {"model": {"model": "demo"}, "training": {"max_steps": steps, "seed": len(name)}}
        best = {"metric": "loss", "best": {"step": steps, "loss": 0.5}}
        record = {"started": "2026-01-01T00:00:00+00:00", "method": "train", "config": config, "validation": best}
        sealed_json(place / "run.json", {**record, "status": "finished", "steps": steps})
        with (place / "events.jsonl").open("wb") as file:
            file.write(sealed_line({"event": "start", "time": 1.75e9, "step": 0, "total_steps": steps}))
            file.writelines(sealed_line(step(number)) for number in range(1, steps + 1))
    place = folder / EVALUATION
    place.mkdir(parents=True)
    sealed_json(place / SETTINGS, {
        "format": 3, "samples": 1, "shots": 0, "temperature": 0.0, "top_p": 1.0, "seed": 0, "template": "tutor",
        "retrieve": None, "vote": None, "weights": [], "voters": [], "mlxmath": "0", "benchmarks": [{"name": "b"}],
        "contestants": [{"label": label, "model": "m", "adapter": None, "fingerprint": label, "asked_in": "tutor",
                         "against": "base" if label == "tuned" else None} for label in ("base", "tuned")],
        "device": {"name": "a device", "dtype": "float32"},
    })  # fmt: skip
    with (place / SAMPLES).open("wb") as file:
        for number in range(PROBLEMS):
            for label in ("base", "tuned"):
                write_sample(file, sample(label, number))


def sample(label: str, number: int) -> Sample:
    """An answer as models of this size write them."""
    right = (number * 7919 + len(label)) % 10 < 5
    text = "We add $a + b$ and get $\\frac{x}{2}$.\n" * 6 + f"\\boxed{{{number if right else -1}}}"
    question = f"Problem {number}: Natalia sold {number} clips in April, and half as many in May. How many in all?"
    return Sample(
        label, label, "b", f"b/{number}", 0, str(number % 5), ("algebra", "geometry")[number % 2], question,
        str(number), None, 0, text, str(number if right else -1), "boxed", right, "stop", False, 60, 120, 0.1,
    )  # fmt: skip


def watched(options: Any) -> dict[str, Any]:
    """The speed of a training, with and without somebody who looks."""
    folder = options.work / "studio-watched"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    speeds: dict[str, list[float]] = {"alone": [], "watched": []}
    used_s, watched_s = 0.0, 0.0
    with studio(folder) as (ask, process):
        train(folder, "warm", LEFT_OUT + 5)  # converts the model, makes the cache
        for pair in range(options.pairs):
            for kind in ("alone", "watched") if pair % 2 else ("watched", "alone"):
                name = f"{kind}-{pair}"
                start, used = time.monotonic(), sum(process.cpu_times()[:2])
                with looking(ask, name) if kind == "watched" else contextlib.nullcontext():
                    train(folder, name, options.steps)
                if kind == "watched":
                    used_s, watched_s = (
                        used_s + sum(process.cpu_times()[:2]) - used, watched_s + time.monotonic() - start,
                    )  # fmt: skip
                speeds[kind].append(steps_per_s(folder / name / "events.jsonl"))
                print(f"{name}: {speeds[kind][-1]:.3f} steps/s", flush=True)
    ratios = [seen / alone for alone, seen in zip(speeds["alone"], speeds["watched"], strict=True)]
    spread = 1.96 * stdev(ratios) / math.sqrt(len(ratios)) if len(ratios) > 1 else math.nan
    slowed = 100 * (1 - fmean(ratios))
    share = used_s / watched_s / (psutil.cpu_count() or 1)
    print(f"slowed by {slowed:.2f} % (95 % interval ± {100 * spread:.2f}) over {len(ratios)} pairs")
    print(f"the studio's process takes {100 * share:.2f} % of the machine's processors meanwhile")
    return {
        "steps": options.steps, "every_s": EVERY_S, "steps_per_s": speeds, "ratios": ratios, "slowed_percent": slowed,
        "interval_percent": None if math.isnan(spread) else 100 * spread, "processor_share": share,
    }  # fmt: skip


def train(folder: Path, name: str, steps: int) -> None:
    """The demo's training."""
    command = [
        sys.executable, "-m", "mlxmath", "train", "--recipe", "demo", "--max-steps", str(steps), "--adapter-path", name
    ]  # fmt: skip
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def steps_per_s(path: Path) -> float:
    """From the log of a run."""
    events = [json.loads(line) for line in path.read_text().splitlines()]
    times = [event["time"] for event in events if event["event"] == "step"][LEFT_OUT:]
    return (len(times) - 1) / (times[-1] - times[0])


@contextlib.contextmanager
def looking(ask: Ask, name: str) -> Iterator[None]:
    """Somebody has the page of a run open."""
    ended = threading.Event()

    def look() -> None:
        mark = ""
        while not ended.wait(EVERY_S):
            with contextlib.suppress(OSError):  # it has not begun yet
                ask(f"/runs/{name}?part=state")
                mark = json.loads(ask(f"/runs/{name}/data?since={mark}"))["mark"]

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


PARTS = {"pages": pages, "watched": watched}


def main() -> None:
    """Run the parts and write the results."""
    parser = common.command_line(__doc__, "studio.json", "work")
    parser.add_argument("--only", default=",".join(PARTS), help="some of pages,watched (default: both)")
    parser.add_argument("--pairs", type=int, default=5, help="of trainings (default: 5)")
    parser.add_argument("--steps", type=int, default=400, help="of each training (default: 400)")
    options = parser.parse_args()
    record: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    record["what"] = __doc__.splitlines()[0]
    for part in options.only.split(","):
        record[part] = PARTS[part](options) | {"machine": common.machine(("mlx", "mlxmath", "starlette", "uvicorn"))}
        common.save_json(options.out, record)


if __name__ == "__main__":
    main()
