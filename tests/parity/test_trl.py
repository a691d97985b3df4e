"""GRPO's loss, gradient and advantages against TRL's own code, off-policy."""

import warnings
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mlxmath.config.methods import GrpoConfig
from tests.training.grpo_case import BATCH_SIZE, LENGTH, LENGTHS, LOSSES, ROWS, TRUNCATED, case, entropies, ours

torch = pytest.importorskip("torch", reason="the parity extra is not installed")


@pytest.fixture(scope="module")
def trainer() -> Any:
    """The class; its loss is a method that needs little of a trainer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("trl", reason="the parity extra is not installed").GRPOTrainer


def in_trl(trainer: Any, config: GrpoConfig, case: dict[str, np.ndarray]) -> tuple[float, np.ndarray]:
    """Loss and gradient of the logits, of all batches of an optimizer step."""
    logits = torch.tensor(case["logits"], requires_grad=True)
    scaled = torch.log_softmax(logits / config.temperature, -1)
    mask = (torch.arange(LENGTH)[None] < torch.tensor(LENGTHS)[:, None]).double()
    if config.mask_truncated_completions:
        mask = mask * torch.tensor(~TRUNCATED)[:, None]
    tokens = torch.tensor(case["tokens"])
    logprobs = scaled.gather(-1, tokens[..., None])[..., 0]
    accelerator = SimpleNamespace(num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x)
    found = torch.tensor(entropies(case, config.temperature))
    pads = {"pad_across_processes": lambda values, **_: values}

    def highest(threshold: float) -> Any:
        """TRL's own choice, among the tokens of the whole step."""
        choosing = SimpleNamespace(accelerator=SimpleNamespace(gather=lambda x: x, **pads))
        return trainer.get_high_entropy_mask(choosing, found, mask, threshold)

    num_batches = ROWS // BATCH_SIZE
    total = torch.zeros(())
    for start in range(0, ROWS, BATCH_SIZE):
        rows = slice(start, start + BATCH_SIZE)
        stand_in: Any = SimpleNamespace(
            _get_per_token_logps_and_entropies=lambda *_, rows=rows, **__: (logprobs[rows], found[rows], None),
            get_high_entropy_mask=lambda of_batch, mask_of_batch, threshold, rows=rows: highest(threshold)[rows],
            aux_loss_enabled=False, top_entropy_quantile=config.top_entropy_quantile, off_policy_mask_threshold=None,
            use_vllm=False, _entropy_bonus_enabled=False, beta=config.beta, loss_type=config.loss_type,
            importance_sampling_level=config.importance_sampling_level, epsilon_low=config.epsilon,
            epsilon_high=config.epsilon if config.epsilon_high is None else config.epsilon_high,
            max_completion_length=config.max_completion_length, current_gradient_accumulation_steps=num_batches,
            model=SimpleNamespace(training=True), accelerator=accelerator,
            args=SimpleNamespace(
                delta=None, use_bias_correction_kl=False, steps_per_generation=num_batches,
                sapo_temperature_pos=config.sapo_temperature_pos, sapo_temperature_neg=config.sapo_temperature_neg,
            ),
            _metrics={"train": defaultdict(list)},
        )  # fmt: skip
        inputs = {
            "prompt_ids": tokens[rows, :1], "prompt_mask": mask[rows, :1], "completion_ids": tokens[rows],
            "completion_mask": mask[rows], "advantages": torch.tensor(case["advantages"][rows]),
            "old_per_token_logps": torch.tensor(case["old"][rows]),
            "ref_per_token_logps": torch.tensor(case["reference"][rows]), "num_items_in_batch": mask.sum(),
        }  # fmt: skip
        total = total + trainer._compute_loss(stand_in, None, inputs)
    total.backward()
    return total.item(), logits.grad.numpy()


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("loss_type", LOSSES)
@pytest.mark.parametrize(
    "more",
    [
        {"beta": 0.3, "temperature": 0.8, "epsilon_high": 1.2},
        {"epsilon_high": 0.35, "mask_truncated_completions": True, "sapo_temperature_neg": 1.4},
        {"epsilon_high": 0.35, "top_entropy_quantile": 0.3, "beta": 0.1, "temperature": 1.3},
    ],
)
def test_loss_and_gradient_equal_those_of_trl(trainer: Any, loss_type: Any, level: Any, more: Any) -> None:
    config = GrpoConfig(loss_type=loss_type, importance_sampling_level=level, max_completion_length=LENGTH + 2, **more)
    loss, gradient = in_trl(trainer, config, case())
    sums, found = ours(config, case())
    assert sums[0] == pytest.approx(loss, abs=1e-5)
    np.testing.assert_allclose(found, gradient, atol=1e-5)
