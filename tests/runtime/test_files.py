"""Files are whole or absent, whatever happens while they are written; what killed processes left is removed."""

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from mlxmath.config.schema import ModelConfig
from mlxmath.errors import InputError, MlxmathError
from mlxmath.runtime import files, locks
from mlxmath.runtime.console import shown
from mlxmath.runtime.files import (
    atomic_file,
    atomic_folder,
    atomic_write,
    read_json,
    remove_leftovers,
    this_host,
)
from mlxmath.runtime.locks import locked, making
from mlxmath.runtime.sealed import lines_of, read_record, sealed_json, sealed_line, unsealed_json, unsealed_line
from mlxmath.weights.convert import ensure_model
from tests.helpers import ENVIRONMENT

KILLED = """
import os, signal, sys
from pathlib import Path
from mlxmath.runtime import files, locks
path = Path(sys.argv[2])
if sys.argv[1] == "file":
    with files.atomic_file(path) as file:
        file.write(b"half")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[1] == "remove":
    files.shutil.rmtree = lambda path: os.kill(os.getpid(), signal.SIGKILL)
    files.remove_folder(path)
with files.atomic_folder(path) as folder:
    (folder / "file").write_text("new")
    if sys.argv[1] == "folder":
        os.kill(os.getpid(), signal.SIGKILL)
    real = Path.rename
    def rename(self, target):
        found = real(self, target)
        if (self.suffix == ".tmp") == (sys.argv[1] == "renamed"):
            os.kill(os.getpid(), signal.SIGKILL)
        return found
    Path.rename = rename
"""


def test_the_locks_of_dead_processes_are_removed_and_held_ones_stay(tmp_path: Path) -> None:
    for name in (".rows.pkl.mlxmath.lock", ".of_others.lock", ".lock"):
        (tmp_path / name).touch()
    with making(tmp_path / "held.pkl", "a test"):
        remove_leftovers(tmp_path)
        left = {path.name for path in tmp_path.iterdir()}
        assert left == {".held.pkl.mlxmath.lock", ".of_others.lock", ".lock"}


def test_a_lock_that_is_another_s_by_then_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = tmp_path / ".rows.pkl.mlxmath.lock"
    lock.touch()
    real, held = files.fcntl.flock, []

    def flock(file: Any, how: int) -> None:
        if not held:  # meanwhile its holder removes it, and another process makes and holds its own
            lock.unlink()
            held.append(lock.open("wb"))
            real(held[0], how)
        real(file, how)

    monkeypatch.setattr(files.fcntl, "flock", flock)
    remove_leftovers(tmp_path)
    assert os.path.samestat(lock.stat(), os.fstat(held[0].fileno()))
    held[0].close()


