"""`--validation-metric answers`: of fine-tuning on rows or pairs, held-out problems are answered and graded."""

from dataclasses import replace

from mlxmath.data.completions import Completions
from mlxmath.data.load import TrainingData
from mlxmath.data.pairs import Pairs
from mlxmath.data.prepare import held_out_config
from mlxmath.errors import InputError
from mlxmath.generation.model import load_generation_tokenizer
from mlxmath.generation.slots import choose_slots
from mlxmath.runtime.console import say
from mlxmath.training.accumulate import Workers
from mlxmath.training.grpo.prompts import read_prompts
from mlxmath.training.grpo.sampling import held_out_problems
from mlxmath.training.held_out import ANSWERS, Found, HeldOut, Stopped
from mlxmath.training.setup import Run

_STEPS_AN_ANSWER = 4.0
"""An answer takes about as long as a step on so many rows."""


def held_out_answers(run: Run, workers: Workers, data: TrainingData, rows: HeldOut) -> HeldOut:
    """The held-out problems with gold answers, of which the share answered rightly is measured, and the loss beside it.

    Args:
        run: with its model.
        workers: compute.
        data: whose held-out problems are meant.
        rows: the same as rows; measured too, on as many items.

    Raises:
        InputError: none has a gold answer.
    """
    config, training = run.config, run.config.training
    source = config.data
    if training.validation_dataset is not None:
        source, _ = held_out_config(config.data, training.validation_dataset)
    tokenizer = load_generation_tokenizer(run.model_folder, run.template)
    longest = max(1, config.data.max_seq_len // 2)
    held = data.held_out.rows if isinstance(data.held_out, Pairs | Completions) else data.held_out
    say("held-out problems, to be answered:")
    by_pair, by_label = isinstance(data.held_out, Pairs), isinstance(data.held_out, Completions)
    read = read_prompts(config, source, tokenizer, longest, pairs=by_pair or by_label, labels=by_label)
    among = set(held.questions_of_rows.tolist())  # type: ignore[union-attr]
    prompts = [prompt for prompt, q in zip(read.prompts, read.questions.tolist(), strict=True) if q in among]
    if not prompts:
        raise InputError("--validation-metric answers: no held-out problem has a gold answer; leave it out.")
    slots, _ = choose_slots(
        run.model_config, run.device, held_bytes=run.backend.memory().active_bytes,
        longest=longest + max(len(prompt.tokens) for prompt in prompts), needed_bytes=run.planned_bytes,
    )  # fmt: skip
    slots = min(run.ranks.gather("slots", slots))

    answers = held_out_problems(workers, tokenizer, prompts, longest, training, slots, config.data.tools)
    assert answers is not None

    def measure(count: int, stopped: Stopped) -> Found | None:
        answered = answers.measure(count, stopped)
        found = answered and rows.measure(min(count, rows.num_items), stopped)
        if not answered or not found:
            return None
        (share, num_answered, *_), (loss, _, *metrics) = answered, found
        return share, num_answered, *[loss, *metrics]

    return replace(
        answers, measure=measure, step_items=rows.step_items / _STEPS_AN_ANSWER, metric=ANSWERS,
        at_once=max(rows.at_once, answers.at_once),
    )  # fmt: skip
