"""What only Macs need, with a stand-in for the system and for its program."""

import os
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from mlxmath.commands import options
from mlxmath.commands.evaluate import main as evaluate
from mlxmath.commands.pipeline import main as pipeline
from mlxmath.runtime import mac
from mlxmath.runtime.launch import Launch
from tests.helpers import wait_until


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Mac whose `caffeinate` notes its arguments, waits as the real one does, and notes that it ends."""
    program, noted = tmp_path / "caffeinate", tmp_path / "calls"
    program.write_text(f'#!/bin/sh\necho "$$ $@" >> {noted}\nwhile kill -0 "$4"; do sleep 0.05; done\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(sys, "platform", "darwin")
    return noted


def run(**kwargs: bool) -> str:
    @options.command("test", **kwargs)
    def main() -> None:
        time.sleep(0.3)
        click.echo("done")

    result = CliRunner().invoke(main)
    assert result.exit_code == 0
    return result.output


def test_a_long_command_keeps_a_mac_awake_while_it_runs(calls: Path) -> None:
    assert "done" in run(long=True)
    process, arguments = calls.read_text().strip().split(" ", 1)
    assert arguments == f"-i -s -w {os.getpid()}", "never -d, so that the display may sleep"
    with pytest.raises(ProcessLookupError):
        os.kill(int(process), 0)


def test_it_ends_with_a_run_that_is_killed(calls: Path) -> None:
    code = (
        "import sys, time; sys.platform = 'darwin'\n"
        "from mlxmath.runtime.mac import kept_awake\n"
        "with kept_awake(): time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    wait_until(calls.exists)
    process.kill()
    process.wait()
    pid = int(calls.read_text().split()[0])
    wait_until(lambda: not Path(f"/proc/{pid}").exists() or "zombie" in Path(f"/proc/{pid}/status").read_text())


def test_a_short_command_does_not(calls: Path) -> None:
    run()
    assert not calls.exists()
    assert evaluate._long and pipeline._long  # type: ignore[attr-defined]


@pytest.mark.parametrize(("rank", "awake"), [(0, True), (1, False), (2, True)])
def test_of_a_host_s_ranks_the_first_one_does(
    calls: Path, monkeypatch: pytest.MonkeyPatch, rank: int, awake: bool
) -> None:
    launch = Launch("ring", rank, 3, ("10.0.0.1", "10.0.0.1", "10.0.0.2"))
    monkeypatch.setattr("mlxmath.runtime.launch.launched", lambda: launch)
    run(long=True, shared=True)
    assert calls.exists() == awake


def test_nobody_hears_that_caffeinate_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "darwin")
    assert run(long=True) == "done\n"


def test_elsewhere_it_is_not_asked_for(calls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    run(long=True)
    assert not calls.exists()


def test_metal_is_patient_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGX_RELAX_CDM_CTXSTORE_TIMEOUT", "0")
    mac.be_patient()
    assert os.environ["AGX_RELAX_CDM_CTXSTORE_TIMEOUT"] == "0"
    monkeypatch.delenv("AGX_RELAX_CDM_CTXSTORE_TIMEOUT")
    mac.be_patient()
    assert os.environ["AGX_RELAX_CDM_CTXSTORE_TIMEOUT"] == "1"


@pytest.mark.parametrize(
    ("version", "system", "old"),
    [("0.32.4", "darwin", False), ("0.32.3", "darwin", True), ("0.40.0", "darwin", False), ("0.31.0", "linux", False),
     ("0.32.4.dev1+abc", "darwin", False)],
)  # fmt: skip
def test_an_old_mlx_is_named_on_a_mac(monkeypatch: pytest.MonkeyPatch, version: str, system: str, old: bool) -> None:
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(mac.metadata, "version", lambda _: version)
    note = mac.old_mlx()
    assert (note is not None) == old
    assert note is None or (version in note and "mlx>=0.32.4" in note)
