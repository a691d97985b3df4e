"""`--report-to`: what trackers are told, and that nothing they do touches the run."""

import importlib.util
import json
import shutil
import sqlite3
import struct
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlxmath.config.load import TRAINED_FROM, settings_from
from mlxmath.errors import InputError
from mlxmath.training import trackers
from mlxmath.training.trackers import Trackers, check_installed
from tests.helpers import events, json_lines, run, succeed

KEY = "hf_" + "a1B2" * 8
SHORT = ("--debug", "--num-examples", "4", "--save-every", "2", "--grad-accumulation-steps", "2")


def tell(folder: Path, *names: str, lines: list[dict[str, Any]], **settings: Any) -> None:
    """Trackers of a run that writes these events, and ends."""
    folder.mkdir(exist_ok=True)
    log = folder / "events.jsonl"
    log.touch()
    resolved = settings_from(TRAINED_FROM, adapter_path=str(folder), **settings)
    running = Trackers(
        names, folder, "train", resolved, TRAINED_FROM, {}, events=log, images=[folder / "loss.png"]
    )  # fmt: skip
    with log.open("a") as file:
        for line in lines:
            file.write(json.dumps(line) + "\n")
    running.close()


def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **modules: str) -> None:
    """Packages that take the trackers' place, in their processes and in this one."""
    place = tmp_path / "stand_in"
    place.mkdir()
    for name, text in modules.items():
        (place / f"{name}.py").write_text(textwrap.dedent(text))
    monkeypatch.setenv("PYTHONPATH", str(place))
    monkeypatch.syspath_prepend(str(place))


