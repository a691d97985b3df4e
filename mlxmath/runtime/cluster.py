"""The hosts of a `mlx.launch` hosts file: is the file right, are they reachable, alike, and fast enough?"""

import ipaddress
import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxmath.errors import InputError, MlxmathError
from mlxmath.parsing import parse_json
from mlxmath.runtime.console import fail, shown, size
from mlxmath.runtime.doctor import Check, versions
from mlxmath.runtime.launch import line_port
from mlxmath.runtime.ranks import Ranks, join

BACKENDS = ("ring", "jaccl", "jaccl-ring", "nccl", "mpi")
LOCAL = "127.0.0.1"
"""The one name that mlx.launch takes for this machine, without ssh."""
_COMPARED = ("mlxmath", "mlx", "mlx-lm")
_NCCL_PORT = 12345
"""mlx.launch's default."""
_HOST_LIMIT_S = 30.0
_PROBE_LIMIT_S = 120.0
_BYTES = 8 << 20
_LATENCY_ROUNDS = 20
_BANDWIDTH_ROUNDS = 3
_LOOK = """
import errno, json, os, socket, sys
from importlib import metadata
asked = json.loads(sys.argv[1])
found = {"host": socket.gethostname(), "versions": {}, "busy": []}
for name in asked["packages"]:
    try: found["versions"][name] = metadata.version(name)
    except metadata.PackageNotFoundError: found["versions"][name] = None
try:
    import mlxmath; found["versions"]["mlxmath"] = mlxmath.__version__
except ImportError: found["versions"]["mlxmath"] = None
for ip, port in asked["ports"]:
    try: socket.create_server((ip, port)).close()
    except OSError as error:
        busy = f"port {port} of {ip}: {os.strerror(error.errno)}"
        found["busy"].append(f"{ip} is no address of this host" if error.errno == errno.EADDRNOTAVAIL else busy)
print(json.dumps(found))
"""
"""Runs on a host: needs nothing but Python."""


@dataclass(frozen=True)
class Host:
    """An entry of the hosts file; the entry's number is its rank."""

    ssh: str
    ips: tuple[str, ...]


@dataclass(frozen=True)
class Hosts:
    """A hosts file."""

    path: Path
    backend: str
    hosts: tuple[Host, ...]


def read_hosts(path: Path, default_backend: str = "ring") -> Hosts:
    """Read a hosts file in mlx.launch's form: a list of hosts, or an object with "backend" and "hosts".

    Raises:
        InputError: it is absent, or something in it is wrong; the entry is named.
    """
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"--cluster {path}: {error.strerror}; expected a hosts file as mlx.launch reads it.") from None
    except ValueError as error:
        raise InputError(f"--cluster {path}: not readable JSON: {error}") from None
    backend, entries = default_backend, content
    if isinstance(content, dict):
        backend, entries = content.get("backend") or default_backend, content.get("hosts")
        if not _are_strings(envs := content.get("envs", [])):
            raise InputError(f'--cluster {path}: "envs" must be a list of "NAME=VALUE"; found {envs!r}.')
    if backend not in BACKENDS:
        raise InputError(f"--cluster {path}: backend {backend!r} is unknown; expected one of {', '.join(BACKENDS)}.")
    if not isinstance(entries, list) or len(entries) < 2:
        raise InputError(
            f'--cluster {path}: expected a list of at least two hosts, each {{"ssh": "NAME", "ips": ["ADDRESS"]}}.'
        )
    return Hosts(path, backend, tuple(_host(path, backend, rank, entries) for rank in range(len(entries))))


def _host(path: Path, backend: str, rank: int, entries: Sequence[Any]) -> Host:
    entry, where = entries[rank], f"--cluster {path}: host {rank}"
    if not isinstance(entry, dict) or not isinstance(entry.get("ssh"), str) or not entry["ssh"].strip():
        raise InputError(f'{where} has no "ssh", the name to reach it by ("{LOCAL}": this machine); found {entry!r}.')
    if entry["ssh"].startswith("-"):
        raise InputError(f'{where}: "ssh": {entry["ssh"]!r} is no name of a host.')
    ips = entry.get("ips", [])
    if not _are_strings(ips):
        raise InputError(f'{where}: "ips" must be a list of addresses; found {ips!r}.')
    try:
        addresses = tuple(str(ipaddress.ip_address(ip)) for ip in ips)
    except ValueError as error:
        raise InputError(f'{where}: "ips" must be a list of addresses; {error}.') from None
    if not addresses and (backend == "ring" or (backend != "mpi" and rank == 0)):
        raise InputError(f'{where} has no "ips": {backend} needs the address at which the others reach it.')
    if backend.startswith("jaccl"):
        devices = entry.get("rdma")
        if not isinstance(devices, list) or len(devices) != len(entries) or devices[rank] is not None:
            raise InputError(
                f'{where}: "rdma" must list the device to each of the {len(entries)} hosts, null at its own place.'
            )
        wrong = [d for i, d in enumerate(devices) if i != rank and not (isinstance(d, str) or (d and _are_strings(d)))]
        if wrong and backend == "jaccl":
            raise InputError(f'{where}: "rdma" must name a device to each other host; found {wrong[0]!r}.')
    return Host(entry["ssh"], addresses)


def _are_strings(found: Any) -> bool:
    return isinstance(found, list) and all(isinstance(each, str) for each in found)


