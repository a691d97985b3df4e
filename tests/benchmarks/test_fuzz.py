"""Damaged and hostile inputs, a few of each format: nothing but acceptance, or one line for the user."""

import json
import subprocess
import sys
from pathlib import Path

from tests.helpers import ENVIRONMENT, REPOSITORY


def fuzz(folder: Path, *arguments: str) -> tuple[subprocess.CompletedProcess[str], dict]:
    """A process of its own: its children are forked from one that has computed nothing."""
    out = folder / "fuzz.json"
    done = subprocess.run(
        [sys.executable, REPOSITORY / "benchmarks" / "fuzz.py", "--out", out, "--workers", "2", *arguments],
        env=ENVIRONMENT, capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    return done, json.loads(out.read_text()) if out.exists() else {}


def test_no_input_gets_more_than_a_line(tmp_path: Path) -> None:
    done, found = fuzz(tmp_path, "--inputs", "300", "--command-lines", "36", "--seed", "7")
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    inputs = found["inputs"]
    assert len(inputs) > 40 and all(each["tried"] for each in inputs.values())
    assert sum(each["refused"] for each in inputs.values()) > sum(each["accepted"] for each in inputs.values()) / 3
    assert found["command lines"]["command lines"]["tried"] == 36


def test_what_none_may_do_is_a_failure() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.misbehaving"], env=ENVIRONMENT, capture_output=True, text=True,
        timeout=120, check=True,
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert found.pop("reads") == ["accepted", ""] and found.pop("refuses") == ["refused", "InputError"]
    assert {name: kind for name, (verdict, kind) in found.items() if verdict == "failed"} == {
        "raises": found["raises"][1], "says defect": "the word defect",
        "steers": "a control character", "never ends": "an endless line", "loops": "more than 0.5 s",
        "catches": "more than 0.5 s", "runs code": "code ran", "starts": "subprocess.Popen",
        "writes": "writes elsewhere", "takes memory": found["takes memory"][1],
        "takes addresses": found["takes addresses"][1], "dies": "died of SIGKILL",
        "leaves": "ended with 3",
    }  # fmt: skip
    assert found["raises"][1].startswith("ValueError at") and found["takes addresses"][1].startswith("MemoryError at")
    assert found["takes memory"][1].startswith("memory: ")


def test_a_seed_is_an_input() -> None:
    from random import Random

    from benchmarks.fuzzing.mutations import damaged_bytes, damaged_json, damaged_lines

    data = b'{"a": [1, {"b": "text"}], "c": null}'
    for damage in (damaged_bytes, damaged_json, damaged_lines):
        made = [damage(Random(seed), data) for seed in range(300)]
        assert made == [damage(Random(seed), data) for seed in range(300)] and len(set(made)) > 150


def test_command_lines_name_nothing_outside_their_folder() -> None:
    from benchmarks.fuzzing.command_lines import line_of

    values = [value for seed in range(2000) for part in line_of(seed) for value in {part, part.partition("=")[2]}]
    assert not [value for value in values if (value.startswith(("/", "~")) and value != "~") or "../" in value]
