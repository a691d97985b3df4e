"""Fixtures shared by all tests. A fast BLAS is loaded before anything imports mlx.

It gets one thread: the models are tiny, and threads that wait for each other take most of the time of a machine whose
cores run tests already.
"""

import os
import shutil
import signal
import subprocess
import sys

for _signal in (signal.SIGINT, signal.SIGHUP):  # ignored under nohup, and so by every process that a test starts
    if signal.getsignal(_signal) is signal.SIG_IGN:
        signal.signal(_signal, signal.default_int_handler if _signal is signal.SIGINT else signal.SIG_DFL)

for _name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

from mlxmath.runtime.blas import preload  # noqa: E402

preload()

from collections.abc import Iterator  # noqa: E402
from dataclasses import dataclass  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import mlx.core as mx  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

from mlxmath.runtime.console import shown  # noqa: E402
from tests.chromium import CHROMIUM, FLAGS  # noqa: E402
from tests.helpers import succeed  # noqa: E402


@pytest.fixture(autouse=True)
def _as_in_a_command() -> Iterator[None]:
    """What is said is printed."""
    with shown():
        yield


@dataclass
class FakeRows:
    """Tokenized rows held in lists."""

    tokens: list[np.ndarray]
    masks: list[np.ndarray]

    @property
    def lengths(self) -> np.ndarray:
        return np.array([len(t) for t in self.tokens], np.int64)

    def row(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self.tokens[index], self.masks[index]

    def __len__(self) -> int:
        return len(self.tokens)


@pytest.fixture
def uneven_rows() -> FakeRows:
    """37 rows of 5 to 40 tokens (ids below 64), the first third of each not a target."""
    rng = np.random.default_rng(7)
    tokens = [rng.integers(1, 64, rng.integers(5, 41)) for _ in range(37)]
    masks = [(np.arange(len(t)) >= len(t) // 3).astype(np.uint8) for t in tokens]
    return FakeRows(tokens, masks)


@pytest.fixture
def dead_pid() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def make_tiny_llama(**changes: Any) -> Any:
    """A random two-block Llama with a vocabulary of 64, float32."""
    from mlx_lm.models.llama import Model, ModelArgs

    settings = {
        "model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48,
        "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "vocab_size": 64,
        "tie_word_embeddings": False,
    } | changes  # fmt: skip
    mx.random.seed(1)
    model = Model(ModelArgs.from_dict(settings))
    mx.eval(model.parameters())
    return model


@pytest.fixture
def tiny_llama() -> Any:
    return make_tiny_llama()


@pytest.fixture(scope="session")
def debug_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder after `train --debug`, one for all tests; not to be changed."""
    folder = tmp_path_factory.mktemp("debug")
    succeed(folder, "train", "--debug")
    return folder


@pytest.fixture
def prepared(debug_run: Path, tmp_path: Path) -> Path:
    """A folder with the converted model and the cache, without adapters."""
    for name in ("mlx_model", "cache"):
        shutil.copytree(debug_run / name, tmp_path / name)
    return tmp_path


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A browser without a window."""
    if CHROMIUM is None:
        pytest.skip("no Chromium here (Debian: apt-get install chromium)")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (mlxmath[browser])")
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield launched
        launched.close()
