"""Preference tuning on pairs of a chosen and a rejected completion: DPO, IPO, ORPO, SimPO and CPO, as TRL defines them.

KTO, whose completions come one by one with a label, has its loss in `kto.py`.

Shapes: N target positions, B = 2 P rows (chosen, rejected, chosen, …), P pairs, X hidden width or vocabulary.
"""

import io
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlxmath.config.load import Resolved
from mlxmath.config.losses import DpoConfig
from mlxmath.data.batch import Batch
from mlxmath.data.completions import UNNUMBERED
from mlxmath.data.load import check_pairs, load_completions, load_pairs
from mlxmath.errors import InputError, MlxmathError
from mlxmath.models.linear_ce import LossHead
from mlxmath.runtime.ranks import Ranks
from mlxmath.training.accumulate import replica
from mlxmath.training.checkpoint import Checkpoint, Part
from mlxmath.training.events import Callback, TrainResult
from mlxmath.training.gradients import Gradients, Tree, choose_gradients
from mlxmath.training.judge import judged
from mlxmath.training.kto import METRICS as KTO_METRICS
from mlxmath.training.kto import Baseline, kto_loss
from mlxmath.training.logging import RunLogger
from mlxmath.training.pairs import REWARDS, completion_logprobs, pairs_of, reward_sums, side_sums
from mlxmath.training.setup import Run
from mlxmath.training.trainer import Trainer

METRICS = (*REWARDS, "chosen_logprob", "rejected_logprob")
"""What the loss sums over the pairs beside itself. A reward is beta times the log-ratio to the reference (for
ORPO, beta times the log-probability); log-probabilities are those of whole completions."""
_LEAST_DOUBT = 1e-6
"""Below this probability of anything else, a completion's odds no longer grow."""
_FILE = "reference.npy"
_KINDS = {
    1: np.dtype([("completion", "<i8"), ("logprob", "<f4")]),
    2: np.dtype([("pair", "<i8"), ("chosen", "<f4"), ("rejected", "<f4")]),
}
"""Of what is saved, by the rows of an item."""


@judged
def dpo(settings: Resolved, ranks: Ranks | None = None, callback: Callback | None = None) -> TrainResult:
    """Tune adapters on pairs of completions, or by KTO on completions with labels.

    The reference is the model at the start: the base without adapters, or the adapter of `training.init_adapter`. Batch
    sizes count pairs, or completions.

    Args:
        settings: of the sections model, data, lora, training, dpo and runtime.
        ranks: the processes that train together (None: this one alone).
        callback: given each event of the run as it happens, on rank 0.

    Raises:
        InputError: a setting is wrong, or has no use here.
        MlxmathError: the model or the data cannot be had, do not fit into the memory, or are damaged.
    """
    config = settings.config
    check_pairs(settings)
    by_label = config.dpo.loss_type == "kto"
    if by_label and config.training.batch_size * config.training.grad_accumulation_steps == 1:
        raise InputError(
            "--loss-type kto compares with the completions to other prompts of a step, and --batch-size 1 times "
            "--grad-accumulation-steps 1 is a single one; make the step larger."
        )
    needs_reference, from_base = config.dpo.needs_reference, not config.training.init_adapter
    with Run("dpo", settings, ranks or Ranks(), keep_start=needs_reference) as run:
        data = run.read(load_completions if by_label else load_pairs)
        run.load_base()
        reference = frozen(run.model) if needs_reference and from_base else None
        run.add_adapters()
        if needs_reference and not from_base:
            reference = frozen(run.model)
        known = ReferenceLogprobs(run.ranks, 1 if by_label else 2)
        policy_of = run.gradients(partial(kto_loss if by_label else dpo_loss, config=config.dpo))

        def gradients_of(model: nn.Module) -> Gradients:
            policy = policy_of(model)
            if reference is None:
                return policy
            logprobs = choose_gradients(replica(reference), completion_logprobs, run.kernels, compiled=False)
            return WithReference(policy, logprobs, known)

        trainer = Trainer(run, gradients_of)
        baseline = Baseline(trainer.workers, config.dpo.beta) if by_label else None
        batches, held_out = trainer.sample(data, baseline)
        log = RunLogger(KTO_METRICS if by_label else METRICS, unit=data.unit, rows=data.unit, callback=callback)
        with trainer.running(batches, held_out, log, parts=[known]):
            for step_batch in trainer.steps():
                batch = baseline.of(step_batch, lambda: bool(trainer.stop)) if baseline else step_batch
                if batch is None:
                    trainer.end("stopped")
                    break
                sums = trainer.loss_and_grads(batch)
                if sums is None:
                    break
                step = trainer.update(sums)
                known.share()  # with all ranks, and so with the checkpoint
                log.step(step)
                trainer.validate_if_due()
                trainer.save_if_due()
        return trainer.result


