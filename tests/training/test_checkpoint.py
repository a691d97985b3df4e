"""Checkpoints: how many are kept, what they take in, full disks, what killed processes leave."""

import errno
import json
from pathlib import Path
from typing import Any

import mlx.nn as nn
import pytest

from mlxmath.config.schema import RunConfig
from mlxmath.config.training import TrainingConfig
from mlxmath.errors import MlxmathError
from mlxmath.runtime import files
from mlxmath.runtime.files import atomic_write, this_host
from mlxmath.training import record as run
from mlxmath.training.checkpoint import Part, Position, Saver, newest_checkpoint, save_checkpoint
from mlxmath.training.deadline import Deadline
from tests.loop import adamw, adapted


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


@pytest.mark.parametrize("keep", [1, 2, 9])
def test_the_newest_are_kept_also_those_that_are_asked_for(tmp_path: Path, model: nn.Module, keep: int) -> None:
    config = TrainingConfig(save_every=5, keep_checkpoints=keep)
    saver = Saver(tmp_path, model, adamw(model), {}, config, Deadline(1e9), is_marked=lambda step: step == 22)
    for step in range(1, 26):
        saver.after(Position(step=step))
    assert names(tmp_path) == sorted(f"step-{step}" for step in (5, 10, 15, 20, 22, 25)[-keep:])


@pytest.fixture
def model() -> nn.Module:
    return adapted()


@pytest.mark.parametrize(("keep", "left"), [(1, ["step-6"]), (2, ["step-4", "step-6"])])
def test_one_that_was_passed_over_is_none_of_the_newest(
    tmp_path: Path, model: nn.Module, keep: int, left: list[str]
) -> None:
    for step in (2, 4, 10):
        save_checkpoint(tmp_path, model, adamw(model), Position(step=step), {}, keep=3)
    (tmp_path / "checkpoints" / "step-10" / "state.json").write_text("{")
    save_checkpoint(tmp_path, model, adamw(model), Position(step=6), {}, keep=keep)
    newest = newest_checkpoint(tmp_path)
    assert newest is not None and newest.position.step == 6 and names(tmp_path) == left


class Kept(Part):
    """A part of a run with something of its own to keep."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def state(self) -> dict[str, Any]:
        return {"part": {"loss": 0.1 + 0.2}}

    def files(self) -> dict[str, Path | bytes]:
        return {"kept.bin": self.file, "made.bin": b"made"}


def test_parts_state_and_files_are_taken_in_as_they_are_then(tmp_path: Path, model: nn.Module) -> None:
    atomic_write(tmp_path / "now.bin", b"then")
    path = save_checkpoint(tmp_path, model, adamw(model), Position(step=1), {}, parts=[Kept(tmp_path / "now.bin")])
    atomic_write(tmp_path / "now.bin", b"later")
    found = newest_checkpoint(tmp_path)
    assert found is not None and found.state == {"part": {"loss": 0.1 + 0.2}}
    assert (found.path / "kept.bin").read_bytes() == b"then"
    assert (found.path / "made.bin").read_bytes() == b"made"
    (path / "kept.bin").write_bytes(b"harm")
    assert newest_checkpoint(tmp_path) is None


def test_where_files_cannot_be_linked_they_are_copied(
    tmp_path: Path, model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EXDEV, "another file system")

    monkeypatch.setattr(files.os, "link", refuse)
    (tmp_path / "now.bin").write_bytes(b"then")
    path = save_checkpoint(tmp_path, model, adamw(model), Position(step=1), {}, parts=[Kept(tmp_path / "now.bin")])
    assert (path / "kept.bin").read_bytes() == b"then"


@pytest.mark.parametrize("failing_write", [1, 2, 3, 4])
def test_a_full_disk_at_a_checkpoint_warns_and_loses_nothing(
    tmp_path: Path,
    model: nn.Module,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    failing_write: int,
) -> None:
    """Each of the files of a save in turn: adapters, optimizer and state of the checkpoint, the adapters beside it."""
    saver = Saver(tmp_path, model, adamw(model), {}, TrainingConfig(save_every=1), Deadline(1e9))
    saver.after(Position(step=1))
    before = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    calls = 0
    make = files.os.fdopen

    def full(*args: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == failing_write:
            raise OSError(errno.ENOSPC, "No space left on device")
        return make(*args, **more)

    monkeypatch.setattr(files.os, "fdopen", full)
    saver.after(Position(step=2))
    error = capsys.readouterr().err
    assert "no checkpoint at step 2: cannot write" in error and "No space left on device" in error
    after = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert before.items() <= after.items()
    assert not list(tmp_path.rglob(".*"))
    newest = newest_checkpoint(tmp_path)
    assert newest is not None and newest.position.step == (2 if failing_write == 4 else 1)
    saver.after(Position(step=3))
    assert names(tmp_path)[-1] == "step-3"


def test_the_last_save_of_a_run_tells_its_failure(
    tmp_path: Path, model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    saver = Saver(tmp_path, model, adamw(model), {}, TrainingConfig(), Deadline(1e9))
    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(MlxmathError, match="No space left"):
        saver.save(Position(step=1))


@pytest.mark.parametrize("resume", [True, False])
def test_the_next_run_removes_them(tmp_path: Path, dead_pid: int, resume: bool) -> None:
    folder = tmp_path / "adapters"
    dead = f"{this_host()}.{dead_pid}.abc.tmp"
    planted = (
        folder / f".adapters.safetensors.{dead}",
        folder / "checkpoints" / f".step-9.{dead}" / "adapters.safetensors",
        folder / "best" / f".adapters.safetensors.{dead}",
    )
    for path in planted:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    if resume:
        with run.claimed(RunConfig(training=TrainingConfig(adapter_path=str(folder), resume=True)), "train") as found:
            assert found is None
    else:
        run.start(folder, {"adapter": 1}, "template", anew=False)
    assert not list(folder.rglob(".*"))


@pytest.mark.parametrize(
    ("change", "newest"),
    [
        (lambda state: state["position"].update(window=1), 1),
        (lambda state: state["state"].update(more=1), 1),
        (lambda state: state.pop("checksum"), 2),  # as 0.1.0 wrote it
        (lambda state: (state.pop("checksum"), state["position"].update(step="2")), 1),
        (lambda state: (state.pop("checksum"), state["position"].update(step=-2)), 1),
        (lambda state: (state.pop("checksum"), state.update(sha256=[])), 1),
        (lambda state: state.update(checksun=state.pop("checksum")), 1),
    ],
)
def test_a_state_that_is_not_what_was_written_is_passed_over(
    tmp_path: Path, model: nn.Module, capsys: pytest.CaptureFixture[str], change: Any, newest: int
) -> None:
    paths = [save_checkpoint(tmp_path, model, adamw(model), Position(step=step), {}) for step in (1, 2)]
    state = json.loads((paths[1] / "state.json").read_text())
    change(state)
    (paths[1] / "state.json").write_text(json.dumps(state))
    found = newest_checkpoint(tmp_path)
    assert found is not None and found.position.step == newest
    assert (f"checkpoint {paths[1]} is not usable" in capsys.readouterr().err) == (newest == 1)
