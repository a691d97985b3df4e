"""What `benchmarks/campaign.py` rests on: faults come where they are told; what is not whole or not equal is named."""

import argparse
import json
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from benchmarks.campaign import try_all
from benchmarks.campaign_cases import Case, Outcome, cases
from benchmarks.campaign_commands import Command
from benchmarks.faults import NEED_SPACE, Fault, build, operations
from benchmarks.whole import broken, differences, leftovers
from mlxmath.runtime.files import atomic_write, sha256

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or not shutil.which("cc"), reason="LD_PRELOAD and a C compiler"
)
PROGRAM = """
import os, pathlib, shutil, subprocess, sys
pathlib.Path('made').mkdir()
with open('made/a', 'wb', buffering=0) as file:
    file.write(b'x' * 100)
    os.fsync(file.fileno())
subprocess.run([sys.executable, '-c', 'open("child", "w").write("its own")'])
shutil.copyfile('made/a', 'b')
os.replace('b', 'c')
os.link('c', 'd')
os.unlink('c')
open('/dev/null', 'w').write('elsewhere')
"""
DONE = [
    "mkdir /made", "open /made/a", "write /made/a", "fsync /made/a", "open /b", "write /b", "rename /c", "link /d",
    "unlink /c",
]  # fmt: skip


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("library"))


