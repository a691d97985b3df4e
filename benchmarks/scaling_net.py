"""Machines that there are not: network namespaces on this one, each with a link of a chosen rate (Linux, as root)."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks.common import REPOSITORY

_BRIDGE, _NAME = "mlxsb", "mlxs{}"
_PORT = 47_100
_BURST, _QUEUE = "64kb", "8mb"


def missing() -> str | None:
    """Why there can be no namespaces here; None if there can."""
    try:
        with network(1, 1e9):
            return None
    except (OSError, subprocess.CalledProcessError) as error:
        return f"no network namespaces here ({error})"


@contextmanager
def network(n: int, bits_per_s: float) -> Iterator[list[list[str]]]:
    """n namespaces on one switch, each sending at most `bits_per_s`; gives the prefix of a command in each."""
    _remove(n)
    try:
        _do("ip", "link", "add", _BRIDGE, "type", "bridge")
        _do("ip", "link", "set", _BRIDGE, "up")
        for i in range(n):
            name, outer, inner = _NAME.format(i), f"mlxsv{i}", f"mlxsw{i}"
            inside = ("ip", "netns", "exec", name)
            _do("ip", "netns", "add", name)
            _do("ip", "link", "add", outer, "type", "veth", "peer", "name", inner)
            _do("ip", "link", "set", inner, "netns", name)
            _do("ip", "link", "set", outer, "master", _BRIDGE)
            _do("ip", "link", "set", outer, "up")
            _do(*inside, "ip", "addr", "add", f"{address(i)}/24", "dev", inner)
            _do(*inside, "ip", "link", "set", inner, "up")
            _do(*inside, "ip", "link", "set", "lo", "up")
            shape = ("rate", f"{int(bits_per_s)}bit", "burst", _BURST, "limit", _QUEUE)
            _do(*inside, "tc", "qdisc", "add", "dev", inner, "root", "tbf", *shape)
        yield [["ip", "netns", "exec", _NAME.format(i)] for i in range(n)]
    finally:
        _remove(n)


def address(i: int) -> str:
    """Of machine i."""
    return f"10.77.0.{i + 1}"


def run_ranks(
    commands: Sequence[Sequence[str]], prefixes: Sequence[Sequence[str]], folder: Path, timeout_s: float, *, ring: bool
) -> list[str]:
    """Run a command in each namespace, on cores in turn; with `ring` they are the ranks of one run.

    Returns:
        What each printed.

    Raises:
        RuntimeError: one failed, or took too long.
    """
    hosts = folder / "hosts.json"
    hosts.write_text(json.dumps([[f"{address(i)}:{_PORT + i}"] for i in range(len(commands))]))
    cores = sorted(os.sched_getaffinity(0))
    processes = []
    for i, (command, prefix) in enumerate(zip(commands, prefixes, strict=True)):
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1"}
        if ring:
            environment |= {"MLX_RANK": str(i), "MLX_HOSTFILE": str(hosts)}
        pinned = [*prefix, "taskset", "-c", str(cores[i % len(cores)]), sys.executable, *command]
        processes.append(
            subprocess.Popen(
                pinned, cwd=REPOSITORY, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, text=True,
            )
        )  # fmt: skip
    try:
        outputs = [process.communicate(timeout=timeout_s)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    for process, output in zip(processes, outputs, strict=True):
        if process.returncode:
            raise RuntimeError(output[-2000:])
    return outputs


def _do(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


def _remove(n: int) -> None:
    for command in (
        *(("ip", "netns", "del", _NAME.format(i)) for i in range(n)),
        *(("ip", "link", "del", f"mlxsv{i}") for i in range(n)),
        ("ip", "link", "del", _BRIDGE),
    ):
        with suppress(subprocess.CalledProcessError, FileNotFoundError):
            _do(*command)
