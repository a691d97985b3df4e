"""On-policy distillation: the student draws, a stronger model scores every token of it, and the student follows."""

from collections.abc import Mapping
from functools import partial

import mlx.nn as nn

from mlxmath.config.load import Resolved
from mlxmath.errors import InputError
from mlxmath.runtime.console import say
from mlxmath.runtime.ranks import Ranks
from mlxmath.training.accumulate import replica
from mlxmath.training.checkpoint import ENDS
from mlxmath.training.events import Callback, TrainResult
from mlxmath.training.gkd.draws import Draws
from mlxmath.training.gkd.kept import Kept, kept_of
from mlxmath.training.gkd.logging import DistillationLogger
from mlxmath.training.gkd.loss import TeacherOutputs, WithTeacher, gkd_loss
from mlxmath.training.gkd.pieces import PieceScores
from mlxmath.training.gkd.teacher import check_teacher, find_teacher, load_teacher
from mlxmath.training.gradients import Gradients
from mlxmath.training.grpo.prompts import Prompts, load_prompts
from mlxmath.training.grpo.rewards import Rewards
from mlxmath.training.grpo.sampling import CompletionSampler, check_drawing, choose_concurrency, held_out_problems
from mlxmath.training.held_out import HeldOut
from mlxmath.training.judge import judged
from mlxmath.training.setup import Run
from mlxmath.training.trainer import Trainer


@judged
def gkd(settings: Resolved, ranks: Ranks | None = None, callback: Callback | None = None) -> TrainResult:
    """Bring a student's distribution of each token closer to a teacher's, on completions that the student draws.

    The adapters are in the folder `training.adapter_path` of rank 0 afterwards.

    Args:
        settings: of the sections model, data, lora, training, gkd and runtime.
        ranks: the processes that train together (None: this one alone).
        callback: given each event of the run as it happens, on rank 0.

    Raises:
        InputError: a setting is wrong, or has no use here; the teacher's tokens are others.
        MlxmathError: a model or the data cannot be had, do not fit into the memory, or are damaged.
    """
    config = settings.config.gkd
    check_drawing(settings, config)
    if settings.config.data.tools:
        raise InputError(f"{settings.where('data.tools')}: on-policy distillation runs no calls; leave it out.")
    teacher, identity = find_teacher(config.teacher)
    with Run("gkd", settings, ranks or Ranks()) as run:  # device, output folder, the checkpoint to go on from
        length, solutions = config.max_completion_length, config.lmbda < 1
        load = partial(load_prompts, max_completion_length=length, solutions=solutions)
        data = run.read(load, fixed={"gkd.teacher": identity})
        run.fixed[ENDS] = data.ends
        other_tokens = check_teacher(teacher, data.tokenizer, run.template, config)
        run.load_base()
        base = replica(run.model)
        run.add_adapters()
        kept = scores = scorer = None
        if config.teacher_top_k:  # asked once of what the dataset holds, and no more
            kept = kept_of(run, data, identity, lambda: TeacherOutputs(load_teacher(run, teacher, base), run.kernels))
        elif other_tokens:
            scores = PieceScores(run, load_teacher(run, teacher, base), teacher, data.tokenizer)
        else:
            scorer = load_teacher(run, teacher, base)

        def gradients_of(student: nn.Module) -> Gradients:
            if scorer is None:
                return run.gradients(partial(gkd_loss, config=config))(student)
            outputs = TeacherOutputs(replica(scorer), run.kernels)
            return WithTeacher(run.gradients(partial(gkd_loss, config=config, teacher=outputs.head))(student), outputs)

        trainer = Trainer(run, gradients_of)
        log = DistillationLogger(callback)
        draws, held_out = sample(trainer, data, log, kept, scores)
        with trainer.running(draws, held_out, log, parts=[draws]):
            for batch in trainer.steps():  # drawn by the student as it is now
                sums = trainer.loss_and_grads(batch)  # the teacher is asked, micro-batch by micro-batch
                if sums is None:
                    break
                step = trainer.update(sums)
                log.step(step)
                trainer.validate_if_due()
                trainer.save_if_due()
        return trainer.result


def sample(
    trainer: Trainer,
    data: Prompts,
    log: DistillationLogger,
    kept: Mapping[int, Kept] | None,
    scores: PieceScores | None,
) -> tuple[Draws, HeldOut | None]:
    """Where the steps come from, and the problems to measure on; `kept` and `scores`: see `Draws`."""
    run, workers, training, config = trainer.run, trainer.workers, trainer.config, trainer.run.config.gkd
    slots, reason = choose_concurrency(run, config, data.longest)
    sampler = CompletionSampler(
        workers, data.tokenizer, config, Rewards({"correctness": 1.0}, {}), seed=training.seed, concurrency=slots,
        deadline=trainer.deadline, stop=trainer.stop,
    )  # fmt: skip
    draws = Draws(
        workers, sampler, data.prompts, config, training, run.max_tokens, run.shape,
        slots=run.ranks.gather("slots", slots), deadline=trainer.deadline, stop=trainer.stop, end=trainer.end,
        listener=log.rollout, kept=kept, scores=scores,
    )  # fmt: skip
    total_steps = trainer.planned_steps(draws.steps_per_epoch)
    say(
        f"{len(data.prompts):,} problems; at most {total_steps:,} steps of {draws.prompts_per_step} problems x "
        f"{config.num_generations} completions, drawn {slots} at a time ({reason}); {workers.how}"
    )
    return draws, held_out_problems(
        workers, data.tokenizer, data.held_out, config.max_completion_length, training, slots
    )
