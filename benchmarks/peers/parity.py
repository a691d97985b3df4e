"""The job's device against the CPU: loss and gradients of every objective, on the same small model and rows.

The CPU computes in float32, by its own kernels. The device does it twice, in float32 and in its own type. A job holds
`backend` and `sizes`: what of a llama's config is not the default.
"""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.peers.worker import Job, Result, main

SIZES = {
    "model_type": "llama", "hidden_size": 256, "num_hidden_layers": 2, "intermediate_size": 512,
    "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "vocab_size": 1000,
    "tie_word_embeddings": False,
}  # fmt: skip
BITS = {"sft, 4-bit weights": 4}
LOWEST = {"float32": 2e-3, "bfloat16": 8e-2}
"""Relative differences up to which the device agrees with the CPU. (Its float32 products may round to TF32.)"""


def run(job: Job) -> Result:
    """By objective and type: relative differences of loss and gradients, and whether they are small enough."""
    import mlx.core as mx

    from mlxmath.models.kernels import kernels_for
    from mlxmath.models.kernels.cpu import CpuKernels
    from mlxmath.models.kernels.portable import Kernels
    from mlxmath.runtime.device import BACKENDS

    backend = BACKENDS[job["backend"]]()
    device = backend.open(seed=0)
    default = mx.default_device()
    sizes: dict[str, Any] = SIZES | job["sizes"]
    cases, cpu = objectives(sizes["hidden_size"]), CpuKernels(1)
    rows = make_rows(sizes["vocab_size"])
    found: dict[str, Any] = {}
    for name, (objective, make) in cases.items():
        batch = make(rows, backend.bucket_multiple)
        mx.set_default_device(mx.cpu)
        expected = gradients_of(name, objective, batch, cpu, "float32", job["sizes"])
        mx.set_default_device(default)
        for dtype in dict.fromkeys(("float32", device.compute_dtype)):
            own = Kernels() if backend.name == "cpu" else kernels_for(replace(device, compute_dtype=dtype))
            got = gradients_of(name, objective, batch, own, dtype, job["sizes"])
            differences = {key: _relative(got[1][key], array) for key, array in expected[1].items()}
            loss = abs(got[0] - expected[0]) / abs(expected[0])
            worst = max(differences, key=differences.__getitem__)
            agrees = max(loss, differences[worst]) <= LOWEST[dtype]
            found[f"{name}, {dtype}"] = {
                "loss": loss, "gradient": differences[worst], "worst": worst, "agrees": agrees,
            }  # fmt: skip
    return {
        "cases": found,
        "worst_float32": max(max(f["loss"], f["gradient"]) for key, f in found.items() if key.endswith("float32")),
        "disagreeing": [key for key, value in found.items() if not value["agrees"]],
    }


def _relative(a: Any, b: Any) -> float:
    """‖a − b‖ / ‖b‖."""
    import numpy as np

    one, other = (np.array(x, np.float64) for x in (a, b))
    return float(np.linalg.norm(one - other) / max(np.linalg.norm(other), 1e-12))


