"""lm-evaluation-harness asks `mlx_lm.server` with an adapter, as the README shows, on a local task."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ENVIRONMENT, succeed
from tests.parity.serving import free_port, serving

pytest.importorskip("lm_eval", reason="the lm-eval extra is not installed")
pytest.importorskip("aiohttp", reason="the lm-eval extra is not installed")

TASK = """\
task: demo_words
dataset_path: json
dataset_kwargs:
  data_files: {{test: {file}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{problem}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: [], do_sample: false, max_gen_toks: 60}}
filter_list:
  - name: final
    filter:
      - {{function: regex, regex_pattern: '#### (-?[0-9]+)'}}
      - {{function: take_first}}
metric_list:
  - {{metric: exact_match}}
metadata: {{version: 1}}
"""


def test_the_harness_finds_what_evaluate_finds(tmp_path: Path) -> None:
    succeed(tmp_path, "train", "--debug", "--num-examples", "40")
    source = Path(__file__).parents[2] / "mlxmath" / "demo" / "problems" / "train.jsonl"
    rows = source.read_text().splitlines()[:12]
    (tmp_path / "words.jsonl").write_text("\n".join(rows) + "\n")
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "demo_words.yaml").write_text(TASK.format(file=tmp_path / "words.jsonl"))
    succeed(tmp_path, "evaluate", "--benchmark", "words.jsonl", "--max-tokens", "60", "--run-name", "ours")
    lines = (tmp_path / "evaluation_results" / "ours" / "samples.jsonl").read_text().splitlines()
    ours = [json.loads(line) for line in lines]

    port = free_port()
    with serving(tmp_path, port):
        arguments = {
            "model": "default_model", "base_url": f"http://127.0.0.1:{port}/v1/chat/completions", "num_concurrent": "2",
            "tokenized_requests": "False", "eos_string": "</s>",
        }  # fmt: skip
        result = subprocess.run(
            [sys.executable, "-m", "lm_eval", "run", "--model", "local-chat-completions",
             "--model_args", ",".join(f"{k}={v}" for k, v in arguments.items()), "--apply_chat_template",
             "--include_path", str(tasks), "--tasks", "demo_words", "--output_path", str(tmp_path / "harness"),
             "--log_samples"],
            cwd=tmp_path, env=ENVIRONMENT
            | {"PYTHONPATH": "", "OPENAI_API_KEY": "none", "HF_DATASETS_CACHE": str(tmp_path / "hf")},  # it needs torch
            capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    (log,) = (tmp_path / "harness").rglob("samples_*.jsonl")
    theirs = sorted((json.loads(line) for line in log.read_text().splitlines()), key=lambda row: row["doc_id"])
    texts = [row["resps"][0][0].strip() for row in theirs]
    assert texts == [row["response"].strip() for row in ours]
    stated = [re.search(r"#### (-?\d+)", row["response"]) for row in ours]
    expected = sum(bool(m) and m[1] == row["gold"] for m, row in zip(stated, ours, strict=True)) / len(ours)
    (scores,) = (tmp_path / "harness").rglob("results_*.json")
    assert json.loads(scores.read_text())["results"]["demo_words"]["exact_match,final"] == pytest.approx(expected)
    assert expected > 0
