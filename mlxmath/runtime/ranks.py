"""Several processes, on one machine or many, that do one run together: what they tell each other.

`mlx.launch` starts them; `mx.distributed` carries arrays and text between them (ring, jaccl, nccl, mpi).
"""

import json
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib import metadata
from typing import Any

from mlxmath import __version__
from mlxmath.errors import MlxmathError
from mlxmath.runtime import console
from mlxmath.runtime.blas import preload
from mlxmath.runtime.heartbeat import END, Heartbeat
from mlxmath.runtime.launch import Launch, compare, launched, meet

FORM_S = {"ring": 30.0, "jaccl": 60.0, "nccl": 120.0}
"""Seconds that MLX has to connect processes that are all there; nccl opens the GPUs and tries the network meanwhile."""


class Ranks:
    """This process among those of its run; alone, nothing is exchanged.

    All ranks must make the same calls in the same order; a rank that does not is named.

    Args:
        group: MLX's, of all processes.
        heartbeat: of this one.
        hosts: where each rank runs.
    """

    def __init__(self, group: Any = None, heartbeat: Heartbeat | None = None, hosts: tuple[str, ...] = ("",)) -> None:
        self._group, self._heartbeat, self.hosts = group, heartbeat, hosts
        self.rank: int = 0 if group is None else group.rank()
        self._waited_s = self._exchanged_s = 0.0

    def begin(self) -> None:
        """All have what they need, and work begins: from now on who hangs is missed too, and times count."""
        self.vote("begin")
        self._waited_s = self._exchanged_s = 0.0
        if self._heartbeat is not None:
            self._heartbeat.work()

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
        if self._heartbeat is None:
            return flags
        start = time.perf_counter()
        decision = self._heartbeat.vote(name, flags)
        self._waited_s += time.perf_counter() - start
        if decision is None:
            raise MlxmathError(str(self._heartbeat.lost))
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
            compare(found, self.hosts)
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
            lost = self._heartbeat.verdict() if self._heartbeat else None
            raise MlxmathError(lost or f"the ranks cannot exchange data: {error}") from error
        self._exchanged_s += time.perf_counter() - start
        return found


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
    group = None
    if not launch.addresses:  # mpi alone knows where the others are
        group = _group(launch)
        address, port = Ranks(group, hosts=("",) * launch.size)._gather([host, launch.port])[0]
        launch = replace(launch, addresses=(address,), port=port)
    hosts, connections = meet(
        launch, host, {"mlxmath": __version__, **{name: metadata.version(name) for name in ("mlx", "mlx-lm")}}
    )
    names = [f"rank {rank} ({host})" for rank, host in enumerate(hosts)]
    heartbeat = Heartbeat(launch.rank, names, connections, console.say, console.prefixed(""))
    try:
        ranks = Ranks(group or _formed(launch, heartbeat), heartbeat, hosts)
        yield ranks
        ranks.vote(END)
    finally:
        heartbeat.close()


def _formed(launch: Launch, heartbeat: Heartbeat) -> Any:
    """MLX's group, once all ranks are ready for it: while MLX waits for one, no Python thread runs."""
    preload()
    import mlx.core  # noqa: F401  # takes its time

    if heartbeat.vote("forming") is None:
        raise MlxmathError(str(heartbeat.lost))
    others = ", ".join(launch.called(rank) for rank in range(launch.size) if rank != launch.rank)
    limit_s = FORM_S[launch.backend]
    heartbeat.limit(
        limit_s,
        f"MLX's {launch.backend} backend did not connect this process with {others} within {limit_s:g} seconds, though "
        "all are there; let its ports through any firewall, and see `mlxmath doctor --cluster`.",
    )
    group = _group(launch)
    heartbeat.limit()
    return group


def _group(launch: Launch) -> Any:
    preload()
    import mlx.core as mx

    try:
        group = mx.distributed.init(strict=True, backend=launch.backend)
    except RuntimeError as error:
        raise MlxmathError(f"the {launch.backend} backend does not find the other processes: {error}") from error
    if (group.rank(), group.size()) != (launch.rank, launch.size):
        raise MlxmathError(
            f"expected to be rank {launch.rank} of {launch.size} processes, but MLX's {launch.backend} backend made a "
            f"group of {group.size()}; check the backend that mlx.launch was given."
        )
    return group