def check_cluster(hosts: Hosts, python: str, starting_port: int) -> list[Check]:
    """Look at every host, then let them all add up numbers.

    Args:
        hosts: the file.
        python: path of Python on every host.
        starting_port: the first port of the ring, as `mlx.launch --starting-port` has it.
    """
    ports: list[list[tuple[str, int]]] = []
    port = starting_port
    for host in hosts.hosts:
        ports.append([(ip, port + i) for i, ip in enumerate(host.ips)] if hosts.backend == "ring" else [])
        port += len(host.ips)
    if hosts.backend != "mpi":  # the ranks meet there before MLX connects them
        first = _NCCL_PORT if hosts.backend == "nccl" else starting_port
        ports[0].append((hosts.hosts[0].ips[0], line_port(first)))
    checks = [Check("hosts file", "ok", f"{len(hosts.hosts)} hosts, backend {hosts.backend}"), *_own_addresses(hosts)]
    with ThreadPoolExecutor(len(hosts.hosts)) as pool:
        looked = list(pool.map(_look, hosts.hosts, ports, [python] * len(ports)))
    for rank, found in enumerate(looked):
        checks += _judge(f"rank {rank} ({hosts.hosts[rank].ssh})", found, python)
    if any(check.status == "missing" for check in checks):
        return [*checks, Check("all-reduce", "note", "not tried, since something above is missing")]
    return [*checks, _all_reduce(hosts, python, starting_port)]


def _own_addresses(hosts: Hosts) -> list[Check]:
    """Addresses that only their own machine reaches, though there are others."""
    return [
        Check("hosts file", "missing", f"host {rank}: others do not reach {ip}; give its address in their network")
        for rank, host in enumerate(hosts.hosts)
        for ip in host.ips
        if ipaddress.ip_address(ip).is_loopback and any(other.ssh != host.ssh for other in hosts.hosts)
    ]


def _look(host: Host, ports: Sequence[tuple[str, int]], python: str) -> dict[str, Any] | str:
    """What a host says of itself, or why it does not."""
    arguments = [python, "-c", _LOOK, json.dumps({"packages": _COMPARED[1:], "ports": ports})]
    if host.ssh != LOCAL:
        arguments = ["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=5", host.ssh, shlex.join(arguments)]
    try:
        done = subprocess.run(
            arguments, capture_output=True, text=True, timeout=_HOST_LIMIT_S, check=False, stdin=subprocess.DEVNULL
        )
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found
    except FileNotFoundError as error:
        return f"{error.filename} is not installed here"
    except subprocess.TimeoutExpired:
        return f"no answer within {_HOST_LIMIT_S:g} seconds"
    except (ValueError, IndexError):
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        how = "" if host.ssh == LOCAL else f"`ssh {host.ssh}` must work without a password: "
        return f"{how}{lines[-1] if lines else f'exit code {done.returncode}'}"


def _judge(name: str, found: dict[str, Any] | str, python: str) -> list[Check]:
    if isinstance(found, str):
        return [Check(name, "missing", found)]
    here = versions()
    checks = [Check(name, "ok", ", ".join([found["host"], *(f"{k} {v}" for k, v in found["versions"].items() if v)]))]
    for package in _COMPARED:
        version = found["versions"][package]
        if version is None:
            checks.append(Check(name, "missing", f"{package} is not installed for {python} there"))
        elif version != here[package]:
            checks.append(Check(name, "missing", f"{package} is {version} there and {here[package]} here"))
    return [*checks, *(Check(name, "missing", why) for why in dict.fromkeys(found["busy"]))]


def _all_reduce(hosts: Hosts, python: str, starting_port: int) -> Check:
    launcher = shutil.which("mlx.launch", path=str(Path(sys.executable).parent)) or shutil.which("mlx.launch")
    if launcher is None:
        return Check("all-reduce", "missing", "mlx.launch is not installed (it comes with mlx)")
    command = [
        launcher, "--hostfile", str(hosts.path), "--backend", hosts.backend,
        "--starting-port", str(starting_port), "--", python, "-m", "mlxmath.runtime.cluster",
    ]  # fmt: skip
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_PROBE_LIMIT_S, check=False, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        return Check("all-reduce", "missing", f"the ranks did not finish within {_PROBE_LIMIT_S:g} seconds")
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"hosts"')]
    if not lines:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        reasons = [line for line in said if "error: " in line] or said[-1:] or ["it said nothing"]
        return Check("all-reduce", "missing", "; ".join(reasons[:3]))
    found = json.loads(lines[-1])
    return Check(
        "all-reduce",
        "ok",
        f"{len(found['hosts'])} ranks, {found['latency_s'] * 1e6:,.0f} µs for one number, "
        f"{size(found['bytes_per_s'])}/s for 8 MB",
    )


def measure(ranks: Ranks) -> dict[str, Any]:
    """Seconds of an all-reduce of four bytes, and bytes a second of one of 8 MB (of the array, not of the wire)."""
    import mlx.core as mx

    def seconds(array: Any, rounds: int) -> float:
        best = float("inf")
        for number in range(1 + rounds):  # the first one warms up
            ranks.vote("measure")
            start = time.perf_counter()
            ranks.sum(array)
            best = min(best, time.perf_counter() - start) if number else best
        return best

    return {
        "hosts": ranks.hosts,
        "latency_s": seconds(mx.ones(1), _LATENCY_ROUNDS),
        "bytes_per_s": _BYTES / seconds(mx.ones(_BYTES // 4), _BANDWIDTH_ROUNDS),
    }


def main() -> int:
    """What runs on every host, started by mlx.launch: do the ranks find each other, how fast? Rank 0 prints JSON."""
    with shown():
        try:
            with join() as ranks:
                found = measure(ranks)
                if ranks.first:
                    print(json.dumps(found), flush=True)
        except MlxmathError as error:
            fail(str(error))
            return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
