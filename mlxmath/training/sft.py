"""Supervised fine-tuning: next-token cross-entropy on the target positions.

Shapes: N target positions, X hidden width or vocabulary (see `LossHead`).
"""

from functools import partial

import mlx.core as mx
import mlx.nn as nn

from mlxmath.config.load import Resolved
from mlxmath.data.batch import Batch
from mlxmath.data.load import load_rows
from mlxmath.models.linear_ce import LossHead
from mlxmath.runtime.ranks import Ranks
from mlxmath.training.events import Callback, TrainResult
from mlxmath.training.gradients import Gradients
from mlxmath.training.judge import judged
from mlxmath.training.logging import RunLogger
from mlxmath.training.neftune import NoisyGradients
from mlxmath.training.setup import Run
from mlxmath.training.trainer import Trainer


@judged
def sft(settings: Resolved, ranks: Ranks | None = None, callback: Callback | None = None) -> TrainResult:
    """Fine-tune adapters (or whole blocks) on problems and their solutions.

    Afterwards they are in the folder `training.adapter_path` of rank 0.

    Args:
        settings: of the sections model, data, lora, training, sft and runtime.
        ranks: the processes that train together (None: this one alone).
        callback: given each event of the run as it happens, on rank 0.

    Raises:
        InputError: a setting is wrong, or has no use here.
        MlxmathError: the model or the data cannot be had, do not fit into the memory, or are damaged.
    """
    with Run("train", settings, ranks or Ranks()) as run:  # device, output folder, the checkpoint to go on from
        data = run.read(load_rows)  # model converted; rows tokenized, cached, split by problem
        run.load_base()
        run.add_adapters()
        config = run.config.sft
        quiet = run.gradients(partial(sft_loss, smoothing=config.label_smoothing), measured=sft_loss)

        def gradients_of(model: nn.Module) -> Gradients:
            alpha = config.neftune_noise_alpha
            return NoisyGradients(model, quiet(model), alpha) if alpha else quiet(model)

        trainer = Trainer(run, gradients_of)
        batches, held_out = trainer.sample(data)
        log = RunLogger(callback=callback)
        with trainer.running(batches, held_out, log):
            for batch in trainer.steps():  # until the last step, the deadline, a signal
                sums = trainer.loss_and_grads(batch)  # micro-batches summed, on all workers and ranks
                if sums is None:
                    break
                step = trainer.update(sums)  # divided once, checked finite, clipped
                log.step(step)
                trainer.validate_if_due()
                trainer.save_if_due()
        return trainer.result


def sft_loss(outputs_NX: mx.array, batch: Batch, head: LossHead, *, smoothing: float = 0.0) -> mx.array:
    """Σ weight · (logsumexp(logits) − (1 − ε) logits[target] − ε mean(logits)); ε is the label smoothing."""
    return head.cross_entropy(outputs_NX, batch.targets_N, batch.weights_N, smoothing)
