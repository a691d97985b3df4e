"""Generalized knowledge distillation (Agarwal et al. 2024, arXiv:2306.13649), as TRL defines it.

The loss of a token is the divergence of the student's distribution of it from the teacher's, after the same text.

Shapes: N target positions, X hidden width or vocabulary, Y the teacher's.
"""

from dataclasses import replace

import mlx.core as mx
import mlx.nn as nn

from mlxmath.config.gkd import GkdConfig
from mlxmath.data.batch import Batch, PieceTargets, TeacherTargets, TopTargets
from mlxmath.models.divergence import divergences, top_divergences
from mlxmath.models.kernels.portable import Kernels
from mlxmath.models.linear_ce import FullLogits, FusedHead, LossHead
from mlxmath.models.load import num_embeddings
from mlxmath.training.gradients import Gradients, Tree, choose_gradients

METRICS = ("entropy",)
"""What `gkd_loss` sums over the tokens beside the loss: the entropy of the student's distribution."""


def gkd_loss(
    outputs_NX: mx.array, batch: Batch, head: LossHead, *, config: GkdConfig, teacher: LossHead | None = None
) -> mx.array:
    """Σ weight · divergence, and the sums that `METRICS` names; see `Loss`.

    `teacher` is None where it was asked before the step (`TopTargets`, `PieceTargets`). Of pieces (see `pieces.py`) the
    loss is Σ share + excess · (ratio − 1), with the ratio of a token's probability now to that when it was drawn: its
    value is a sample of the reverse KL, its gradient that of the policy; the entropy is a sample too.
    """
    targets, beta, temperature = batch.extra, config.beta, config.temperature
    if isinstance(targets, PieceTargets):
        logprobs_N = head.logprobs(outputs_NX, batch.targets_N, temperature)
        ratio_N = mx.exp(logprobs_N - targets.old_logprobs_N)
        losses_N = targets.shares_N + targets.excess_N * (ratio_N - 1)
        return (mx.stack([losses_N, mx.stop_gradient(-logprobs_N)]) * batch.weights_N).sum(axis=1)
    if isinstance(targets, TopTargets):
        found = top_divergences(outputs_NX, head, *targets, beta=beta, temperature=temperature)
    else:
        assert isinstance(targets, TeacherTargets) and teacher is not None
        found = divergences(outputs_NX, head, targets.outputs_NY, teacher, beta=beta, temperature=temperature)
    both = mx.stack([found.divergences_N, found.entropies_N])
    return (both * batch.weights_N).sum(axis=1)


class TeacherOutputs:
    """What a teacher says of a micro-batch's target positions, without gradient.

    Args:
        model: the teacher; its arrays are shared with nobody who changes them.
        kernels: of the device.
    """

    def __init__(self, model: nn.Module, kernels: Kernels) -> None:
        self.gradients = choose_gradients(model, lambda outputs_NX, *_: outputs_NX, kernels, compiled=False)
        head = self.gradients.head
        self.head: LossHead = FullLogits() if head is None else FusedHead(head, kernels)
        self._num_embeddings = num_embeddings(model)

    def __call__(self, batch: Batch) -> mx.array:
        """(N, Y). A token that only the student has an embedding for is read as the teacher's last one."""
        if self._num_embeddings is not None:
            last, prompts = self._num_embeddings - 1, batch.prompts
            if prompts is not None:
                prompts = prompts._replace(tokens_GP=mx.minimum(prompts.tokens_GP, last))
            batch = replace(batch, inputs_BL=mx.minimum(batch.inputs_BL, last), prompts=prompts)
        outputs_NY = self.gradients.loss(batch)
        mx.eval(outputs_NY)
        return outputs_NY


class WithTeacher:
    """The student's loss sums and gradients, with what the teacher says of each target; see `Gradients`.

    The teacher is asked before the student's forward pass: of its own nothing but (N, Y) is kept.
    """

    takes_parts = False

    def __init__(self, student: Gradients, teacher: TeacherOutputs) -> None:
        self.how, self.cannot_pack = student.how, student.cannot_pack
        self._student, self._teacher = student, teacher

    def cannot_share(self) -> str | None:
        """See `Gradients`: neither of both models may."""
        return self._student.cannot_share() or self._teacher.gradients.cannot_share()

    def loss(self, batch: Batch) -> mx.array:
        """See `Gradients`."""
        return self._student.loss(self._asked(batch))

    def loss_and_gradients(self, batch: Batch) -> tuple[mx.array, Tree]:
        """See `Gradients`."""
        return self._student.loss_and_gradients(self._asked(batch))

    def _asked(self, batch: Batch) -> Batch:
        return replace(batch, extra=TeacherTargets(self._teacher(batch)))
