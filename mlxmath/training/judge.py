"""`--judge`: when a run has ended, the model before and after it answer problems that it was not trained on.

One line says whether it got better, by how much, and how sure that is, or how many more problems it would take to know.
The problems are chosen before the first step, so that a mistake shows then. They are asked after the run, by
`mlxmath evaluate`'s own means, when the training's memory is free again: its time is none of the deadline's.
"""

import gc
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlxmath.config.load import RUN, Resolved
from mlxmath.config.methods import EvaluationConfig
from mlxmath.config.schema import RunConfig
from mlxmath.data.dedup import occurring
from mlxmath.data.load import mixture_for
from mlxmath.errors import InputError, OtherRunError
from mlxmath.evaluation.benchmarks import LoadedBenchmark, drawn, load_benchmark
from mlxmath.evaluation.contestants import Contestant
from mlxmath.evaluation.runner import evaluate
from mlxmath.evaluation.wording import more_problems, outlook, sentence
from mlxmath.runtime.console import counted, say
from mlxmath.runtime.locks import locked
from mlxmath.runtime.ranks import Ranks
from mlxmath.runtime.sealed import sealed_json, unsealed_json
from mlxmath.training.event_file import EVENTS
from mlxmath.training.events import Callback, EventLog, TrainResult
from mlxmath.training.validation import BEST

FOLDER = "judge"
"""In the adapter folder: a folder of `mlxmath evaluate`."""
_NOT_JUDGED = {
    "stopped": "a signal ended the run", "paused": "the run has paused", "diverged": "the run diverged",
    "no_signal": "nothing was learned",
}  # fmt: skip
_KEPT = ("base", "other", "difference", "low", "high", "p_value", "fixed", "broken", "total")


def open_exam(config: RunConfig, method: str) -> LoadedBenchmark | None:
    """What `--judge` names, whole; None if it names nothing.

    Raises:
        InputError: there is no such benchmark or file, or the method trains nothing that answers.
        MlxmathError: it cannot be had.
    """
    if config.training.judge is None:
        return None
    if method == "reward-model":
        raise InputError("--judge: a reward model gives no answers that could be judged; leave it out.")
    return load_benchmark(_parts(config.training.judge)[0], option="--judge")


def choose_exam(exam: LoadedBenchmark, config: RunConfig, method: str) -> LoadedBenchmark:
    """As many of its problems as `--judge` asks for, by the run's seed; none that the run reads.

    Raises:
        InputError: none is left.
        MlxmathError: the data cannot be read.
    """
    assert config.training.judge is not None
    _, limit = _parts(config.training.judge)
    mixture = mixture_for(method, config, config.data)
    mixture.choose()
    known = occurring([item.question for item in exam.items], (text for problem in mixture for text in problem.asked))
    left = [item for item, is_known in zip(exam.items, known, strict=True) if not is_known]
    if not left:
        raise InputError(
            f"--judge {config.training.judge}: all {len(known):,} problems occur in the training data; name others."
        )
    num_known = int(known.sum())
    chosen = replace(
        exam, items=tuple(drawn(left, limit, config.training.seed)),
        left_out={**exam.left_out, "occur in the training data": num_known},
    )  # fmt: skip
    without = f", {num_known:,} left out that occur in the training data" if num_known else ""
    say(f"to be judged on {len(chosen.items):,} of the {len(known):,} problems of {exam.name}{without}")
    return chosen


def judged(method: Callable[..., TrainResult]) -> Callable[..., TrainResult]:
    """A method of training that is followed by `--judge`, where the run has such a setting."""

    @wraps(method)
    def run(
        settings: Resolved, ranks: Ranks | None = None, callback: Callback | None = None, **more: Any
    ) -> TrainResult:
        ranks = ranks or Ranks()
        result = method(settings, ranks, callback, **more)
        exam, result = result.exam, replace(result, exam=None)
        if exam is None:
            return result
        if reason := _NOT_JUDGED.get(result.ending):
            say(f"--judge: not judged, since {reason}")
            return result
        gc.collect()  # the training's model, before it is loaded again
        mx.clear_cache()
        # the adapters are on rank 0's disk alone
        found = _verdict(exam, result, settings.config, callback) if ranks.first else None
        return replace(result, verdict=ranks.gather("verdict", found)[0])

    return run


def _verdict(
    exam: LoadedBenchmark, result: TrainResult, config: RunConfig, callback: Callback | None
) -> dict[str, Any]:
    """Ask, and put down what came of it: in run.json, in events.jsonl and in words."""
    folder, model, initial = result.folder, Path(config.model.mlx_path), config.training.init_adapter
    adapter = folder / BEST if result.best else folder
    contestants = [
        Contestant("start", model, Path(initial)) if initial else Contestant("base", model),
        Contestant("tuned", model, adapter),
    ]
    own = EvaluationConfig(results_path=str(folder), run_name=FOLDER)
    with locked(folder, "--adapter-path", "--judge"):
        asked = config.model_copy(update={"evaluation": own})
        try:
            found = evaluate(asked, contestants, Ranks(), resume=True, benchmarks=[exam])
        except OtherRunError:  # the run went on since
            found = evaluate(asked, contestants, Ranks(), overwrite=True, benchmarks=[exam])
        assert found is not None
        (comparison,) = found["comparisons"]
        said = f"{sentence(comparison)}{outlook(comparison)}"
        verdict = {
            "benchmark": exam.name, "left_out": dict(exam.left_out), "adapter": str(adapter),
            **{name: comparison[name] for name in _KEPT}, "more_problems": more_problems(comparison), "said": said,
            "report": str(folder / FOLDER / "report.html"),
        }  # fmt: skip
        sealed_json(folder / RUN, unsealed_json(folder / RUN, None) | {"verdict": verdict})
        events = EventLog(folder / EVENTS, from_step=result.steps, callback=callback)
        events.write("verdict", step=result.steps, **verdict)
    say(f"judged on {counted(comparison['total'], 'problem')} of {exam.name}: {said}")
    return verdict


def _parts(judge: str) -> tuple[str, int | None]:
    """`gsm8k:200` as its benchmark and the number of problems; without a number all of them."""
    name, colon, number = judge.rpartition(":")
    return (name, int(number)) if colon and number.isdecimal() else (judge, None)
