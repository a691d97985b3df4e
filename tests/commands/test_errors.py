"""Bad input to `train`: one clear error each, the right exit code, no traceback, nothing left half-written."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.data.material import write_lines
from tests.helpers import run, spawn, succeed

GOOD = {"problem": "What is 1 + 1?", "solution": "1 + 1 = 2.\n#### 2"}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--lora-rank", "0"), 2, "--lora-rank (option): input should be greater than or equal to 1; found 0"),
        (("--lora-rank", "500"), 2, "--lora-rank 500 exceeds the smaller side of"),
        (("--lora-targets", "q_porj"), 2, "'q_porj' matches no linear layer; did you mean q_proj"),
        (("--lora-dropout", "1"), 2, "--lora-dropout"),
        (("--learning-rate", "0"), 2, "--learning-rate"),
        (("--dataset", "nowhere.jsonl"), 2, "nowhere.jsonl"),
        (("--model", "./nowhere"), 2, "nowhere"),
        (("--template", "tutro"), 2, "did you mean 'tutor'"),
        (("--split", "tset"), 2, "tset"),
        (("--memory-limit-gb", "-1"), 2, "--memory-limit-gb"),
        (("--adapter-path", "cache"), 2, None),
    ],
)
def test_bad_options(
    prepared: Path, arguments: tuple[str, ...], code: int, message: str | None
) -> None:  # fmt: skip
    if message is None:
        (prepared / "file").write_text("")
        arguments, message = ("--adapter-path", "file"), "--adapter-path: file is a file; expected a folder"
    before = sorted(path.name for path in prepared.iterdir())
    result = run(prepared, "train", "--debug", *arguments)
    assert result.returncode == code, result.stderr
    assert message in result.stderr and "Traceback" not in result.stderr
    assert result.stderr.strip().splitlines()[-1].startswith("error: ")
    assert sorted(path.name for path in prepared.iterdir()) == before


@pytest.mark.parametrize(
    ("records", "arguments", "message"),
    [
        ([GOOD], ("--question-column", "problme"), "problem"),
        ([{"words": "no columns that mean anything"}], (), "--question-column"),
        ([], (), "rows.jsonl"),
        ([GOOD | {"solution": None}], (), "rows.jsonl"),
    ],
)
def test_bad_data(
    prepared: Path, records: list[dict], arguments: tuple[str, ...], message: str
) -> None:  # fmt: skip
    result = run(prepared, "train", "--debug", "--dataset", write_lines(prepared / "rows.jsonl", records), *arguments)
    assert result.returncode in (1, 2), result.stderr
    assert message in result.stderr and "Traceback" not in result.stderr
    assert not (prepared / "adapters").exists()


def test_a_malformed_line_is_named(prepared: Path) -> None:
    (prepared / "rows.jsonl").write_text(json.dumps(GOOD) + "\n{not json\n")
    result = run(prepared, "train", "--debug", "--dataset", "rows.jsonl")
    assert result.returncode != 0 and "rows.jsonl:2" in result.stderr and "Traceback" not in result.stderr


def test_an_unreachable_hub(tmp_path: Path) -> None:
    result = spawn(tmp_path, "train", "--model", "nobody/nothing")
    assert result.returncode == 1, result.stderr
    assert "nobody/nothing" in result.stderr and "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["flip", "truncate", "foreign"])
def test_a_corrupt_cache_is_named_and_rebuilt(prepared: Path, damage: str) -> None:
    (path,) = (prepared / "cache").glob("*.pkl")
    good = path.read_bytes()
    if damage == "flip":
        path.write_bytes(good[:300] + bytes([good[300] ^ 1]) + good[301:])
    elif damage == "truncate":
        path.write_bytes(good[: len(good) // 2])
    else:
        path.write_bytes(b"cos\nsystem\n(S'touch executed'\ntR.")
    result = succeed(prepared, "train", "--debug", "--max-steps", "1")
    assert f"cache/{path.name} is damaged" in result.stderr and "rebuilding" in result.stderr
    assert path.read_bytes() == good
    assert not (prepared / "executed").exists()


def test_a_folder_in_the_place_of_a_cache_is_named(prepared: Path) -> None:
    (path,) = (prepared / "cache").glob("*.pkl")
    path.unlink()
    path.mkdir()
    result = run(prepared, "train", "--debug", "--max-steps", "1")
    assert result.returncode == 2 and f"cache/{path.name} is a folder; expected a file" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "--debug", "--adapter-path", "n" * 300),
        ("prepare", "--model", "demo", "--dataset", "n" * 300 + ".jsonl"),
        ("report", "n" * 300),
        ("recipes", "copy", "demo", "n" * 300),
        ("convert", "--model", "demo", "--mlx-path", "n" * 300),
        ("export", "--to", "peft", "--export-path", "n" * 300),
        ("infer", "--prompt", "x", "--adapter-path", "n" * 300),
    ],
)
def test_a_name_that_is_too_long_is_one_line(arguments: tuple[str, ...], prepared: Path) -> None:
    result = run(prepared, *arguments)
    assert result.returncode in (1, 2)
    assert "error: " in result.stderr and "defect" not in result.stderr and "Traceback" not in result.stderr


def test_an_adapter_folder_that_cannot_be_written(prepared: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    (prepared / "locked").mkdir(mode=0o500)
    result = run(prepared, "train", "--debug", "--adapter-path", "locked/adapters")
    assert result.returncode == 1 and "cannot write locked/adapters" in result.stderr


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 4 MB; needs the right to mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("cannot mount a small file system here")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_no_space_for_the_model(small_disk: Path) -> None:
    result = run(small_disk, "train", "--debug")
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "mlx_model" in result.stderr and "are free there. Nothing was written" in result.stderr
    assert list(small_disk.iterdir()) == []


def test_no_space_for_a_checkpoint_loses_nothing(prepared: Path, small_disk: Path) -> None:
    """Checkpoints fit until something else fills the disk; then the run goes on, and its end says so."""
    adapters = small_disk / "adapters"
    arguments = ("--debug", "--adapter-path", str(adapters))
    succeed(prepared, "train", *arguments, "--max-steps", "3", "--save-every", "1")
    before = {p.relative_to(adapters): p.read_bytes() for p in adapters.rglob("*.safetensors")}
    with (small_disk / "ballast").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
    result = run(prepared, "train", *arguments, "--resume", "--save-every", "2")
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "No space left" in result.stderr
    assert {p.relative_to(adapters): p.read_bytes() for p in adapters.rglob("*.safetensors")} == before
    (small_disk / "ballast").unlink()
    assert "finished" in succeed(prepared, "train", *arguments, "--resume", "--max-steps", "8").stderr