def dpo_loss(outputs_NX: mx.array, batch: Batch, head: LossHead, *, config: DpoConfig) -> mx.array:
    """Σ over pairs, and the sums that `METRICS` names; see `pair_losses`."""
    logprobs_B = completion_logprobs(outputs_NX, batch, head)
    losses_P, rewards_B = pair_losses(config, logprobs_B, batch)
    metrics = mx.concatenate([reward_sums(rewards_B), side_sums(logprobs_B)])
    return mx.concatenate([losses_P.sum()[None], mx.stop_gradient(metrics)])


def pair_losses(config: DpoConfig, logprobs_B: mx.array, batch: Batch) -> tuple[mx.array, mx.array]:
    """The loss of each pair (P,) and the reward of each row (B,), out of the rows' summed log-probabilities.

    With the margin m of a pair's log-ratios log π(y|x) − log π_ref(y|x), chosen less rejected:

    - sigmoid: −(1 − ε) log σ(β m) − ε log σ(−β m) (Rafailov et al. 2023, arXiv:2305.18290, equation 7; ε is the label
      smoothing of Mitchell 2023)
    - ipo: (m − 1 / (2 β))², with log-probabilities averaged over a row's tokens (Azar et al. 2023, arXiv:2310.12036,
      equation 17)
    - orpo: −log p(chosen) − β log σ(log odds(chosen) − log odds(rejected)), where p is the geometric mean of the
      tokens' probabilities and odds = p / (1 − p) (Hong et al. 2024, arXiv:2403.07691, equations 6 and 7)
    - simpo: as sigmoid of β m − γ, where m is the margin of the log-probabilities averaged over a row's tokens (Meng et
      al. 2024, arXiv:2405.14734, equation 6)
    - cpo: as sigmoid of β m, where m is the margin of the log-probabilities, and α times the mean of −log π over the
      tokens of the step's chosen completions (Xu et al. 2024, arXiv:2401.08417; the mean is TRL's), which `cpo_alpha`
      adds to simpo too
    """
    pairs = pairs_of(batch)
    if config.loss_type in ("simpo", "cpo"):
        of_pair_B = logprobs_B / pairs.counts_B if config.loss_type == "simpo" else logprobs_B
        shift = config.simpo_gamma if config.loss_type == "simpo" else 0.0
        losses_P = _sigmoid_losses(config.beta * (of_pair_B[0::2] - of_pair_B[1::2]) - shift, config.label_smoothing)
        if config.nll_weight:
            assert pairs.mean_chosen is not None
            losses_P = losses_P - config.nll_weight * logprobs_B[0::2] / pairs.mean_chosen
        return losses_P, config.beta * of_pair_B
    if config.loss_type != "sigmoid":
        logprobs_B = logprobs_B / pairs.counts_B
    if config.loss_type == "orpo":
        log_odds_B = logprobs_B - mx.log(mx.maximum(-mx.expm1(logprobs_B), _LEAST_DOUBT))
        ratio_P = log_odds_B[0::2] - log_odds_B[1::2]
        return -logprobs_B[0::2] - config.beta * nn.log_sigmoid(ratio_P), config.beta * logprobs_B
    reference_B = pairs.reference_B
    assert reference_B is not None
    if config.loss_type == "ipo":
        reference_B = reference_B / pairs.counts_B
    log_ratio_B = logprobs_B - reference_B
    margin_P = log_ratio_B[0::2] - log_ratio_B[1::2]
    if config.loss_type == "ipo":
        losses_P = mx.square(margin_P - 1 / (2 * config.beta))
    else:
        losses_P = _sigmoid_losses(config.beta * margin_P, config.label_smoothing)
    return losses_P, config.beta * log_ratio_B


def _sigmoid_losses(margin_P: mx.array, smoothing: float) -> mx.array:
    """(P,) −(1 − ε) log σ(margin) − ε log σ(−margin)."""
    losses_P = -(1 - smoothing) * nn.log_sigmoid(margin_P)
    return losses_P - smoothing * nn.log_sigmoid(-margin_P) if smoothing else losses_P


def frozen(model: nn.Module) -> nn.Module:
    """The model as it is now, for good, in evaluation mode. The arrays are shared until training replaces them."""
    twin = replica(model)
    twin.freeze()
    twin.eval()
    return twin


