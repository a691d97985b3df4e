"""How much faster is `evaluate --compare` on the demo's 200 problems than `mlx_lm.generate`, one problem at a time?

    python benchmarks/bench_evaluate.py            # trains the demo's adapter first (about two minutes)
    python benchmarks/bench_evaluate.py --folder F # F holds mlx_model/ and adapters/ of `python -m mlxmath.demo`

Both answer the same prompts greedily, one after the other. Answers that differ are explained: a tie is a
first differing token whose logit is within 1e-3 of the other one's in a single forward pass.
Writes benchmarks/results/evaluate.json.
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import common
from benchmarks.processes import run_command

TIE = 1e-3
LIMIT_S = 900


def main() -> None:
    """Measure and write the results."""
    parser = common.command_line(__doc__, "evaluate.json")
    parser.add_argument("--folder", type=Path, help="with mlx_model/ and adapters/ of the demo")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = options.folder or Path(name)
        if options.folder is None:
            run_command(folder, "mlxmath.demo", timeout_s=LIMIT_S)
        asked = ("--compare", "--overwrite", "--run-name", "bench", "--results-path", str(Path(name) / "results"))
        seconds = run_command(folder, "evaluate", *asked, timeout_s=LIMIT_S)
        rows = (Path(name) / "results" / "bench" / "samples.jsonl").read_text(encoding="utf-8").splitlines()
        samples = [json.loads(row) for row in rows]
        result = compare(folder, samples) | {"whole_command_s": round(seconds, 2)}
    record = {"what": __doc__.splitlines()[0], **result, "machine": common.machine(("mlx", "mlx-lm", "mlxmath"))}
    common.save_json(options.out, record)
    table = [
        [label, f"{found['batched_tokens_per_s']:,.0f}", f"{found['one_at_a_time_tokens_per_s']:,.0f}",
         f"{found['speedup']:.1f}", str(found["identical"]), str(found["ties"]), str(found["unexplained"])]
        for label, found in (*result["models"].items(), ("both", result["together"]))
    ]  # fmt: skip
    common.show_table(
        f"evaluate --compare: {result['whole_command_s']:.1f} s with report",
        ["model", "batched tok/s", "one at a time tok/s", "times", "identical", "ties", "unexplained"],
        table,
    )


def compare(folder: Path, samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Answer every problem with `mlx_lm.generate` and set the answers and times beside those of `evaluate`."""
    import mlx.core as mx
    from mlx_lm import generate, load

    from mlxmath.data.render import encode_prompt
    from mlxmath.data.templates import get_template
    from mlxmath.evaluation.benchmarks import BENCHMARKS

    mx.set_default_device(mx.cpu if not mx.metal.is_available() and not mx.cuda.is_available() else mx.gpu)
    models: dict[str, Any] = {}
    for label, adapter in (("base", None), ("tuned", str(folder / "adapters"))):
        model, tokenizer = load(str(folder / "mlx_model"), adapter_path=adapter)
        own = [sample for sample in samples if sample["contestant"] == label]
        prompts = [encode_prompt(tokenizer, get_template("tutor").prompt(sample["question"])) for sample in own]
        generate(model, tokenizer, prompts[0], max_tokens=8)
        started = time.perf_counter()
        texts = [generate(model, tokenizer, prompt, max_tokens=BENCHMARKS["demo"].max_tokens) for prompt in prompts]
        seconds = time.perf_counter() - started
        differing = [
            (prompt, text, sample["response"])
            for prompt, text, sample in zip(prompts, texts, own, strict=True)
            if text != sample["response"]
        ]
        ties = sum(is_tie(model, tokenizer, *found) for found in differing)
        tokens = sum(sample["completion_tokens"] for sample in own)
        batched = sum(sample["seconds"] for sample in own)
        models[label] = {
            "problems": len(own), "tokens": tokens, "batched_s": round(batched, 2),
            "one_at_a_time_s": round(seconds, 2), "batched_tokens_per_s": tokens / batched,
            "one_at_a_time_tokens_per_s": tokens / seconds, "speedup": seconds / batched,
            "identical": len(own) - len(differing), "ties": ties, "unexplained": len(differing) - ties,
        }  # fmt: skip
    sums = {
        key: sum(found[key] for found in models.values())
        for key in ("problems", "tokens", "batched_s", "one_at_a_time_s", "identical", "ties", "unexplained")
    }
    together = sums | {
        "batched_tokens_per_s": sums["tokens"] / sums["batched_s"],
        "one_at_a_time_tokens_per_s": sums["tokens"] / sums["one_at_a_time_s"],
        "speedup": sums["one_at_a_time_s"] / sums["batched_s"],
    }
    return {"models": models, "together": together}


def is_tie(model: Any, tokenizer: Any, prompt: list[int], one: str, other: str) -> bool:
    """Whether the first tokens in which two greedy answers differ have logits closer than `TIE`."""
    import mlx.core as mx

    first, second = (tokenizer.encode(text, add_special_tokens=False) for text in (one, other))
    end = next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second)))
    choices = [ids[end] if end < len(ids) else tokenizer.eos_token_id for ids in (first, second)]
    logits = model(mx.array([prompt + first[:end]]))[0, -1]
    return abs(float(logits[choices[0]] - logits[choices[1]])) < TIE


if __name__ == "__main__":
    main()
