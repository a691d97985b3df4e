"""What a teacher says of a dataset's own solutions, computed once: its K most likely tokens and the rest's mass.

The file `teacher-<fingerprint>.bin` in the cache folder holds a SHA-256 of what follows, then two arrays as NumPy
writes them. It is found by all that it depends on.

Shapes: T targets of all solutions together, K tokens, J = K + 1.
"""

import hashlib
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlxmath.data.batch import Shape
from mlxmath.errors import MlxmathError
from mlxmath.evaluation.samples import fingerprint
from mlxmath.models.divergence import top_logprobs
from mlxmath.models.load import num_embeddings
from mlxmath.runtime.console import Progress, say, size, warn
from mlxmath.runtime.files import atomic_write
from mlxmath.runtime.locks import making
from mlxmath.training.gkd.loss import TeacherOutputs
from mlxmath.training.grpo.batches import RolloutRows, RolloutSampler, Trajectory
from mlxmath.training.grpo.prompts import Prompts
from mlxmath.training.setup import Run

Kept = tuple[NDArray[np.int32], NDArray[np.float32]]
"""Ids (T, K) and log-probabilities (T, J) of one solution."""
_DIGEST_BYTES = 32


def kept_of(
    run: Run, data: Prompts, identity: Mapping[str, Any], teacher: Callable[[], TeacherOutputs]
) -> dict[int, Kept]:
    """What the teacher says of each problem's solution, by the problem's id: from the cache, or asked and kept there.

    Args:
        run: its settings and its model.
        data: problems with solutions.
        identity: of the teacher.
        teacher: loads it, if it is needed.

    Raises:
        MlxmathError: the cache cannot be read or written.
    """
    config = run.config.gkd
    key = [
        identity, data.fingerprint, config.teacher_top_k, config.temperature, run.device.compute_dtype,
        num_embeddings(run.model),
    ]  # fmt: skip
    path = Path(run.config.data.cache_dir).expanduser() / f"teacher-{fingerprint(key)}.bin"
    with run.ranks.in_turn("asking the teacher"), making(path, "mlxmath gkd"):
        found = _read(path)
        if found is None:
            found = _ask(run, data, teacher())
            stream = io.BytesIO()
            for array in found:
                np.save(stream, array, allow_pickle=False)
            atomic_write(path, hashlib.sha256(stream.getbuffer()).digest() + stream.getvalue())
        say(f"what the teacher says of the solutions is in {path} ({size(path.stat().st_size)})")
    ends = np.cumsum([len(prompt.solution) for prompt in data.prompts])[:-1]
    parts = zip(*(np.split(array, ends) for array in found), strict=True)
    return dict(zip((prompt.id for prompt in data.prompts), parts, strict=True))


def _read(path: Path) -> Kept | None:
    """Of all solutions; None if the file is not there or, with a warning, damaged."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise MlxmathError(f"{path} cannot be read: {error.strerror}; make it readable, or remove it.") from None
    if hashlib.sha256(data[_DIGEST_BYTES:]).digest() != data[:_DIGEST_BYTES]:
        warn(f"{path} is damaged, and is made again")
        return None
    stream = io.BytesIO(data[_DIGEST_BYTES:])
    return np.load(stream, allow_pickle=False), np.load(stream, allow_pickle=False)


def _ask(run: Run, data: Prompts, teacher: TeacherOutputs) -> Kept:
    """Of all solutions, in micro-batches that are larger than those of training: nothing is kept of a forward pass."""
    config = run.config.gkd
    assert config.teacher_top_k is not None
    texts = [Trajectory(p.id, p.tokens, p.solution, 0.0, 0.0, (0.0,) * len(p.solution)) for p in data.prompts]
    rows = RolloutRows(texts)
    step = RolloutSampler(rows, run.config.training, 2 * run.max_tokens, Shape(run.backend.bucket_multiple)).whole(0, 0)
    progress = Progress("teacher", len(texts))
    by_row: dict[int, Kept] = {}
    for index, numbers in enumerate(step.micro_batches):
        ids_NK, logprobs_NJ = top_logprobs(
            teacher(step.batch(index)), teacher.head, config.teacher_top_k, config.temperature,
            most=num_embeddings(run.model),
        )  # fmt: skip
        ends = np.cumsum([len(texts[number].drawn) for number in numbers])[:-1]
        parts = zip(*(np.split(np.array(array), ends) for array in (ids_NK, logprobs_NJ)), strict=True)
        by_row |= dict(zip(numbers, parts, strict=True))
        progress.update(len(numbers))
        mx.clear_cache()
    progress.close()
    ids, logprobs = zip(*(by_row[number] for number in range(len(texts))), strict=True)
    return np.concatenate(ids), np.concatenate(logprobs)