def make_rows(vocabulary: int) -> list[tuple[Any, Any]]:
    """Six rows of 40 to 120 tokens with their masks."""
    import numpy as np

    rng = np.random.default_rng(3)
    lengths = rng.integers(40, 121, 6)
    return [
        (rng.integers(1, vocabulary, length), (np.arange(length) >= length // 3).astype(np.uint8)) for length in lengths
    ]


class Rows:
    """`mlxmath.data.batch.Rows` out of a list."""

    def __init__(self, rows: list[tuple[Any, Any]]) -> None:
        import numpy as np

        self._rows = rows
        self.lengths = np.array([len(tokens) for tokens, _ in rows], np.int64)

    def row(self, index: int) -> tuple[Any, Any]:
        """Tokens and mask."""
        return self._rows[index]

    def __len__(self) -> int:
        return len(self._rows)


def objectives(width: int) -> dict[str, tuple[Any, Any]]:
    """By name: the objective, and what makes its batch of rows and the padding's multiple. `width`: hidden states'."""
    from mlxmath.config.losses import DpoConfig, RewardModelConfig
    from mlxmath.config.methods import GrpoConfig
    from mlxmath.data.batch import Shape, make_batch, make_packed
    from mlxmath.training.dpo import dpo_loss
    from mlxmath.training.grpo.loss import grpo_loss
    from mlxmath.training.reward_model import bradley_terry_loss
    from mlxmath.training.sft import sft_loss

    def padded(rows: list[Any], multiple: int) -> Any:
        return make_batch(Rows(rows), tuple(range(len(rows))), Shape(multiple, few=True))

    def packed(rows: list[Any], multiple: int) -> Any:
        return make_packed(Rows(rows), tuple(range(len(rows))), Shape(multiple, few=True))

    cases: dict[str, tuple[Any, Any]] = {
        "sft": (sft_loss, padded),
        "sft, packed rows": (sft_loss, packed),
        **dict.fromkeys(BITS, (sft_loss, padded)),
    }
    for name, settings in {
        "grpo, dapo": {"loss_type": "dapo"},
        "grpo, beta": {"loss_type": "grpo", "beta": 0.04},
        "grpo, sequences": {"importance_sampling_level": "sequence", "epsilon_high": 0.3},
    }.items():
        cases[name] = (partial(grpo_loss, config=GrpoConfig(**settings)), drawn)
    for loss_type in ("sigmoid", "ipo", "orpo"):
        cases[f"dpo, {loss_type}"] = (
            partial(dpo_loss, config=DpoConfig(loss_type=loss_type)),
            partial(paired, width=width),
        )
    cases["reward model"] = (
        partial(bradley_terry_loss, config=RewardModelConfig()),
        partial(paired, width=width, scored=True),
    )
    return cases


def drawn(rows: list[Any], multiple: int) -> Any:
    """The rows as completions with advantages, and log-probabilities that have moved since they were drawn."""
    import numpy as np

    from mlxmath.config.training import TrainingConfig
    from mlxmath.data.batch import Shape
    from mlxmath.training.grpo.batches import RolloutRows, RolloutSampler, Trajectory

    rng = np.random.default_rng(4)
    trajectories = []
    for i, (tokens, mask) in enumerate(rows):
        count = int(mask[1:].sum())
        prompt, answer = tokens[: len(tokens) - count], tokens[len(tokens) - count :]
        logprobs, reference = (tuple((-6.9 + 0.2 * rng.normal(size=count)).tolist()) for _ in range(2))
        trajectories.append(
            Trajectory(
                i, tuple(prompt.tolist()), tuple(answer.tolist()), float(rng.normal()), 0.01, logprobs, reference
            )
        )
    plan = RolloutSampler(RolloutRows(trajectories), TrainingConfig(), 1 << 20, Shape(multiple, few=True))
    return plan.whole(0, 0).batch(0)


def paired(rows: list[Any], multiple: int, *, width: int, scored: bool = False) -> Any:
    """The rows as pairs with a reference, or for a score head."""
    import mlx.core as mx
    import numpy as np

    from mlxmath.config.training import TrainingConfig
    from mlxmath.data.batch import Shape
    from mlxmath.data.pairs import Pairs, PairSampler

    rng = np.random.default_rng(4)
    pairs = Pairs(Rows(rows[: len(rows) // 2 * 2]), scored=scored)
    batch = (
        PairSampler(pairs, TrainingConfig(), 1 << 20, Shape(multiple, few=True))
        .step(np.arange(len(pairs)), 0, 0)
        .batch(0)
    )
    reference_B = mx.array(-6.9 * np.array(batch.extra.counts_B) + rng.normal(size=2 * len(pairs)), mx.float32)
    score_D = mx.array(rng.normal(size=width) / 8, mx.float32)
    return replace(batch, extra=batch.extra._replace(reference_B=reference_B, score_D=score_D))


def gradients_of(
    name: str, objective: Any, batch: Any, kernels: Any, dtype: str, sizes: dict[str, Any]
) -> tuple[float, dict[str, Any]]:
    """Loss sum, and gradients by name, on MLX's default device."""
    import mlx.core as mx
    import mlx.nn as nn
    from mlx.utils import tree_flatten
    from mlx_lm.models.llama import Model, ModelArgs

    from mlxmath.config.schema import LoraConfig
    from mlxmath.models.lora.inject import inject
    from mlxmath.models.tuning import choose_products, use
    from mlxmath.training.gradients import choose_gradients

    device = mx.default_device()
    mx.set_default_device(mx.cpu)  # the same numbers whatever the device
    mx.random.seed(5)
    model = Model(ModelArgs.from_dict(SIZES | sizes))
    mx.eval(model.parameters())
    if name in BITS:
        nn.quantize(model, group_size=64, bits=BITS[name])
    inject(model, LoraConfig(rank=8, targets=("q_proj", "v_proj", "down_proj")))
    for module in model.modules():
        if "lora_b" in module:
            module.lora_b = 0.05 * mx.random.normal(module.lora_b.shape)
    adapters = model.trainable_parameters()
    model.set_dtype(getattr(mx, dtype))
    model.update(adapters)
    mx.eval(model.state)
    mx.set_default_device(device)
    model.train()
    if device.type != mx.cpu:
        use(model, choose_products(model, batch.inputs_BL.size))
    way = choose_gradients(model, objective, kernels, compiled=kernels.compiles)
    loss, gradients = way.loss_and_gradients(batch)
    mx.eval(loss, gradients)
    return loss.reshape(-1)[0].item(), dict(tree_flatten(gradients))


if __name__ == "__main__":
    main(run, ("mlx", "mlx-lm"))