class ReferenceLogprobs(Part):
    """The log-probabilities of pairs under the reference model.

    Those of a training pair are computed once, where it is first wanted, shared with all ranks after the step, and put
    into the checkpoints as an array of 16 bytes a pair: so a resumed run goes on with the same, to the last bit. Those
    of held-out pairs, which always share micro-batches with the same others, come out the same each time; they are kept
    in memory by the micro-batch.

    Args:
        ranks: the processes that train together.
    """

    def __init__(self, ranks: Ranks | None = None, rows_each: int = 2) -> None:
        self._ranks, self._kind = ranks or Ranks(), _KINDS[rows_each]
        self.known: dict[int, tuple[float, ...]] = {}
        """Of the chosen and of the rejected completion by the pair's number, or of a completion by its own."""
        self.of_batches: dict[tuple[int, ...], list[float]] = {}
        """(B,) by the numbers of the pairs of a held-out micro-batch."""
        self._own: dict[int, tuple[float, ...]] = {}
        """Those that the other ranks do not know yet."""

    def add(self, number: int, *of_rows: float) -> None:
        """Note what this rank has computed; what is known already stays."""
        if number not in self.known:
            self.known[number] = self._own[number] = of_rows

    def share(self) -> None:
        """Tell the other ranks what is new; on all ranks, after each step and before what saves."""
        if self._ranks.size > 1:
            for part in self._ranks.gather("reference", [(number, *rows) for number, rows in self._own.items()]):
                self._know(part)
        self._own.clear()

    def _know(self, found: Iterable[tuple[Any, ...]]) -> None:
        for number, *of_rows in found:
            self.known.setdefault(number, tuple(of_rows))

    def files(self) -> dict[str, Path | bytes]:
        """An array of (pair, chosen, rejected), or of (completion, logprob)."""
        rows = np.array([(number, *of_rows) for number, of_rows in sorted(self.known.items())], self._kind)
        stream = io.BytesIO()
        np.save(stream, rows, allow_pickle=False)
        return {_FILE: stream.getvalue()}

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to where the checkpoint was, on all ranks: rank 0 has the file."""
        rows: list[tuple[Any, ...]] = []
        path = checkpoint.path / _FILE
        if self._ranks.first and path.is_file():
            try:
                found = np.load(path, allow_pickle=False)
                if found.dtype != self._kind:
                    raise ValueError(f"expected {self._kind}, found {found.dtype}")
                rows = found.tolist()
            except (OSError, ValueError, TypeError) as error:
                raise MlxmathError(f"{path} is not what a checkpoint of pairs holds: {error}") from None
        self.known = {}
        self._know(self._ranks.gather("reference", rows)[0])


class WithReference:
    """The policy's loss sums and gradients, with what the reference model says of each pair; see `Gradients`.

    Args:
        policy: of the model that trains.
        reference: computes `completion_logprobs` of the reference model.
        kept: of several workers the same.
    """

    def __init__(self, policy: Gradients, reference: Gradients, kept: ReferenceLogprobs) -> None:
        self.how, self.takes_parts = policy.how, policy.takes_parts
        self.cannot_pack = policy.cannot_pack
        self._policy, self._reference, self._kept = policy, reference, kept

    def cannot_share(self) -> str | None:
        """See `Gradients`: neither of both models may."""
        return self._policy.cannot_share() or self._reference.cannot_share()

    def loss(self, batch: Batch) -> mx.array:
        """See `Gradients`; of pairs that are not trained on."""
        kept, key = self._kept.of_batches, tuple(pairs_of(batch).numbers_P.tolist())
        values: list[float] = kept.get(key) or self._reference.loss(batch).tolist()
        if UNNUMBERED not in key:
            kept[key] = values
        return self._policy.loss(_with_reference(batch, values))

    def loss_and_gradients(self, batch: Batch) -> tuple[mx.array, Tree]:
        """See `Gradients`."""
        numbers: list[int] = pairs_of(batch).numbers_P.tolist()
        known = self._kept.known
        if any(number not in known for number in numbers):
            values: list[float] = self._reference.loss(batch).tolist()
            each = len(values) // len(numbers)
            for place, number in enumerate(numbers):
                self._kept.add(number, *values[place * each : (place + 1) * each])
        return self._policy.loss_and_gradients(_with_reference(batch, [v for n in numbers for v in known[n]]))


def _with_reference(batch: Batch, values: list[float]) -> Batch:
    """The batch with `reference_B`."""
    return replace(batch, extra=pairs_of(batch)._replace(reference_B=mx.array(values, mx.float32)))