def run(library: Path, place: Path, fault: Fault) -> tuple[int, list[str], str]:
    """The program's exit code, what it did, and what it said."""
    folder, log = place / "run", place / "log"
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=folder, env=fault.environment(folder, log) | {"LD_PRELOAD": str(library)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    seen = [" ".join(each) for each in operations(log)]
    return done.returncode, list(dict.fromkeys(seen)), done.stderr  # a copy may take several calls


def test_operations_are_counted_in_the_folder_and_not_in_children(library: Path, tmp_path: Path) -> None:
    assert run(library, tmp_path, Fault()) == (0, DONE, "")
    assert (tmp_path / "run" / "child").read_text() == "its own"


@pytest.mark.parametrize(("act", "size"), [("before", 0), ("in", 50), ("after", 100)])
def test_a_write_is_killed_before_it_in_it_and_after_it(library: Path, tmp_path: Path, act: str, size: int) -> None:
    code, done, _ = run(library, tmp_path, Fault(act, 3))
    assert (code, done) == (-9, DONE[:3])
    assert (tmp_path / "run" / "made" / "a").stat().st_size == size


def test_a_rename_is_killed_before_it_or_after_it(library: Path, tmp_path: Path) -> None:
    for act in ("before", "after"):
        (tmp_path / act).mkdir()
        log = run(library, tmp_path / act, Fault())[1]
        shutil.rmtree(tmp_path / act / "run")
        at = [kind for kind, _ in operations(tmp_path / act / "log")].index("rename") + 1
        assert "rename /c" in log
        assert run(library, tmp_path / act, Fault(act, at))[0] == -9
        assert (tmp_path / act / "run" / "c").exists() == (act == "after")


def test_a_full_disk_stays_full_and_an_error_comes_once(library: Path, tmp_path: Path) -> None:
    for number, says in (("ENOSPC", "No space left"), ("EIO", "Input/output error")):
        (tmp_path / number).mkdir()
        code, done, said = run(library, tmp_path / number, Fault("error", 5, number))
        assert (code, done[-1]) == (1, "open /b") and says in said
    (tmp_path / "half").mkdir()
    assert run(library, tmp_path / "half", Fault("error", 3, "ENOSPC"))[0] == 1  # the next one that needs space
    assert (tmp_path / "half" / "run" / "made" / "a").stat().st_size == 50


def test_a_signal_is_sent(library: Path, tmp_path: Path) -> None:
    code, done, _ = run(library, tmp_path, Fault("signal", 3, "SIGTERM"))
    assert (code, done) == (-15, DONE[:3])


def test_points_are_spread_over_all_kinds_of_operations_and_repeat() -> None:
    done = [("write", "/a")] * 200 + [("rename", "/a"), ("rmdir", "/b"), ("open", "/c"), ("mkdir", "/d")] * 4
    command = Command("train", "other", "other", ("train",))
    found = list(cases("kill", command, done, 40, random.Random(1)))
    kinds = Counter(done[case.faults[0].at - 1][0] for case in found)
    assert kinds.total() == len({case.key for case in found}) == 40 and min(kinds.values()) >= 7
    assert {case.faults[0].act for case in found} == {"before", "in", "after"}
    assert {len(case.faults) for case in found} == {1, 2} and {case.how for case in found} == {"zygote", "process"}
    assert found == list(cases("kill", command, done, 40, random.Random(1)))
    full = list(cases("disk", command, done, 30, random.Random(1)))
    assert {done[case.faults[0].at - 1][0] for case in full} == {"write", "open", "mkdir"} <= set(NEED_SPACE)
    assert len(list(cases("pair", command, done[:3], 30, random.Random(1)))) == 3


class PretendedPlace:
    """Every case whose point is odd fails."""

    def __init__(self) -> None:
        self.tried: list[str] = []

    def undisturbed(self, command: Command) -> list[tuple[str, str]]:
        return [("write", "/a"), ("rename", "/a")] * 5

    def try_case(self, case: Case) -> Outcome:
        self.tried.append(case.key)
        return Outcome("write", ["other bytes"] * (case.faults[0].at % 2), resumed=True)


def test_what_failed_is_counted_and_tried_again_and_nothing_else_is(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    options = argparse.Namespace(
        out=tmp_path / "out.json", only=None, short=False, kills=9, full_disk=4, pairs=2, seed=0, hours=0.0
    )
    place, command = PretendedPlace(), Command("convert", "other", "other", ("convert",))
    assert try_all(options, place, [command], time.monotonic() - 1) == 0 and not place.tried
    options.hours = 1.0
    failed = try_all(options, place, [command], time.monotonic())
    found = json.loads(options.out.read_text())
    assert len(place.tried) == len(found["cases"]) == 9 + 4 + 2 + 2 + 2
    assert failed == sum(text == "write: other bytes" for text in found["cases"].values()) > 0
    assert sum(row["failed"] for row in found["table"]) == failed
    assert sum(row["tried"] for row in found["table"]) == len(place.tried)
    assert try_all(options, place, [command], time.monotonic()) == failed and len(place.tried) == 19 + failed


@pytest.fixture
def result(tmp_path: Path) -> Path:
    """A folder as a run leaves it."""
    folder = tmp_path / "run"
    (folder / "checkpoints" / "step-1").mkdir(parents=True)
    save_file({"a": np.arange(6.0)}, folder / "adapters.safetensors")
    shutil.copy(folder / "adapters.safetensors", folder / "checkpoints" / "step-1")
    digest = sha256(folder / "adapters.safetensors")
    write(folder / "checkpoints" / "step-1" / "state.json", {"sha256": {"adapters.safetensors": digest}})
    write(folder / "run.json", {"seconds": 1.5, "steps": 3, "config": {"training": {"resume": False, "seed": 1}}})
    (folder / "events.jsonl").write_text('{"event": "step", "step": 1, "loss": 2.0, "time": 5}\n')
    (folder / "samples.jsonl").write_text('{"id": 1, "seconds": 2}\n{"id": 2, "seconds": 2}\n')
    return folder


def write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


def test_what_is_not_whole_is_named(result: Path) -> None:
    assert broken(result) == []
    with (result / "events.jsonl").open("a") as file:
        file.write('{"event": "st')  # a killed process's last line, which readers pass over
    assert broken(result) == []
    whole = (result / "adapters.safetensors").read_bytes()
    for name, content in {
        "adapters.safetensors": whole[:-1], "checkpoints/step-1/adapters.safetensors": whole[:-1] + b"\1",
        "run.json": b'{"seconds"', "solutions.jsonl": b'{"a": 1}\n{"b"', "run.toml": b"a = ", "loss.png": b"\x89PNG",
        "report.html": b"<html>", "events.jsonl": b'{"id"\n{"id": 2}\n',
        "results.json": b'{"a": 1, "checksum": "0"}', "metrics.jsonl": b'{"a": 1, "checksum": "0"}\n',
    }.items():  # fmt: skip
        path = result / name
        before = path.read_bytes() if path.exists() else None
        path.write_bytes(content)
        assert len(found := broken(result)) == 1 and Path(name).name in found[0]
        path.unlink() if before is None else path.write_bytes(before)
    assert broken(result) == []


def test_what_differs_from_an_undisturbed_run_is_named(result: Path) -> None:
    reference = result.with_name("reference")
    shutil.copytree(result, reference)
    write(result / "run.json", {"seconds": 9, "steps": 3, "config": {"training": {"resume": True, "seed": 1}}})
    (result / "events.jsonl").write_text(
        '{"event": "step", "step": 1, "loss": 7.0, "time": 5}\n{"event": "resume", "step": 0}\n'
        '{"event": "step", "step": 1, "loss": 2.0, "time": 8}\n'
    )
    (result / "samples.jsonl").write_text('{"id": 2, "seconds": 3}\n{"id": 1, "se\n{"id": 1, "seconds": 4}\n')
    (result / "earlier").mkdir()
    shutil.copy(result / "run.json", result / "earlier")  # what a run kept that began anew
    assert broken(result) == []
    assert differences(result, reference) == []
    write(result / "run.json", {"seconds": 9, "steps": 3, "config": {"training": {"resume": True, "seed": 2}}})
    (result / "events.jsonl").write_text('{"event": "step", "step": 1, "loss": 3.0}\n')
    (result / "samples.jsonl").write_text('{"id": 2}\n')
    atomic_write(result / "adapters.safetensors", (result / "adapters.safetensors").read_bytes()[:-1] + b"\1")
    (result / "more").touch()
    shutil.rmtree(result / "checkpoints")
    (result / ".mlx_model.0123abcd.99.ffffffff.tmp").mkdir()
    assert leftovers(result) == [".mlx_model.0123abcd.99.ffffffff.tmp"]
    named = [text.replace(" ", ":").split(":")[0] for text in differences(result, reference)]
    assert named == [
        ".mlx_model.0123abcd.99.ffffffff.tmp", "adapters.safetensors", "checkpoints/step-1/adapters.safetensors",
        "checkpoints/step-1/state.json", "events.jsonl", "more", "run.json", "samples.jsonl",
    ]  # fmt: skip
