"""A run that pauses is the same run; the loss on each held-out row adds up to the loss on all."""

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlxmath.training.checkpoint import Position
from mlxmath.training.deadline import Deadline
from mlxmath.training.trainer import Trainer
from tests.helpers import adapters, events, run, succeed

ARGUMENTS = (
    "train", "--recipe", "debug", "--validation-split", "3", "--schedule", "cosine", "--max-steps", "6", "--eval-every",
    "2",
)  # fmt: skip


def record(folder: Path, name: str = "run.json") -> dict:
    found: dict = json.loads((folder / "adapters" / name).read_text())
    return found


def test_a_run_in_parts_has_the_learning_rates_and_the_weights_of_one_in_whole(prepared: Path) -> None:
    succeed(prepared, *ARGUMENTS, "--adapter-path", "whole")
    succeed(prepared, *ARGUMENTS, "--pause-at", "3")
    assert (record(prepared)["status"], record(prepared)["steps"]) == ("paused", 3)
    assert record(prepared)["validation"]["last"]["step"] == 3, "a pause is measured"
    succeed(prepared, *ARGUMENTS, "--pause-at", "3", "--resume")
    assert record(prepared)["steps"] == 3, "there is nothing to do before a later one"
    done = succeed(prepared, *ARGUMENTS, "--resume")
    assert record(prepared)["status"] == "finished" and "--pause-at" not in done.stderr
    rates = [event["learning_rate"] for event in events(prepared) if event["event"] == "step"]
    assert len(rates) == 6 and len(set(rates)) > 3
    parts = adapters(prepared)
    (prepared / "adapters").rename(prepared / "parts")
    (prepared / "whole").rename(prepared / "adapters")
    assert rates == [event["learning_rate"] for event in events(prepared) if event["event"] == "step"]
    assert adapters(prepared) == parts


@pytest.mark.parametrize(
    ("begun", "pause_at", "taken", "ending"),
    [(0, 3, 3, "paused"), (2, 3, 1, "paused"), (3, 3, 0, "paused"), (0, 6, 6, "finished"), (3, None, 3, "finished")],
)
def test_nothing_is_made_beyond_a_pause(begun: int, pause_at: int | None, taken: int, ending: str) -> None:
    """Where completions are drawn, to make the next step takes as long as to learn from it."""
    made: list[int] = []

    def steps(*_: int) -> Iterator[int]:
        for number in count():
            made.append(number)
            yield number

    trainer: Any = SimpleNamespace(
        ending=None, model=SimpleNamespace(train=lambda: None), position=Position(step=begun), total_steps=6,
        config=SimpleNamespace(pause_at=pause_at), _batches=SimpleNamespace(steps=steps), deadline=Deadline(1e9),
        ranks=SimpleNamespace(any=lambda *_: False),
    )  # fmt: skip
    for _ in Trainer.steps(trainer):
        trainer.position = replace(trainer.position, step=trainer.position.step + 1)
    assert (len(made), trainer.ending) == (taken, ending)


@pytest.mark.parametrize("batching", ["bucket", "pack"])
def test_losses_of_rows_are_those_of_the_best_adapters(prepared: Path, batching: str) -> None:
    succeed(prepared, *ARGUMENTS, "--row-losses", "--learning-rate", "1.0", "--batching", batching)
    found, validation = record(prepared, "held_out.json"), record(prepared)["validation"]
    best = validation["best"]
    assert best["step"] < 6, "at this learning rate the best is not the last"
    assert (found["step"], found["metric"]) == (best["step"], "loss") and len(found["fingerprint"]) == 16
    assert len(found["rows"]) == validation["measured_on"] >= 3
    sums, targets = (sum(row[i] for row in found["rows"]) for i in (1, 2))
    assert sums / targets == pytest.approx(best["loss"], rel=1e-5)


def test_losses_of_rows_need_held_out_rows(prepared: Path) -> None:
    found = run(prepared, "train", "--recipe", "debug", "--row-losses")
    assert found.returncode == 2 and "--row-losses" in found.stderr and "--validation-split" in found.stderr


def test_pairs_and_problems_are_told_one_by_one_too(prepared: Path) -> None:
    pairs = [{"prompt": f"{n} + 1?", "chosen": f"{n + 1}", "rejected": f"It is {n}"} for n in range(9)]
    (prepared / "pairs.jsonl").write_text("".join(f"{json.dumps(pair)}\n" for pair in pairs))
    common = ("--model", "demo", "--dtype", "float32", "--max-steps", "2", "--validation-split", "3", "--row-losses")
    succeed(prepared, "dpo", *common, "--dataset", "pairs.jsonl")
    found, best = record(prepared, "held_out.json"), record(prepared)["validation"]["best"]
    assert [count for _, _, count in found["rows"]] == [1] * len(found["rows"]) and found["metric"] == "loss"
    assert sum(value for _, value, _ in found["rows"]) / len(found["rows"]) == pytest.approx(best["loss"], rel=1e-4)
    (prepared / "problems.jsonl").write_text(
        "".join(json.dumps({"problem": f"{n} + 1?", "answer": str(n + 1)}) + "\n" for n in range(9))
    )
    sampling = ("--batch-size", "4", "--grad-accumulation-steps", "1", "--num-generations", "2")
    length = ("--max-completion-length", "6", "--dataset", "problems.jsonl", "--adapter-path", "reinforced")
    assert run(prepared, "grpo", *common, *sampling, *length).returncode in (0, 1), "there may be nothing to learn from"
    (prepared / "adapters").rename(prepared / "preferred")
    (prepared / "reinforced").rename(prepared / "adapters")
    found, validation = record(prepared, "held_out.json"), record(prepared)["validation"]
    assert found["metric"] == "accuracy" and len(found["rows"]) == validation["measured_on"]
    right = sum(value for _, value, _ in found["rows"])
    assert right / len(found["rows"]) == validation["best"]["accuracy"] and {row[2] for row in found["rows"]} == {1}
