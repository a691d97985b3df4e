"""`doctor`: what it says of this machine, of a hosts file, and of hosts that it reaches through a stand-in for ssh."""

import json
import re
import socket
import sys
from importlib import metadata
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mlxmath.commands.doctor import main
from mlxmath.runtime.cluster import read_hosts
from tests.helpers import ENVIRONMENT

TWO = [{"ssh": "127.0.0.1", "ips": ["127.0.0.1"]}, {"ssh": "127.0.0.1", "ips": ["127.0.0.1"]}]


def free_port() -> int:
    """Of two in a row."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port if port < 65000 else 32323


def doctor(*arguments: str, hosts: object = None, folder: Path | None = None, **environment: str) -> Result:
    if hosts is not None:
        assert folder is not None
        (folder / "hosts.json").write_text(hosts if isinstance(hosts, str) else json.dumps(hosts))
        arguments = ("--cluster", str(folder / "hosts.json"), "--starting-port", str(free_port()), *arguments)
    env = {"COLUMNS": "300", "PYTHONPATH": ENVIRONMENT["PYTHONPATH"], **environment}
    return CliRunner().invoke(main, arguments, env=env)


def test_it_finds_this_machine_fit_for_work() -> None:
    result = doctor()
    assert result.exit_code == 0, result.output
    for text in (
        "backend cpu",
        "BLAS",
        "memory",
        "disk",
        f"mlx {metadata.version('mlx')}",
        "what --backend auto takes",
    ):
        assert text in result.output
    assert "hub" not in result.output.replace("huggingface-hub", "")


def test_a_missing_package_is_named_and_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    real = metadata.version

    def version(name: str) -> str:
        if name == "sentencepiece":
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    result = doctor()
    assert result.exit_code == 1 and "pip install sentencepiece" in result.output


def test_a_hub_that_does_not_answer_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    result = doctor("--hub")
    assert result.exit_code == 0 and "http://127.0.0.1:9 does not answer" in result.output


def test_an_address_of_another_machine_is_named(tmp_path: Path) -> None:
    result = doctor(hosts=[{"ssh": "127.0.0.1", "ips": ["192.0.2.1"]}, TWO[1]], folder=tmp_path)
    assert result.exit_code == 1 and "192.0.2.1 is no address of this host" in result.output, result.output
    assert "others do not reach" not in result.output


@pytest.mark.parametrize(
    ("hosts", "message"),
    [
        ("{", "not readable JSON"),
        ("[" * 100_000, "nested too deeply"),
        ([], "at least two hosts"),
        (TWO[:1], "at least two hosts"),
        ({"backend": "carrier", "hosts": TWO}, "backend 'carrier' is unknown"),
        ([TWO[0], {"ips": ["10.0.0.2"]}], 'host 1 has no "ssh"'),
        ([TWO[0], {"ssh": "-oProxyCommand=touch x", "ips": ["10.0.0.2"]}], "is no name of a host"),
        ([TWO[0], {"ssh": "b"}], 'host 1 has no "ips": ring needs'),
        ([TWO[0], {"ssh": "b", "ips": ["b.local"]}], 'host 1: "ips" must be a list of addresses'),
        ([TWO[0], {"ssh": "b", "ips": "10.0.0.2"}], "must be a list of addresses; found '10.0.0.2'"),
        ({"envs": "A=1", "hosts": TWO}, '"envs" must be a list of "NAME=VALUE"; found \'A=1\''),
        (
            {"backend": "jaccl", "hosts": [{"ssh": "a", "ips": ["10.0.0.1"], "rdma": [None, 3]}, {"ssh": "b"}]},
            'host 0: "rdma" must name a device to each other host; found 3',
        ),
        ({"backend": "jaccl", "hosts": TWO}, '"rdma" must list the device to each of the 2 hosts'),
        ({"backend": "nccl", "hosts": [{"ssh": "a"}, {"ssh": "b"}]}, 'host 0 has no "ips": nccl needs'),
    ],
)
def test_a_wrong_hosts_file_names_the_entry(tmp_path: Path, hosts: object, message: str) -> None:
    result = doctor(hosts=hosts, folder=tmp_path)
    assert result.exit_code == 2 and message in result.output and "Traceback" not in result.output


def test_a_hosts_file_that_is_not_there() -> None:
    result = CliRunner().invoke(main, ["--cluster", "absent.json"])
    assert result.exit_code == 2 and "--cluster absent.json: No such file or directory; expected a" in result.output


def test_a_right_hosts_file(tmp_path: Path) -> None:
    path = tmp_path / "hosts.json"
    rdma = [{"ssh": "a", "ips": ["10.0.0.1"], "rdma": [None, "en2"]}, {"ssh": "b", "rdma": ["en2", None]}]
    path.write_text(json.dumps({"backend": "jaccl", "hosts": rdma}))
    found = read_hosts(path)
    assert (found.backend, [host.ssh for host in found.hosts]) == ("jaccl", ["a", "b"])


def test_two_ranks_on_this_machine_really_add_up_numbers(tmp_path: Path) -> None:
    result = doctor(hosts=TWO, folder=tmp_path)
    assert result.exit_code == 0, result.output
    assert re.search(r"all-reduce +│ 2 ranks, [\d,]+ µs for one number, [\d.]+ [kMG]B/s for 8 MB", result.output)


def test_hosts_that_differ_or_do_not_answer_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`ssh` is a script that runs the command here: as it is, with another mlxmath, or not at all."""
    (tmp_path / "other" / "mlxmath").mkdir(parents=True)
    (tmp_path / "other" / "mlxmath" / "__init__.py").write_text('__version__ = "9.9.9"')
    stand_in = tmp_path / "ssh"
    stand_in.write_text(f"""#!/bin/sh
[ "$2" = BatchMode=yes ] || exit 1
case $5 in
  silent) echo "ssh: connect to host silent port 22: No route to host" >&2; exit 255;;
  older) export PYTHONPATH={tmp_path}/other;;
esac
exec sh -c "$6"
""")
    stand_in.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        hosts = [{"ssh": name, "ips": ["127.0.0.1"]} for name in ("same", "older", "silent")]
        path = f"{tmp_path}:{ENVIRONMENT['PATH']}"
        result = doctor(
            "--python", sys.executable, "--starting-port", str(port), hosts=hosts, folder=tmp_path, PATH=path
        )
    assert result.exit_code == 1
    for text in (
        "mlxmath is 9.9.9 there and ",
        "`ssh silent` must work without a password: ssh: connect to host silent port 22: No route to host",
        f"port {port} of 127.0.0.1: Address already in use",
        "host 1: others do not reach 127.0.0.1; give its address in their network",
        "not tried, since something above is missing",
    ):
        assert text in result.output, result.output
    assert not re.search(r"missing +│ rank 1 \(older\) +│ mlx is", result.output)


def test_an_old_mlx_on_a_mac_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "attention's backward pass" not in doctor().output
    monkeypatch.setattr(
        "mlxmath.runtime.doctor.old_mlx", lambda: "mlx 0.32.0 takes memory in attention's backward pass"
    )
    result = doctor()
    assert result.exit_code == 0 and "mlx 0.32.0 takes memory in attention's backward pass" in result.output