@pytest.mark.parametrize("times", [1, 2])
def test_who_holds_a_lock_for_a_moment_is_not_in_the_way(
    times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = locks.fcntl.flock, []

    def flock(file: Any, how: int) -> None:
        calls.append(file)
        if len(calls) <= times:
            raise BlockingIOError(errno.EWOULDBLOCK, "held")
        real(file, how)

    monkeypatch.setattr(locks.fcntl, "flock", flock)
    if times == 1:
        with making(tmp_path / "model", "mlxmath x", "--out") as waited:
            assert not waited and calls[0].closed
    else:
        with pytest.raises(InputError, match="in use by another process"), making(tmp_path / "m", "x", "--out"):
            pass


def test_leftovers_of_dead_processes_are_removed_and_others_stay(tmp_path: Path, dead_pid: int) -> None:
    host = this_host()
    stay = [
        f".events.jsonl.{host}.{os.getppid()}.abc.tmp", ".hidden", ".DS_Store", "loss.png", ".a.tmp",
        f"x.{host}.{dead_pid}.abc.tmp", f".x.{host}.{dead_pid}.abc.bak", f".x.{dead_pid}.abc.tmp",
    ]  # fmt: skip
    for name in (
        f".adapters.safetensors.{host}.{dead_pid}.abc_d.tmp",
        f".run.json.{host}.{os.getpid()}.abc.tmp",  # of a process that had this one's number, as in a container
        f".run.json.{host}.{'9' * 30}.abc.tmp",
        f".run.json.{host}.0.abc.tmp",  # no process's number
        *stay,
    ):
        (tmp_path / name).write_text("")
    dead = f"{host}.{dead_pid}.abc"
    for name in (f".step-5.{dead}.tmp", f".step-6.{dead}.old", f".best.{dead}.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    (tmp_path / "step-6").mkdir()
    remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*stay, "step-6", "best"}
    assert (tmp_path / "best" / "file").exists()  # killed between two renames: it was the whole one
    remove_leftovers(tmp_path / "absent")


def test_what_another_host_writes_stays_until_it_is_abandoned(tmp_path: Path, dead_pid: int) -> None:
    """Its process numbers mean nothing here."""
    file, folder = (tmp_path / f".{name}.0123abcd.{dead_pid}.abc.tmp" for name in ("run.json", "step-5"))
    file.write_text("half")
    folder.mkdir()
    (folder / "adapters.safetensors").write_text("half")
    remove_leftovers(tmp_path)
    assert file.exists() and folder.exists()
    two_days_ago = time.time() - 2 * 24 * 3600
    for path in (file, folder):
        os.utime(path, (two_days_ago, two_days_ago))
    remove_leftovers(tmp_path)
    assert not file.exists() and folder.exists(), "a file in the folder has just been written"
    os.utime(folder / "adapters.safetensors", (two_days_ago, two_days_ago))
    os.utime(folder, (two_days_ago, two_days_ago))
    remove_leftovers(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("moment", "expected"),
    [("file", None), ("remove", None), ("folder", "old"), ("between", "old"), ("renamed", "new")],
)
def test_a_kill_while_writing_leaves_nothing_once_something_is_written(
    tmp_path: Path, moment: str, expected: str | None
) -> None:
    path = tmp_path / "folder.v1"
    if moment != "file":
        path.mkdir()
        (path / "file").write_text("old")
    killed = subprocess.run([sys.executable, "-c", KILLED, moment, str(path)], env=ENVIRONMENT, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert [each for each in tmp_path.iterdir() if each.name.startswith(".folder.v1.")]
    files._cleaned.clear()
    atomic_write(tmp_path / "another", b"")
    assert {each.name for each in tmp_path.iterdir()} == {"another", *(["folder.v1"] if expected else [])}
    assert not expected or (path / "file").read_text() == expected


def test_the_old_model_that_a_killed_conversion_left_is_the_one_again(tmp_path: Path) -> None:
    config = ModelConfig(model="demo", mlx_path=str(tmp_path / "model"))
    made = ensure_model(config)
    for target in (f".model.{this_host()}.{'9' * 30}.abc.old", f".other.{this_host()}.{'9' * 30}.abc.tmp"):
        (tmp_path / "model").rename(tmp_path / target)
        if target.startswith(".other"):
            (tmp_path / target).rename(tmp_path / "model")
            (tmp_path / target).write_text("half")
        assert ensure_model(config) == made
        assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_this_process_is_writing_stays(tmp_path: Path) -> None:
    with pytest.raises(MlxmathError, match="full"), atomic_folder(tmp_path / "folder.v1") as temporary:
        with pytest.raises(MlxmathError, match="full"), atomic_file(tmp_path / "file.v1"):
            assert len(list(tmp_path.glob(".*"))) == 2
            files._cleaned.clear()
            thread = threading.Thread(target=atomic_write, args=(tmp_path / "third", b""))
            thread.start()
            thread.join()
            assert len(list(tmp_path.glob(".*"))) == 2
            raise OSError(errno.ENOSPC, "full")
        assert temporary.exists()
        raise OSError(errno.ENOSPC, "full")
    assert [path.name for path in tmp_path.iterdir()] == ["third"]


def test_what_cannot_be_removed_keeps_nobody_from_writing(tmp_path: Path, dead_pid: int) -> None:
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / f".link.{this_host()}.{dead_pid}.abc.old"
    link.symlink_to(tmp_path / "elsewhere")
    (tmp_path / "link").write_text("")
    atomic_write(tmp_path / "file", b"")
    assert not link.is_symlink() and (tmp_path / "elsewhere").exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "unlink", lambda *_, **__: (_ for _ in ()).throw(PermissionError(errno.EPERM, "no")))
        (tmp_path / f".file.{this_host()}.{dead_pid}.abc.tmp").write_text("")
        remove_leftovers(tmp_path)


def test_a_name_that_leads_out_of_its_folder_is_refused(tmp_path: Path) -> None:
    assert files.inside(tmp_path, "a/b") == tmp_path / "a" / "b"
    for name in ("../x", "/x", "a/../../x", "..\\x", "C:x", ""):
        with pytest.raises(MlxmathError, match="lies outside the folder"):
            files.inside(tmp_path, name)
    for name in ("a\0b", "x" * 256, "d/" + "é" * 128, "\ud800", "a\x1b[2Jb", "a\nb"):
        with pytest.raises(MlxmathError, match="which can be no file's name"):
            files.inside(tmp_path, name)


def test_json_with_half_a_character_is_written_and_read_back(tmp_path: Path) -> None:
    value = {"a": "é \ud800 \\ud801", "\udfff": [1]}
    files.atomic_json(tmp_path / "a.json", value)
    assert files.read_json(tmp_path / "a.json") == value


HOLDER = """
import sys, time
from pathlib import Path
from mlxmath.runtime.locks import locked, making
with locked(Path(sys.argv[1]), "--out", "mlxmath train"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_dies_with_its_holder_however_that_ends(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    holder = f"`mlxmath train`, process {process.pid} on {socket.gethostname()}"
    expected = rf"^--out: {folder} is in use by {holder} since 20\d\d-\d\d-\d\d [\d:]{{8}} UTC; wait"
    with pytest.raises(InputError, match=expected), locked(folder, "--out", "mlxmath x"):
        pass
    found = locks.holder(folder)
    assert found is not None and (found.command, found.pid) == ("mlxmath train", process.pid)
    assert found.created == psutil.Process(process.pid).create_time()
    process.kill()
    process.communicate()
    assert locks.holder(folder) is None
    assert [path.name for path in folder.iterdir()] == [".lock"]
    for _ in range(2):  # what it left locks nothing
        with pytest.raises(ZeroDivisionError), locked(folder, "--out", "mlxmath x"):
            raise ZeroDivisionError
        assert not list(folder.iterdir())


def test_whoever_does_not_have_a_lock_open_does_not_hold_it(tmp_path: Path) -> None:
    """What a lock says may be left over of a process whose number another one has by now, or be made up."""
    for text in ("", "odd", "`x`, process 1 on", f"`x`, process {os.getpid()} on {socket.gethostname()} since now UTC"):
        (tmp_path / ".lock").write_text(text)
        assert locks.holder(tmp_path) is None
    with locked(tmp_path, "--out", "mlxmath x"):
        found = locks.holder(tmp_path)
        assert found is not None and found.pid == os.getpid()
        text = (tmp_path / ".lock").read_text()
        (tmp_path / ".lock").write_text(text.replace(socket.gethostname(), "elsewhere"))
        assert locks.holder(tmp_path) == locks.Holder("mlxmath x", os.getpid(), "elsewhere", None)
    assert locks.holder(tmp_path) is None and locks.holder(tmp_path / "none") is None
    os.mkfifo(tmp_path / ".lock")
    assert locks.holder(tmp_path) is None


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_what_is_appended_to_is_a_file_of_our_own(kind: str, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("kept")
    lock = tmp_path / "run" / ".lock"
    lock.parent.mkdir()
    {"link": lambda: lock.symlink_to(other), "pipe": lambda: os.mkfifo(lock), "folder": lock.mkdir}[kind]()
    with pytest.raises(MlxmathError, match="cannot write"), locked(lock.parent, "--adapter-path", "mlxmath train"):
        pass
    assert other.read_text() == "kept" and os.path.lexists(lock)


def test_json_that_cannot_be_ours_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    os.mkfifo(path)
    with pytest.raises(MlxmathError, match="it is no file"):
        read_json(path)
    path.unlink()
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(MlxmathError, match="1,099,511,627,776 bytes"):
        read_json(path)


def test_a_line_without_an_end_does_not_fill_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with path.open("rb") as file:
        assert len(next(lines_of(file))) < 100_000_000


def test_a_folder_in_which_nothing_came_about_goes_again(tmp_path: Path) -> None:
    with locked(tmp_path / "new", "--out", "mlxmath x"):
        pass
    with locked(tmp_path / "kept", "--out", "mlxmath x"):
        (tmp_path / "kept" / "file").write_text("")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_a_lock_file_that_its_holder_removes_just_then_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = locks.fcntl.flock, []

    def flock(file: Any, how: int) -> None:
        real(file, how)
        calls.append(file)
        if len(calls) == 1:
            (tmp_path / ".lock").unlink()

    monkeypatch.setattr(locks.fcntl, "flock", flock)
    with locked(tmp_path, "--out", "mlxmath x"):
        assert len(calls) == 2 and calls[0].closed
        with pytest.raises(InputError, match="in use"), locked(tmp_path, "--out", "mlxmath x"):
            pass


def test_where_there_are_no_locks_a_note_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    with locked(tmp_path, "--out", "mlxmath x"):
        assert f"{tmp_path} cannot be locked (No locks available)" in capsys.readouterr().err


def test_every_bit_of_a_sealed_file_counts(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    value = {"position": {"step": 3}, "state": {"7": [0.5, None, "é", 2.0]}}
    sealed_json(path, value)
    whole = path.read_bytes()
    assert unsealed_json(path, ()) == value
    for place in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(MlxmathError, match=r"state\.json is (damaged|not readable JSON)"):
            unsealed_json(path, ("position", "state"))
    sealed_json(path, {"state": {7: 1}})
    assert unsealed_json(path, ()) == {"state": {"7": 1}}
    for unsealed in ("[1]", '{"position": 1}'):
        path.write_text(unsealed)
        with pytest.raises(MlxmathError, match=r"state\.json is damaged"):
            unsealed_json(path, ("state",))
    assert unsealed_json(path, ("position", "state")) == {"position": 1}


def test_every_bit_of_a_sealed_line_counts() -> None:
    value = {"a": {"7": [0.5, None, 1e22]}, "text": "é \\ \u2028 half \ud800", "b": True}
    line = sealed_line(value)
    read = value | {"text": value["text"][:-1] + "?"}
    assert line.count(b"\n") == 1 and unsealed_line(line) == read
    accepted = []
    for place in range(8 * (len(line) - 1)):
        damaged = bytearray(line)
        damaged[place // 8] ^= 1 << place % 8
        found = unsealed_line(bytes(damaged))
        if found is not None and {name: found.get(name) for name in value} != read:
            accepted.append(bytes(damaged))
    assert not accepted
    assert unsealed_line(b'{"of": "an earlier version"}\n') == {"of": "an earlier version"}
    for other in (b"[1]", b"", b"\xff", line[: len(line) // 2], b"[" * 100_000):
        assert unsealed_line(other) is None


@dataclass(frozen=True)
class Row:
    name: str
    count: int


def test_a_record_is_a_whole_line_with_the_right_types() -> None:
    assert read_record(Row, sealed_line({"name": "a", "count": 1, "more": 2})) == Row("a", 1)
    assert read_record(Row, sealed_line({"name": "a", "count": "1"})) is None
    assert read_record(Row, sealed_line({"name": "a", "count": 1}).replace(b"1,", b"2,")) is None


@pytest.mark.parametrize("kind", ["folder", "pipe", "device"])
def test_what_is_no_file_is_not_replaced_by_one(kind: str, tmp_path: Path) -> None:
    path = Path("/dev/null") if kind == "device" else tmp_path / "there"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    before = path.lstat()
    with pytest.raises(MlxmathError, match=rf"^cannot write {path}: it is .*; expected a file\.$"):
        atomic_write(path, "x")
    assert os.path.samestat(path.lstat(), before) and len(list(tmp_path.iterdir())) == (kind != "device")


def test_a_folder_that_is_a_link_is_replaced_where_it_lies(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to("elsewhere")
    for content in ("one", "two"):
        with atomic_folder(tmp_path / "link") as folder:
            (folder / "file").write_text(content)
    assert (tmp_path / "link").is_symlink() and (tmp_path / "elsewhere" / "file").read_text() == "two"
    assert {path.name for path in tmp_path.iterdir()} == {"elsewhere", "link"}


def test_a_relative_cache_folder_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for asked, found in (("relative", f"{tmp_path}/.cache"), ("", f"{tmp_path}/.cache"), ("/x", "/x")):
        monkeypatch.setenv("XDG_CACHE_HOME", asked)
        assert files.user_cache() == Path(found) / "mlxmath"


def test_who_makes_the_same_waits_or_is_told_who_makes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, order = tmp_path / "model", list[str]()

    def second() -> None:
        with shown(), making(path, "mlxmath convert") as waited:
            order.append(f"second, waited: {waited}")

    thread = threading.Thread(target=second)
    with making(path, "mlxmath train") as waited:
        assert not waited
        thread.start()
        while "waiting for it" not in (told := capsys.readouterr().err):
            time.sleep(0.01)
        with pytest.raises(InputError, match=f"^--x: {path} is in use by `mlxmath train`"), making(path, "y", "--x"):
            pass
        order.append("first")
    thread.join()
    assert f"{path} is being made by `mlxmath train`, process {os.getpid()} on" in told
    assert order == ["first", "second, waited: True"] and not list(tmp_path.iterdir())


ENDED = """
import sys, time
from pathlib import Path
import click
from mlxmath.commands.options import command
from mlxmath.runtime.files import atomic_file, atomic_folder
@command("long")
def main():
    with atomic_folder(Path("folder")) as folder, atomic_file(Path("file")) as file:
        (folder / "half").write_text("half")
        file.write(b"half")
        print("writing", flush=True)
        time.sleep(60)
main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_nothing_half_written(number: signal.Signals, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", ENDED], env=ENVIRONMENT, cwd=tmp_path, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "writing\n"
    process.send_signal(number)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert told == ("interrupted\n" if number == signal.SIGINT else f"ended by {number.name}\n")
    assert not list(tmp_path.iterdir())
