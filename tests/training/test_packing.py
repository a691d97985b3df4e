"""`--batching pack` with a model whose rows cannot be packed: buckets take its place, and a line says why."""

from pathlib import Path
from typing import Any

import pytest

from tests.data.material import write_lines
from tests.helpers import run
from tests.models import architectures


@pytest.mark.parametrize(("method", "unit"), [("train", "sequences"), ("dpo", "pairs")])
def test_buckets_take_its_place(tmp_path: Path, method: str, unit: str) -> None:
    folder = architectures.write("lfm2", tmp_path)
    rows: list[dict[str, Any]] = [
        {"prompt": f"{n} + 9", "chosen": f"so {n + 9}", "rejected": f"or {n} 9"}
        if method == "dpo"
        else {"question": f"{n} + 9", "answer": f"so #### {n + 9}"}
        for n in range(10, 20)
    ]
    write_lines(tmp_path / "data.jsonl", rows)
    states = {}
    for batching in ("pack", "bucket"):
        finished = run(
            tmp_path, method, "--model", folder, "--mlx-path", folder, "--template", "plain", "--max-steps", "2",
            "--max-seq-len", "48", "--batch-size", "4", "--grad-accumulation-steps", "1", "--dataset", "data.jsonl",
            "--backend", "cpu", "--batching", batching, "--adapter-path", batching,
        )  # fmt: skip
        assert finished.returncode == 0, finished.stderr
        said = [line for line in finished.stderr.splitlines() if line.startswith("--batching pack: buckets")]
        assert len(said) == (batching == "pack") and unit in finished.stderr
        states[batching] = (tmp_path / batching / "adapters.safetensors").read_bytes()
    assert states["pack"] == states["bucket"]
