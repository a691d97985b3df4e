"""What a launcher, usually `mlx.launch`, says to the processes that it starts: how many they are and where."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from mlxmath.errors import MlxmathError

_BETWEEN_PORTS = 1000


@dataclass(frozen=True)
class Launch:
    """What a launcher told this process."""

    backend: str
    rank: int
    size: int
    addresses: tuple[str, ...] = ()
    """Where ranks 0, 1 … can be reached, as far as the launcher says: all with ring, none with mpi, else rank 0."""
    port: int = 31323
    """At which rank 0 waits for the others; see `line_port`."""
    run: str = ""
    """The same in all processes of a run, another one in other runs."""

    def called(self, rank: int) -> str:
        """`rank 1 (10.0.0.2)`."""
        return f"rank {rank} ({self.addresses[rank]})" if rank < len(self.addresses) else f"rank {rank}"


def line_port(first: int) -> int:
    """The port of rank 0's lifeline, given the first one that MLX uses there; far from where MLX's others are."""
    return first - _BETWEEN_PORTS if first >= 1024 + _BETWEEN_PORTS else first + _BETWEEN_PORTS


def launched() -> Launch | None:
    """How this process was started together with others; None: it was not, or it is the only one.

    Raises:
        MlxmathError: the launcher's variables do not fit together.
    """
    env = os.environ
    for rank, size in (("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"), ("PMI_RANK", "PMI_SIZE")):
        if rank in env and "MLX_RANK" not in env and int(env.get(size, "1")) > 1:
            return Launch("mpi", int(env[rank]), int(env[size]))
    if "MLX_RANK" not in env:
        return None
    rank_number = int(env["MLX_RANK"])
    if "MLX_HOSTFILE" in env:
        text = _read("MLX_HOSTFILE")
        if not text.strip():
            return None  # what mlx.launch writes for a single process
        try:
            places = [address[0].rpartition(":") for address in json.loads(text)]
            addresses = tuple(host.strip("[]") for host, _, _ in places)
            found = Launch(
                "ring", rank_number, len(places), addresses, line_port(int(places[0][2])), _digest(text.strip())
            )
        except (ValueError, LookupError, TypeError, AttributeError):
            raise MlxmathError(f'MLX_HOSTFILE {env["MLX_HOSTFILE"]}: expected [["ADDRESS:PORT"], ...].') from None
    elif "MLX_IBV_DEVICES" in env and "MLX_JACCL_COORDINATOR" in env:
        text, coordinator = _read("MLX_IBV_DEVICES"), env["MLX_JACCL_COORDINATOR"]
        address, _, port = coordinator.rpartition(":")
        try:
            found = Launch(
                "jaccl", rank_number, len(json.loads(text)), (address.strip("[]"),), line_port(int(port)),
                _digest(coordinator + text.strip()),
            )  # fmt: skip
        except (ValueError, TypeError):
            raise MlxmathError(
                f"MLX_IBV_DEVICES {env['MLX_IBV_DEVICES']}: expected a list of lists of devices, and "
                f"MLX_JACCL_COORDINATOR {coordinator}: expected ADDRESS:PORT."
            ) from None
    elif "NCCL_HOST_IP" in env and "MLX_WORLD_SIZE" in env:
        address, port = env["NCCL_HOST_IP"], env.get("NCCL_PORT", "12345")
        found = Launch(
            "nccl", rank_number, int(env["MLX_WORLD_SIZE"]), (address,), line_port(int(port)),
            _digest(f"{address} {port} {env['MLX_WORLD_SIZE']}"),
        )  # fmt: skip
    else:
        raise MlxmathError(
            f"MLX_RANK is {rank_number}, but nothing says who the other processes are (MLX_HOSTFILE for ring, "
            "MLX_IBV_DEVICES and MLX_JACCL_COORDINATOR for jaccl, NCCL_HOST_IP and MLX_WORLD_SIZE for nccl). Start "
            "them with mlx.launch, or one process without these variables."
        )
    if not 0 <= found.rank < found.size:
        raise MlxmathError(f"MLX_RANK is {found.rank}, but there are {found.size} processes, numbered from 0.")
    return found if found.size > 1 else None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _read(variable: str) -> str:
    try:
        return Path(os.environ[variable]).read_text()
    except OSError as error:
        raise MlxmathError(f"{variable}: {error}") from error
