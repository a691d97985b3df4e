"""`distill` with a real `mlx_lm.server` as the teacher."""

import json
import shutil
from pathlib import Path

from mlxmath.grading import grade
from tests.helpers import succeed
from tests.parity.serving import free_port, serving


def test_a_served_model_teaches_and_its_solutions_train(debug_run: Path, tmp_path: Path) -> None:
    for name in ("mlx_model", "adapters"):
        shutil.copytree(debug_run / name, tmp_path / name, ignore=shutil.ignore_patterns("checkpoints"))
    port = free_port()
    with serving(tmp_path, port):
        succeed(
            tmp_path, "distill", "--teacher-url", f"http://127.0.0.1:{port}/v1", "--teacher-model", "default_model",
            "--instruction", "", "--dataset", "demo", "--num-examples", "8", "--samples", "2", "--seed", "1",
            "--max-tokens", "48", "--concurrency", "4", "--min-validity", "0", "--keep", "all",
        )  # fmt: skip
    folder = tmp_path / "distilled"
    responses, kept, rejected = (
        [json.loads(line) for line in (folder / name).read_text().splitlines()]
        for name in ("responses.jsonl", "solutions.jsonl", "rejected.jsonl")
    )
    assert len({(row["key"], row["sample"]) for row in responses}) == len(responses) == 16
    assert {(row["id"], row["sample"]): row["correct"] for row in kept + rejected} == {
        (row["id"], row["sample"]):
            grade(row["response"], row["answer"], truncated=row["finish_reason"] == "length").correct
        for row in responses
    }  # fmt: skip
    assert kept and all(row["prompt_tokens"] > 0 and row["completion_tokens"] > 0 for row in responses)
    succeed(tmp_path, "train", "--debug", "--dataset", "distilled/solutions.jsonl", "--max-steps", "2",
            "--adapter-path", "student")  # fmt: skip
