"""Preference losses and gradients against TRL's own code, which gets its logits from us."""

import warnings
from collections import defaultdict
from types import MethodType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mlxmath.config.losses import DpoConfig
from tests.training.preference_case import LENGTH, LENGTHS, case, ours

torch = pytest.importorskip("torch", reason="the parity extra is not installed")
ACCELERATOR = SimpleNamespace(device="cpu", gather_for_metrics=lambda x: x, gather=lambda x: x)


def padded(data: dict[str, np.ndarray]) -> tuple[Any, Any, Any]:
    """Hidden states, logits (of a last position that predicts nothing too) and labels (a prompt's token first)."""
    hidden = torch.tensor(data["hidden"], requires_grad=True)
    logits = torch.nn.functional.pad(hidden @ torch.tensor(data["head"]).T, (0, 0, 0, 1))
    labels = torch.tensor(np.where(np.arange(LENGTH) < LENGTHS[:, None], data["tokens"], -100))
    return hidden, logits, torch.nn.functional.pad(labels, (1, 0), value=-100)


@pytest.mark.parametrize(
    "changes",
    [
        {"loss_type": "cpo", "beta": 0.3}, {"loss_type": "cpo", "cpo_alpha": 0.4, "label_smoothing": 0.1},
        {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.2}, {"loss_type": "simpo", "cpo_alpha": 0.5},
    ],
)  # fmt: skip
def test_cpo_and_simpo(changes: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer: Any = pytest.importorskip("trl.experimental.cpo").CPOTrainer
    config, data = DpoConfig(**changes), case()
    hidden, logits, labels = padded(data)
    order = [0, 2, 4, 1, 3, 5]  # chosen ones first
    stand_in: Any = SimpleNamespace(
        is_encoder_decoder=False, pad_token_id=0, aux_loss_enabled=False, cpo_alpha=config.nll_weight, alpha=0.0,
        loss_type="simpo" if config.loss_type == "simpo" else "sigmoid", beta=config.beta, accelerator=ACCELERATOR,
        simpo_gamma=config.simpo_gamma, label_smoothing=config.label_smoothing, get_batch_logps=trainer.get_batch_logps,
        concatenated_inputs=lambda *_, **__: {
            "concatenated_input_ids": None, "concatenated_attention_mask": None, "concatenated_labels": labels[order],
        },
    )  # fmt: skip
    stand_in.cpo_loss = MethodType(trainer.cpo_loss, stand_in)
    stand_in.concatenated_forward = MethodType(trainer.concatenated_forward, stand_in)
    model = lambda *_, **__: SimpleNamespace(logits=logits[order])  # noqa: E731
    loss, metrics = trainer.get_batch_loss_metrics(stand_in, model, {"chosen_labels": labels[::2]})
    loss.backward()
    sums, gradient = ours(config, data)
    assert sums[0] / 3 == pytest.approx(loss.item(), rel=1e-5, abs=1e-5)
    np.testing.assert_allclose(gradient / 3, hidden.grad.numpy(), atol=1e-5)
    names = ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies")
    np.testing.assert_allclose(sums[1:5] / 3, [metrics[name] for name in names], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shift", [-0.5, 0.4])
@pytest.mark.parametrize("changes", [{}, {"beta": 0.4, "desirable_weight": 1.5, "undesirable_weight": 0.7}])
def test_kto(changes: Any, shift: float) -> None:
    """With a baseline of `shift` where it is above 0; TRL's model gives log-probabilities of tokens."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer: Any = pytest.importorskip("trl", reason="the parity extra is not installed").KTOTrainer
    config, data = DpoConfig(loss_type="kto", **changes), case()
    is_desirable = np.array([True, False, True, True, False, True])
    hidden, logits, labels = padded(data)
    logprobs = torch.log_softmax(logits[:, :-1], -1).gather(-1, labels[:, 1:, None].clamp(min=0))[..., 0]
    counted = torch.nn.functional.pad((labels[:, 1:] >= 0).double(), (1, 0))
    reference = torch.tensor(data["reference"])
    outputs = SimpleNamespace(
        log_probs=logprobs * counted[:, 1:], entropy=torch.zeros_like(logprobs), mean_logits=torch.zeros_like(logprobs)
    )
    policy, metrics = (lambda **_: outputs), {"train": defaultdict(list)}
    policy.training = True  # type: ignore[attr-defined]
    stand_in: Any = SimpleNamespace(
        model=policy, accelerator=ACCELERATOR, aux_loss_enabled=False, precompute_ref_logps=True, calculate_KL=True,
        loss_type="kto", beta=config.beta, desirable_weight=config.desirable_weight, _metrics=metrics, _tp_size=1,
        undesirable_weight=config.undesirable_weight, _total_train_tokens=0,
        _compute_kl_logps=lambda *_: reference + shift + torch.linspace(-1, 1, len(reference)),
    )  # fmt: skip
    inputs = {
        "input_ids": labels.clamp(min=0), "completion_mask": counted, "attention_mask": counted,
        "label": torch.tensor(is_desirable), "ref_logps": reference, "ref_KL_logps": reference,
    }  # fmt: skip
    loss = trainer._compute_loss(stand_in, policy, inputs, return_outputs=False)
    loss.backward()
    sums, gradient = ours(config, data, is_desirable=is_desirable, kl=max(0.0, shift))
    assert sums[0] / 6 == pytest.approx(loss.item(), rel=1e-5, abs=1e-5)
    np.testing.assert_allclose(gradient / 6, hidden.grad.numpy(), atol=1e-5)
    found = {name: values[0] for name, values in metrics["train"].items()}
    names = ("rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "logps/rejected", "kl")
    np.testing.assert_allclose(sums[[1, 2, 3, 5, 6, 7]] / 6, [found[name] for name in names], rtol=1e-5, atol=1e-6)
