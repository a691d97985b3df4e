"""Tokens out of a model: mlxmath's evaluation and rollouts, and mlx_lm's generation, one at a time and batched.

A job holds `model`, `backend`, `who` (a key of `WHO`), `prompts` (token ids), `max_tokens`, `num_generations` and
`concurrency`, and `keeps_answers` if the result is to hold them. Everything is drawn once before (a few tokens), so
that kernels are compiled.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.peers.worker import Job, Result, main, select_mlx_device

Prompts = list[list[int]]


def run(job: Job) -> Result:
    """Tokens/s of new tokens over all prompts, reading them included; memory."""
    import mlx.core as mx

    draw = WHO[job["who"]](job)
    few = job["prompts"][:2]
    draw(few, 4)
    mx.synchronize()
    mx.clear_cache()
    mx.reset_peak_memory()
    started = time.perf_counter()
    answers = draw(job["prompts"], job["max_tokens"])
    seconds = time.perf_counter() - started
    num_completions, num_tokens = len(answers), sum(map(len, answers))
    return {
        "num_prompts": len(job["prompts"]),
        "num_completions": num_completions,
        "num_tokens": num_tokens,
        "seconds": round(seconds, 3),
        "tokens_per_s": num_tokens / seconds,
        "completions_per_s": num_completions / seconds,
        "peak_device_bytes": mx.get_peak_memory(),
        **({"answers": answers} if job.get("keeps_answers") else {}),
    }


Draw = Callable[[Prompts, int], list[list[int]]]
"""Prompts and most new tokens each; gives the new tokens of each completion."""


def evaluation(job: Job) -> Draw:
    """As `mlxmath evaluate` does it: greedy, batched."""
    from mlxmath.generation.engine import Sampling, generate_batch

    model, tokenizer = _ours(job)

    def draw(prompts: Prompts, max_tokens: int) -> list[list[int]]:
        found = generate_batch(model, tokenizer, prompts, Sampling(max_tokens), concurrency=job["concurrency"])
        return [list(completion.tokens) for completion in found]

    return draw


def rollouts(job: Job) -> Draw:
    """As `mlxmath grpo` does it: several of each prompt, sampled, with their log-probabilities."""
    from mlxmath.config.methods import GrpoConfig
    from mlxmath.training.grpo.sampling import Prompt, roll_out

    model, tokenizer = _ours(job)

    def draw(prompts: Prompts, max_tokens: int) -> list[list[int]]:
        config = GrpoConfig(num_generations=job["num_generations"], max_completion_length=max_tokens)
        problems = [Prompt(i, "", "", tuple(tokens)) for i, tokens in enumerate(prompts)]
        found = roll_out(model, tokenizer, problems, config, seed=0, step=0, concurrency=job["concurrency"])
        return [list(completion.drawn) for completion in found]

    return draw


def mlx_lm_single(job: Job) -> Draw:
    """`mlx_lm.generate`, one prompt after the other; of a quarter of the prompts, or it takes too long."""
    from mlx_lm import stream_generate

    model, tokenizer = _mlx_lm(job)

    def draw(prompts: Prompts, max_tokens: int) -> list[list[int]]:
        chosen = prompts[: max(1, len(prompts) // 4)]
        return [
            [response.token for response in stream_generate(model, tokenizer, tokens, max_tokens=max_tokens)]
            for tokens in chosen
        ]

    return draw


def mlx_lm_batch(job: Job) -> Draw:
    """`mlx_lm.generate.batch_generate` at the same concurrency."""
    from mlx_lm.generate import batch_generate

    model, tokenizer = _mlx_lm(job)

    def draw(prompts: Prompts, max_tokens: int) -> list[list[int]]:
        found = batch_generate(
            model, tokenizer, prompts, max_tokens=max_tokens, return_token_ids=True,
            completion_batch_size=job["concurrency"], prefill_batch_size=min(16, job["concurrency"]),
        )  # fmt: skip
        return [list(tokens) for tokens in found.token_ids]

    return draw


WHO: dict[str, Callable[[Job], Draw]] = {
    "evaluation": evaluation,
    "rollouts": rollouts,
    "mlx_lm_single": mlx_lm_single,
    "mlx_lm_batch": mlx_lm_batch,
}


def _ours(job: Job) -> tuple[Any, Any]:
    from mlxmath.generation.model import load_generation_tokenizer
    from mlxmath.models.load import load_model
    from mlxmath.runtime.device import BACKENDS

    device = BACKENDS[job["backend"]]().open(seed=0)
    folder = Path(job["model"])
    return load_model(folder, device.compute_dtype).model, load_generation_tokenizer(folder)


def _mlx_lm(job: Job) -> tuple[Any, Any]:
    import mlx.core as mx
    from mlx_lm import load

    select_mlx_device(job)
    model, tokenizer, *_ = load(job["model"])
    if job["backend"] == "cpu":
        model.set_dtype(mx.float32)
    mx.eval(model.parameters())
    return model, tokenizer


if __name__ == "__main__":
    main(run, ("mlx", "mlx-lm"))
