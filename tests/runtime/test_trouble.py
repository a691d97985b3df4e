"""Errors of devices, in the words that MLX, CUDA and NumPy have for them."""

import click
import pytest
from click.testing import CliRunner

from mlxmath.commands import options
from mlxmath.runtime.trouble import trouble

BUSY = (
    "[METAL] Command buffer execution failed: Impacting Interactivity "
    "(0000000e:kIOGPUCommandBufferCallbackErrorImpactingInteractivity)."
)
FULL = "[metal::malloc] Resource limit (499000) exceeded."


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError(BUSY), "display"),
        (RuntimeError(FULL), "as many arrays"),
        (RuntimeError("[malloc] Unable to allocate 123456789 bytes."), "out of memory"),
        (RuntimeError("[METAL] Command buffer execution failed: Insufficient Memory (00000008:kIOGPU…)"), "memory"),
        (RuntimeError("cudaMallocAsync(&data, size, stream) failed: out of memory"), "out of memory"),
        (MemoryError(), "out of memory"),
        (RuntimeError("[METAL] Command buffer execution failed: page fault"), None),
        (ValueError("[matmul] Last dimension of first input"), None),
    ],
)
def test_what_is_recognised(error: Exception, words: str | None) -> None:
    found = trouble(error)
    assert found is None if words is None else found is not None and words in found.what


@pytest.mark.parametrize("text", [BUSY, FULL])
def test_any_command_explains_it_in_a_line(text: str) -> None:
    @options.command("test")
    def main() -> None:
        raise RuntimeError(text)

    result = CliRunner().invoke(main)
    (line,) = result.stderr.strip().splitlines()
    assert result.exit_code == 1 and text in line and "Use a smaller --m" in line and "defect" not in line


def test_an_unknown_one_is_a_defect() -> None:
    @options.command("test")
    def main() -> None:
        raise RuntimeError("something else")

    assert "defect" in CliRunner().invoke(main).stderr
    assert isinstance(main, click.Command)
