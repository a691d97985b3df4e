"""Threads that compute with MLX at once, each on a core of its own."""

import functools
import threading
from concurrent.futures import ThreadPoolExecutor

import mlx.core as mx

from mlxmath.runtime.blas import can_limit_threads, num_usable_cores


class _Stream:
    """The calling thread's MLX stream, which ends with this object.

    Left to itself MLX ends it when the thread is already counted as joined. If the process ends just then, it aborts.
    """

    _of_thread = threading.local()

    @classmethod
    def end_with_thread(cls) -> None:
        """End the calling thread's stream as the last thing that the thread does."""
        cls._of_thread.stream = cls()

    def __del__(self) -> None:
        mx.clear_streams()


OF_PROCESS = "mlxmath"
"""How threads are called that stay, as those of NumPy's products do."""


def computing_threads(count: int, name: str = "worker") -> ThreadPoolExecutor:
    """Threads with MLX streams of their own. MLX makes a stream for each, and keeps it when the thread has ended."""
    return ThreadPoolExecutor(count, name, _Stream.end_with_thread)


@functools.cache
def thread_for_each_core() -> ThreadPoolExecutor:
    """The process's threads for work that is limited to one core each; a single one where products cannot be."""
    return computing_threads(num_usable_cores() if can_limit_threads() else 1, OF_PROCESS)