@pytest.fixture(scope="module")
def followed(debug_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 4 steps that all three follow, which goes on to 6 after the record of what was sent is older than it."""
    for name in ("tensorboard", "wandb", "trackio"):
        pytest.importorskip(name)
    folder = tmp_path_factory.mktemp("followed")
    for name in ("mlx_model", "cache"):
        shutil.copytree(debug_run / name, folder / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("TRACKIO_DIR", str(folder / "trackio"))
        for name in ("WANDB_PROJECT", "WANDB_NAME", "WANDB_DIR", "TRACKIO_PROJECT", "TRACKIO_SPACE_ID"):
            patch.delenv(name, raising=False)
        common = ("train", *SHORT, "--validation-split", "2", "--report-to", "tensorboard,wandb,trackio")
        first = succeed(folder, *common, "--max-steps", "4")
        assert "warning: --report-to" not in first.stderr
        second = succeed(folder, *common, "--max-steps", "6", "--resume")
        assert "warning: --report-to" not in second.stderr
    return folder


def expected(folder: Path, kind: str, name: str) -> list[tuple[int, float]]:
    return [(event["step"], event[name]) for event in events(folder) if event["event"] == kind]


def test_tensorboards_own_reader_finds_each_step_once(followed: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(followed / "adapters" / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0})
    found.Reload()
    for kind, tag, name in (("step", "train/loss", "loss"), ("step", "train/learning_rate", "learning_rate"),
                            ("validation", "validation/loss", "loss")):  # fmt: skip
        values = [(one.step, one.value) for one in found.Scalars(tag)]
        steps = sorted(dict(expected(followed, kind, name)).items())
        assert values == [(step, pytest.approx(value, rel=1e-6)) for step, value in steps], tag
    (first, last) = found.Images("loss")[0], found.Images("loss")[-1]
    assert last.encoded_image_string == (followed / "adapters" / "loss.png").read_bytes() and last.step == 6
    assert (first.width, first.height) == (960, 540)
    (settings,) = found.Tensors("settings")
    assert "| lora.rank | 8 |" in settings.tensor_proto.string_val[0].decode()
    assert found.Tags()["tensors"].count("_hparams_/session_start_info") == 1


def leveldb_records(data: bytes) -> Iterator[bytes]:
    """Of a .wandb file: LevelDB's log format behind 7 bytes, in blocks of 32 KiB that count these.

    A piece has a checksum, its length, and whether it is whole (1), or a record's first (2), a middle or its last (4).
    """
    position, record = 7, b""
    while position + 7 <= len(data):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
            continue
        length, kind = struct.unpack_from("<HB", data, position + 4)
        record += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            yield record
            record = b""


def test_wandb_has_one_run_of_both_parts(followed: Path) -> None:
    from wandb.proto import wandb_internal_pb2

    parts = sorted((followed / "adapters" / "trackers" / "wandb").glob("offline-run-*/*.wandb"))
    history: list[tuple[int, float]] = []
    ids, config, files = set(), {}, set()
    for part in parts:
        for data in leveldb_records(part.read_bytes()):
            record = wandb_internal_pb2.Record.FromString(data)
            if record.run.run_id:
                ids.add((record.run.run_id, record.run.project, record.run.job_type))
                config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            files |= {item.path for item in record.files.files}
            row = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            if "train/loss" in row:
                history.append((row["step"], row["train/loss"]))
    kept = json.loads((followed / "adapters" / "trackers" / "wandb.json").read_text())
    assert len(parts) == 2 and ids == {(kept["id"], "mlxmath", "train")}
    assert history == expected(followed, "step", "loss") and len(history) == 6
    assert config["lora"]["rank"] == 8 and config["run"]["backend"] == "cpu"
    assert any(path.startswith("media/images/loss") for path in files)
    assert not any(path.endswith((".log", "requirements.txt", "wandb-metadata.json")) for path in files)


def test_trackio_has_one_run_of_both_parts(followed: Path) -> None:
    (path,) = (followed / "trackio").glob("*.db")
    with sqlite3.connect(path) as database:
        rows = database.execute("SELECT run_name, step, metrics FROM metrics ORDER BY step").fetchall()
    kept = json.loads((followed / "adapters" / "trackers" / "trackio.json").read_text())
    assert {name for name, *_ in rows} == {f"adapters-{kept['id']}"}
    parsed = [(step, json.loads(metrics)) for _, step, metrics in rows]
    found = [(step, metrics["train/loss"]) for step, metrics in parsed if "train/loss" in metrics]
    assert found == expected(followed, "step", "loss")


def test_a_tracker_that_comes_later_gets_what_there_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch, trackio=RECORDER)
    monkeypatch.setenv("RECORD", str(tmp_path / "record"))
    steps = [{"event": "step", "step": step, "loss": 1 / step, "time": 0.0} for step in range(1, 6)]
    tell(tmp_path / "a", "trackio", lines=steps[:3])
    before = (tmp_path / "a" / "trackers" / "trackio.json").read_text()
    tell(tmp_path / "a", "trackio", lines=steps)  # steps 1 to 3 again, as after a kill
    (tmp_path / "a" / "events.jsonl").write_text("")
    tell(tmp_path / "a", "trackio", lines=[{"event": "end", "step": 5, "status": "finished"}])
    record = json_lines(tmp_path / "record")
    assert [one["step"] for one in record if "metrics" in one] == [1, 2, 3, 4, 5]
    assert {one["name"] for one in record if "name" in one} == {f"a-{json.loads(before)['id']}"}


RECORDER = """
    import json, os
    def _write(**found):
        with open(os.environ["RECORD"], "a") as file:
            file.write(json.dumps(found) + "\\n")
    def init(project, name, config, **_):
        _write(name=name, config=config)
    def log(metrics, step):
        _write(metrics=metrics, step=step)
    def Table(columns, data):
        return [columns, *data]
    def finish():
        _write(finished=True)
"""


def test_what_rollouts_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch, trackio=RECORDER)
    monkeypatch.setenv("RECORD", str(tmp_path / "record"))
    example = {"question": "1 + 1?", "gold": "2", "completion": "2", "reward": 1.0, "correct": True, "extracted": "2"}
    rollout = {"event": "rollout", "step": 1, "rollout": 0, "reward": 0.5, "rewards": {"correctness": 0.5},
               "timed_out": 0, "example": example}  # fmt: skip
    tell(tmp_path / "a", "trackio", lines=[{"event": "start", "step": 0, "total_steps": 3}, rollout, {"event": 3}])
    _, figures, sample, _ = json_lines(tmp_path / "record")
    assert figures["metrics"] == {"rollout/reward": 0.5, "rollout/rewards/correctness": 0.5, "rollout/timed_out": 0.0}
    assert sample["metrics"]["sample"] == [list(example), [str(value) for value in example.values()]]


def test_no_secret_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch, trackio=RECORDER)
    monkeypatch.setenv("RECORD", str(tmp_path / "record"))
    monkeypatch.setenv("MY_API_KEY", "correct horse battery")
    dataset = f"https://me:pass@host/{KEY}/rows.jsonl?sig=abc"
    tell(tmp_path / "a", "trackio", lines=[], dataset=dataset, model="correct horse battery", filters="level <= 3")
    text = (tmp_path / "record").read_text()
    config = json.loads(text.splitlines()[0])["config"]
    assert config["data"]["dataset"] == "https://[hidden]@host/[hidden]/rows.jsonl?[hidden]"
    assert config["model"]["model"] == "[hidden]" and config["data"]["filters"] == ["level <= 3"]
    assert not any(secret in text for secret in (KEY, "me:pass", "sig=abc", "correct horse"))


def test_a_run_goes_on_without_trackers_that_raise_hang_or_crash(
    prepared: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(
        tmp_path_factory.mktemp("modules"), monkeypatch,
        wandb=f"""
            raise ConnectionError("the server says no to {KEY}")
        """,
        trackio="""
            import time
            def init(*_, **__): time.sleep(3600)
        """,
        tensorboard="""
            import os
            os._exit(7)
        """,
    )  # fmt: skip
    monkeypatch.setattr(trackers, "PATIENCE_S", 0.5)
    found = succeed(prepared, "train", *SHORT, "--max-steps", "2", "--report-to", "wandb,trackio,tensorboard")
    warnings = [line for line in found.stderr.splitlines() if line.startswith("warning: --report-to")]
    assert sorted(line.split(":")[1].split()[1] for line in warnings) == ["tensorboard", "trackio", "wandb"]
    assert "ConnectionError: the server says no to [hidden]" in found.stderr and "exit code 7" in found.stderr
    assert (prepared / "adapters" / "adapters.safetensors").exists()


def test_a_folder_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "trackers").write_text("a file")
    tell(folder, "tensorboard", "wandb", lines=[])
    told = capsys.readouterr().err
    assert told.count("the run goes on without it") == 2


def test_a_full_disk_ends_the_tracker_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in(tmp_path, monkeypatch, trackio="def init(*_, **__): open('/dev/full', 'w').write('x' * 100_000)")
    tell(tmp_path / "a", "trackio", lines=[])
    assert "No space left on device; the run goes on without it" in capsys.readouterr().err


def test_missing_packages_are_named_before_anything_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    missing = ("wandb", "trackio")
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name in missing else find(name, *rest))
    with pytest.raises(InputError, match=r"wandb and trackio are not .* pip install 'mlxmath\[wandb,trackio\]'"):
        check_installed(["wandb", "trackio"])
    found = run(tmp_path, "train", "--debug", "--report-to", "wandb")
    assert found.returncode == 2 and "wandb is not installed" in found.stderr
    assert not any(tmp_path.iterdir())


def test_unknown_trackers_are_refused(tmp_path: Path) -> None:
    found = run(tmp_path, "train", "--debug", "--report-to", "wandb,comet")
    assert found.returncode == 2 and "expected some of tensorboard, wandb, trackio" in found.stderr
