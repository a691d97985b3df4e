"""Several processes, on one machine or many, that do one run together: what they tell each other.

`mlx.launch` starts them; `mx.distributed` carries arrays and text between them (ring, jaccl, nccl, mpi).
"""

import faulthandler
import json
import os
import secrets
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from mlxmath import __version__, console
from mlxmath.backends.blas import preload
from mlxmath.backends.lifeline import END, SILENCE_S, Lifeline, accept, connect, listen
from mlxmath.errors import MlxmathError

MEET_S = 180
"""Seconds that a process waits for the others to start; where mlx.launch sees one fail, it ends them all sooner."""


@dataclass(frozen=True)
class Launch:
    """What a launcher told this process. `address` is where rank 0 can be reached."""

    backend: str
    rank: int
    size: int
    address: str


def launched() -> Launch | None:
    """How this process was started together with others; None: it was not, or it is the only one.

    Raises:
        MlxmathError: the launcher's variables do not fit together.
    """
    env = os.environ
    for rank, size in (("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"), ("PMI_RANK", "PMI_SIZE")):
        if rank in env and "MLX_RANK" not in env and int(env.get(size, "1")) > 1:
            return Launch("mpi", int(env[rank]), int(env[size]), "")
    if "MLX_RANK" not in env:
        return None
    rank_number = int(env["MLX_RANK"])
    if "MLX_HOSTFILE" in env:
        text = _read("MLX_HOSTFILE")
        if not text.strip():
            return None  # what mlx.launch writes for a single process
        try:
            hosts = json.loads(text)
            addresses = [hosts[number][0] for number in range(len(hosts))]
            found = Launch("ring", rank_number, len(hosts), addresses[0].rpartition(":")[0].strip("[]"))
        except (ValueError, LookupError, TypeError, AttributeError):
            raise MlxmathError(f'MLX_HOSTFILE {env["MLX_HOSTFILE"]}: expected [["ADDRESS:PORT"], ...].') from None
    elif "MLX_IBV_DEVICES" in env and "MLX_JACCL_COORDINATOR" in env:
        size_found = len(json.loads(_read("MLX_IBV_DEVICES")))
        address = env["MLX_JACCL_COORDINATOR"].rpartition(":")[0].strip("[]")
        found = Launch("jaccl", rank_number, size_found, address)
    elif "NCCL_HOST_IP" in env and "MLX_WORLD_SIZE" in env:
        found = Launch("nccl", rank_number, int(env["MLX_WORLD_SIZE"]), env["NCCL_HOST_IP"])
    else:
        raise MlxmathError(
            f"MLX_RANK is {rank_number}, but nothing says who the other processes are (MLX_HOSTFILE for ring, "
            "MLX_IBV_DEVICES and MLX_JACCL_COORDINATOR for jaccl, NCCL_HOST_IP and MLX_WORLD_SIZE for nccl). Start "
            "them with mlx.launch, or one process without these variables."
        )
    if not 0 <= found.rank < found.size:
        raise MlxmathError(f"MLX_RANK is {found.rank}, but there are {found.size} processes, numbered from 0.")
    return found if found.size > 1 else None


def _read(variable: str) -> str:
    try:
        return Path(os.environ[variable]).read_text()
    except OSError as error:
        raise MlxmathError(f"{variable}: {error}") from error


