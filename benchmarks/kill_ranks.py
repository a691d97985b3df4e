"""Does the loss of a rank end all of them in time, and leave whole files?

    python benchmarks/kill_ranks.py [--times 20] [--ranks 2] [--stop-every 5]

Trains the bundled model on several ranks of MLX's ring on this machine, with a checkpoint every other step. At a random
moment a random rank is killed (or, every few times, stopped with SIGSTOP, so that it falls silent). Accepted: every
other rank ends by itself within 10 seconds and names the lost one; every checkpoint is whole and the adapters load; the
run is resumed, with one rank every third time, and at the end, by one rank, its adapters equal those of an undisturbed
run of one process to 1e-5. Before that, ranks are lost while libraries load, the ring forms, and model and data are
prepared (`kill_phases.py`); there the others end within 10 seconds too, or within 35 where one is stopped just while
MLX's ring forms.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY))

from mlxmath.runtime.blas import preload

preload()

from benchmarks.common import RESULTS, exit_on_sigterm, machine, ring_hostfile, save_json
from benchmarks.kill_phases import LOSSES, lose_early
from benchmarks.whole import broken

LIMIT_S = 10.0
TOLERANCE = 1e-5
COMMAND = [
    sys.executable, "-m", "mlxmath.train", "--debug", "--num-examples", "19", "--max-seq-len", "128", "--batch-size",
    "2", "--grad-accumulation-steps", "2", "--num-epochs", "1000", "--save-every", "2",
]  # fmt: skip


def main() -> None:
    """Kill, look, resume; write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=20, help="ranks to lose (default: 20)")
    parser.add_argument("--ranks", type=int, default=2, help="ranks of a run (default: 2)")
    parser.add_argument("--stop-every", type=int, default=5, help="every how many times SIGSTOP (default: 5)")
    parser.add_argument("--no-phases", action="store_true", help="lose none before training begins")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("--out", type=Path, default=RESULTS / "kill_ranks.json", help="JSON (default: %(default)s)")
    options = parser.parse_args()
    exit_on_sigterm()
    chance = random.Random(options.seed)
    record: dict[str, Any] = {
        "question": "does the loss of a rank end all of them in time, and leave whole files?",
        "machine": machine(("mlx", "mlx-lm")),
        "ranks": options.ranks,
        "before_training": [],
        "losses": [],
    }
    for loss in () if options.no_phases else LOSSES:
        with tempfile.TemporaryDirectory(prefix="mlxmath-kill-") as name:
            steps = ["--max-steps", "2"]
            found = lose_early(loss, Path(name), [*COMMAND[3:], *steps], environment())
        record["before_training"].append(found)
        save_json(options.out, record)
        print(json.dumps(found), flush=True)
    early = all(found["accepted"] for found in record["before_training"])
    if not options.times:
        sys.exit(None if early else "not accepted")
    with tempfile.TemporaryDirectory(prefix="mlxmath-kill-") as name:
        folder = Path(name)
        for number in range(options.times):
            size = 1 if number % 3 == 2 else options.ranks
            how = "SIGSTOP" if size > 1 and number % options.stop_every == options.stop_every - 1 else "SIGKILL"
            found = lose(folder, size, chance, how, first=number == 0)
            record["losses"].append(found)
            save_json(options.out, record)
            print(f"{number + 1}: {json.dumps(found)}", flush=True)
        steps = str(max(whole_checkpoints(folder)) + 4)
        for place, arguments in ((folder, ["--resume"]), (folder / "straight", [])):
            place.mkdir(exist_ok=True)
            subprocess.run([*COMMAND, "--max-steps", steps, *arguments], cwd=place, env=environment(), check=True,
                           capture_output=True)  # fmt: skip
        record["steps"] = int(steps)
        record["largest_difference"] = difference(folder, folder / "straight")
    slowest = max((loss["others_ended_s"] for loss in record["losses"] if loss["others_ended_s"]), default=0.0)
    record |= {
        "slowest_end_s": slowest,
        "accepted": early and slowest < LIMIT_S and record["largest_difference"] < TOLERANCE,
    }
    save_json(options.out, record)
    print(f"slowest end {slowest:.1f} s, adapters differ by {record['largest_difference']:.1e} -> {options.out}")
    if not record["accepted"]:
        sys.exit("not accepted")


def lose(folder: Path, size: int, chance: random.Random, how: str, *, first: bool) -> dict[str, Any]:
    """Start or resume a run, lose a rank of it, and look at what is left."""
    before = max(whole_checkpoints(folder), default=0)
    hosts = ring_hostfile(folder, size)
    processes = []
    for rank in range(size):
        own = {"MLX_RANK": str(rank), "MLX_HOSTFILE": str(hosts)} if size > 1 else {}
        with (folder / f"rank-{rank}.log").open("w") as log:
            processes.append(
                subprocess.Popen([*COMMAND, "--resume"], cwd=folder, env=environment() | own, stdout=log, stderr=log)
            )
    patience = time.monotonic() + 120
    # usually once it trains and saves; now and then while it prepares
    if first or chance.random() < 0.8:
        while max(_numbers(folder), default=0) <= before and time.monotonic() < patience:
            time.sleep(0.01)
        time.sleep(chance.random())
    else:
        time.sleep(4 + 4 * chance.random())
    lost = chance.randrange(size)
    assert all(process.poll() is None for process in processes), (folder / "rank-0.log").read_text()
    processes[lost].send_signal(getattr(signal, how))
    start = time.monotonic()
    codes = [process.wait(60) for rank, process in enumerate(processes) if rank != lost]
    seconds = time.monotonic() - start
    processes[lost].kill()
    processes[lost].wait()
    logs = {rank: (folder / f"rank-{rank}.log").read_text() for rank in range(size) if rank != lost}
    assert codes == [1] * (size - 1), (codes, logs)
    assert all("Traceback" not in log for log in logs.values()), logs
    named = all(f"rank {lost} (" in log for log in logs.values())
    steps = whole_checkpoints(folder)
    return {
        "ranks": size,
        "lost": lost,
        "how": how,
        "others_ended_s": round(seconds, 2) if size > 1 else None,
        "named": named,
        "checkpoints": sorted(steps),
    }


def whole_checkpoints(folder: Path) -> list[int]:
    """The checkpoints' steps; every file of them has the hash that was written with it, and all others are whole."""
    assert not (found := broken(folder / "adapters")), found
    return _numbers(folder)


def _numbers(folder: Path) -> list[int]:
    return [int(path.name[5:]) for path in (folder / "adapters" / "checkpoints").glob("step-*")]


def difference(one: Path, other: Path) -> float:
    """The largest between two runs' adapters."""
    first, second = (_arrays(folder / "adapters" / "adapters.safetensors") for folder in (one, other))
    assert first.keys() == second.keys()
    return max(float(abs(first[name] - second[name]).max()) for name in first)


def _arrays(path: Path) -> dict[str, Any]:
    from safetensors.numpy import load_file

    return dict(load_file(path))


def environment() -> dict[str, str]:
    """Without the network, with this checkout."""
    return os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(REPOSITORY)}


if __name__ == "__main__":
    main()
