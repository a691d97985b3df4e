"""Several processes that share an evaluation, started by `mlx.launch`; with one process, nothing happens."""

import os
from pathlib import Path

import mlx.core as mx
import numpy as np

from mlxmath.errors import MlxmathError
from mlxmath.evaluation.ask import Share

_LAUNCHED = ("MLX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")


class Ranks:
    """This process's place among its fellows.

    Raises:
        MlxmathError: a launcher started this process, and the others cannot be reached.
    """

    def __init__(self) -> None:
        self._group: mx.distributed.Group | None = None
        if any(name in os.environ for name in _LAUNCHED):
            try:
                self._group = mx.distributed.init(strict=True)
            except RuntimeError as error:
                raise MlxmathError(f"mlx.launch: the processes do not find each other: {error}") from error

    @property
    def share(self) -> Share:
        """What this process answers."""
        return Share() if self._group is None else Share(self._group.rank(), self._group.size())

    @property
    def first(self) -> bool:
        """Whether this process merges and reports."""
        return self.share.rank == 0

    def wait(self) -> None:
        """Until all processes are here."""
        if self._group is not None:
            mx.eval(mx.distributed.all_sum(mx.ones(1), group=self._group, stream=mx.cpu))

    def gather(self, path: Path) -> list[bytes]:
        """Every process's file at `path`, which need not lie on one disk."""
        own = path.read_bytes() if path.exists() else b""
        if self._group is None:
            return [own]
        size = mx.array([len(own)], mx.int32)
        sizes = mx.distributed.all_gather(size, group=self._group, stream=mx.cpu).tolist()
        padded = np.zeros(max(1, *sizes), np.uint8)
        padded[: len(own)] = np.frombuffer(own, np.uint8)
        gathered = np.array(mx.distributed.all_gather(mx.array(padded), group=self._group, stream=mx.cpu))
        rows = gathered.reshape(len(sizes), -1)
        return [rows[i, :length].tobytes() for i, length in enumerate(sizes)]