class Ranks:
    """This process among those of its run; alone, nothing is exchanged.

    All ranks must make the same calls in the same order; a rank that does not is named.

    Args:
        group: MLX's, of all processes.
        line: see `Lifeline`.
        hosts: where each rank runs.
    """

    def __init__(self, group: Any = None, line: Lifeline | None = None, hosts: tuple[str, ...] = ("",)) -> None:
        self._group, self._line, self.hosts = group, line, hosts
        self.rank: int = 0 if group is None else group.rank()
        self._waited_s = self._exchanged_s = 0.0

    def begin(self) -> None:
        """All have what they need, and work begins: from now on a silent rank is soon missed, and times count."""
        self.vote("begin")
        self._waited_s = self._exchanged_s = 0.0
        if self._line is not None:
            self._line.silence_s = SILENCE_S

    def summary(self) -> dict[str, Any] | None:
        """Who they are, and the seconds that this one waited for the slowest and spent in collectives; None: alone."""
        if self.size == 1:
            return None
        times = {"waited_s": round(self._waited_s, 3), "exchanged_s": round(self._exchanged_s, 3)}
        return {"size": self.size, "hosts": self.hosts, **times}

    @property
    def size(self) -> int:
        """How many there are."""
        return len(self.hosts)

    @property
    def first(self) -> bool:
        """Whether this is the one that prints and saves."""
        return self.rank == 0

    @property
    def num_on_host(self) -> int:
        """Ranks that share this machine."""
        return self.hosts.count(self.hosts[self.rank])

    def vote(self, name: str, flags: int = 0) -> int:
        """The bits that any rank sets; all wait here for the last one. `name` says where in the run this is.

        Raises:
            MlxmathError: a rank is lost.
        """
        if self._line is None:
            return flags
        start = time.perf_counter()
        decision = self._line.vote(name, flags)
        self._waited_s += time.perf_counter() - start
        return decision

    def any(self, name: str, what: bool) -> bool:
        """Whether it is so on any rank."""
        return bool(self.vote(name, int(what)))

    def sum(self, array: Any) -> Any:
        """The sum of all ranks' arrays of this shape; to be called right after a vote, so that nobody is late."""
        return array if self._group is None else self._exchange("all_sum", array)

    def gather(self, name: str, value: Any) -> list[Any]:
        """Every rank's value, which JSON can hold, by rank."""
        if self._group is None:
            return [value]
        self.vote(name)
        return self._gather(value)

    def broadcast(self, name: str, arrays: Mapping[str, Any]) -> dict[str, Any]:
        """Rank 0's arrays by name, whatever the others' are."""
        if self._group is None:
            return dict(arrays)
        import mlx.core as mx

        kinds = {key: (array.shape, str(array.dtype).rpartition(".")[2]) for key, array in arrays.items()}
        wanted = self.gather(name, kinds if self.first else None)[0]
        return {
            key: self.sum(arrays[key] if self.first else mx.zeros(shape, getattr(mx, dtype)))
            for key, (shape, dtype) in wanted.items()
        }

    def agree(self, name: str, facts: Mapping[str, Any]) -> None:
        """Make sure that `facts`, by name, are the same on all ranks.

        Raises:
            MlxmathError: they are not; the rank, its host and every difference are named.
        """
        found = self.gather(name, facts)
        try:
            _compare(found, self.hosts)
        except MlxmathError:
            self.vote(END)  # all see it and end by themselves
            raise

    @contextmanager
    def in_turn(self, name: str) -> Iterator[None]:
        """One after the other where folders may be the same: rank 0, then one rank of each other host, then the rest.

        Whoever comes later finds what was made before, and no two write to one folder.
        """
        mine = 0 if self.first else 1 if self.hosts.index(self.hosts[self.rank]) == self.rank else 2
        for turn in range(mine):
            self.vote(f"{name}, turn {turn}")
        yield
        for turn in range(mine, 3):
            self.vote(f"{name}, turn {turn}")

    def _gather(self, value: Any) -> list[Any]:
        import mlx.core as mx
        import numpy as np

        data = np.frombuffer(json.dumps(value).encode(), np.uint8)
        sizes: list[int] = self._exchange("all_gather", mx.array([len(data)], mx.int32)).tolist()
        padded = np.zeros(max(sizes), np.uint8)
        padded[: len(data)] = data
        rows = np.array(self._exchange("all_gather", mx.array(padded))).reshape(len(sizes), -1)
        return [json.loads(rows[i, :size].tobytes()) for i, size in enumerate(sizes)]

    def _exchange(self, operation: str, array: Any) -> Any:
        import mlx.core as mx

        mx.eval(array)
        start = time.perf_counter()
        try:
            found = getattr(mx.distributed, operation)(array, group=self._group)
            mx.eval(found)
        except RuntimeError as error:
            lost = self._line.verdict() if self._line else None
            raise MlxmathError(lost or f"the ranks cannot exchange data: {error}") from error
        self._exchanged_s += time.perf_counter() - start
        return found


def _compare(found: list[Mapping[str, Any]], hosts: tuple[str, ...]) -> None:
    """Raise where any rank's facts are not those of rank 0."""
    differing = [
        f"{name} is {_short(facts.get(name))} on rank {rank} ({hosts[rank]}) and {_short(found[0].get(name))} on rank "
        f"0 ({hosts[0]})"
        for rank, facts in enumerate(found)
        for name in {**found[0], **facts}
        if facts.get(name) != found[0].get(name)
    ]
    if differing:
        raise MlxmathError(f"the ranks do not do the same: {'; '.join(differing)}. Nothing was trained.")


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


@contextmanager
def join() -> Iterator[Ranks]:
    """The processes of this run, which must all come here, and which end together.

    Ranks other than 0 say nothing from now on but errors.

    Raises:
        MlxmathError: they do not find each other, or are of different versions.
    """
    launch = launched()
    if launch is None:
        yield Ranks()
        return
    host = socket.gethostname()
    if launch.rank:
        console.only_errors(f"rank {launch.rank} ({host}): ")
    ranks, line = _meet(launch, host)
    try:
        yield ranks
        ranks.vote(END)
    finally:
        line.close()


def _meet(launch: Launch, host: str) -> tuple[Ranks, Lifeline]:
    preload()
    import mlx.core as mx

    # while MLX waits for the others no other Python thread runs
    faulthandler.dump_traceback_later(MEET_S, exit=True, file=2)
    try:
        group = mx.distributed.init(strict=True, backend=launch.backend)
    except RuntimeError as error:
        raise MlxmathError(
            f"rank {launch.rank} ({host}): the {launch.backend} backend does not find the other processes: {error}"
        ) from error
    finally:
        faulthandler.cancel_dump_traceback_later()
    if (group.rank(), group.size()) != (launch.rank, launch.size):
        raise MlxmathError(
            f"rank {launch.rank} ({host}): expected to be one of {launch.size} processes, but MLX's {launch.backend} "
            f"backend made a group of {group.size()}; check the backend that mlx.launch was given."
        )
    alone = Ranks(group, None, (host,) * launch.size)  # nobody watches yet
    token, address = secrets.token_hex(16), launch.address or host
    server = listen(address) if launch.rank == 0 else None
    try:
        versions = {"mlxmath": __version__, **{name: metadata.version(name) for name in ("mlx", "mlx-lm")}}
        own = {"host": host, "versions": versions}
        if server is not None:
            own |= {"port": server.getsockname()[1], "token": token, "address": address}
        found = alone._gather(own)
        hosts = tuple(each["host"] for each in found)
        if server is not None:
            connections = accept(server, hosts, token)
        else:
            connections = {0: connect(found[0]["address"], found[0]["port"], found[0]["token"], launch.rank)}
    finally:
        if server is not None:
            server.close()
    line = Lifeline(launch.rank, hosts, connections)
    try:
        _compare([each["versions"] for each in found], hosts)
    except MlxmathError:
        line.vote(END)
        line.close()
        raise
    return Ranks(group, line, hosts), line
