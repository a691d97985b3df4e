"""Validation: the loss itself, that it disturbs nothing, the best adapters, early stopping, and exact resume."""

import errno
import json
import math
import shutil
import signal
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlxmath.config.schema import DataConfig, LoraConfig
from mlxmath.config.training import TrainingConfig
from mlxmath.data import prepare
from mlxmath.data.batch import Batch, Shape
from mlxmath.data.batching import BatchSampler, StepBatch
from mlxmath.data.cache import TokenRows
from mlxmath.data.load import hold_out
from mlxmath.errors import InputError, MlxmathError
from mlxmath.models.lora.adapter import adapter_config, save_config
from mlxmath.runtime import files
from mlxmath.runtime.ranks import Ranks
from mlxmath.training.accumulate import Workers
from mlxmath.training.checkpoint import Checkpoint, Position, newest_checkpoint, save_checkpoint
from mlxmath.training.deadline import Deadline, StopRequest
from mlxmath.training.held_out import ACCURACY, LOSS, HeldOut, Measurement, held_out_rows, mean_loss, seeded_order
from mlxmath.training.validation import BEST, CLOSING_S, SHARE, Validation
from tests import loop
from tests.conftest import FakeRows
from tests.helpers import adapters, events, kill_at, run, succeed
from tests.loop import Clock, adamw, gradients_of, workers_of

LORA = LoraConfig(rank=4, dropout=0.5)


def adapted() -> nn.Module:
    return loop.adapted(0.5)


def saved(scripted: "Scripted", step: int) -> Checkpoint:
    """A checkpoint of a run of which nothing but the validation counts."""
    parts = [scripted.validation]
    save_checkpoint(scripted.folder, scripted.model, adamw(scripted.model), Position(step=step), {}, parts=parts)
    found = newest_checkpoint(scripted.folder)
    assert found is not None
    return found


def windows_of(rows: FakeRows, **changes: Any) -> list[StepBatch]:
    config = TrainingConfig(batch_size=4, grad_accumulation_steps=2, **changes)
    sampler = BatchSampler(rows, config, 256, Shape(32))
    return list(islice(sampler.steps(), config.num_epochs * sampler.steps_per_epoch))


class TestHoldOut:
    """Which rows are held out."""

    def rows(self, num_texts: int, chunks: int = 1) -> TokenRows:
        sources = np.repeat(np.arange(num_texts), chunks)
        length = len(sources)
        return TokenRows(np.arange(length, dtype=np.uint16), np.ones(length, np.uint8), np.arange(length + 1),
                         sources=sources)  # fmt: skip

    def test_every_row_is_on_one_side_and_chunks_stay_together(self) -> None:
        rows = self.rows(100, chunks=3)
        training, held_out = hold_out(rows, 10, seed=0)
        assert (len(training), len(held_out)) == (270, 30)
        assert sorted([*training.ids, *held_out.ids]) == list(range(300))
        assert not set(training.ids // 3) & set(held_out.ids // 3)
        assert [int(held_out.row(i)[0][0]) for i in range(30)] == held_out.ids.tolist()
        assert held_out.lengths.tolist() == [1] * 30

    def test_the_choice_is_the_seeds_and_the_same_everywhere(self) -> None:
        """The rule itself: `test_holdout.py`."""
        chosen = [hold_out(self.rows(1000), 7, seed)[1] for seed in (0, 0, 1, 2**63 - 1)]
        assert chosen[0].ids.tolist() == chosen[1].ids.tolist() != chosen[2].ids.tolist() != chosen[3].ids.tolist()
        assert chosen[0].fingerprint == chosen[1].fingerprint != chosen[2].fingerprint

    def test_more_holds_out_the_same_and_more(self) -> None:
        amounts = (0.0001, 3, 0.02, 0.05, 200, 0.5)
        found = [set(hold_out(self.rows(1000), amount, 3)[1].ids.tolist()) for amount in amounts]
        assert all(few < many for few, many in pairwise(found))
        assert (len(found[1]), len(found[4])) == (3, 200)
        # binomial: four standard deviations
        assert abs(len(found[2]) - 20) < 18 and abs(len(found[3]) - 50) < 28 and abs(len(found[5]) - 500) < 64

    def test_at_least_one_and_never_all(self) -> None:
        assert len(hold_out(self.rows(9), 0.001, 0)[1]) == 1
        assert len(hold_out(self.rows(9), 0.9999, 0)[0]) == 1
        for rows, amount in ((9, 9.0), (9, 100.0), (1, 1.0), (1, 0.5)):
            with pytest.raises(InputError, match=f"--validation-split .* of {rows} problems and leaves none to train"):
                hold_out(self.rows(rows, chunks=4 if rows == 1 else 1), amount, 0)

    def test_rows_without_sources_are_texts_of_their_own(self) -> None:
        rows = TokenRows(np.ones(8, np.uint16), np.ones(8, np.uint8), np.arange(9))
        assert len(hold_out(rows, 3, 0)[1]) == 3


def test_the_loss_is_each_held_out_token_counted_once(uneven_rows: FakeRows) -> None:
    model = adapted()
    model.update(nn.utils.tree_map(lambda a: a + 0.02, model.trainable_parameters()))
    found = mean_loss(workers_of(model), windows_of(uneven_rows))
    model.eval()
    losses: list[float] = []
    for index in range(len(uneven_rows)):
        tokens, mask = uneven_rows.row(index)
        logits = np.array(model(mx.array(tokens[None, :-1])), np.float64)[0]
        log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        losses += [-log_probs[i, tokens[i + 1]] for i in range(len(tokens) - 1) if mask[i + 1]]
    assert found is not None
    assert found[0] == pytest.approx(np.mean(losses), rel=1e-5)
    assert found[1] == len(losses)


def test_measuring_changes_neither_mode_nor_random_state(uneven_rows: FakeRows) -> None:
    model = adapted()
    before = np.array(mx.random.state[0])

    class Random:
        """Draws, as an objective may."""

        def __init__(self, model: nn.Module) -> None:
            self._gradients = gradients_of(model)

        def loss(self, batch: Batch) -> mx.array:
            return self._gradients.loss(batch) + mx.random.uniform()

    mean_loss(Workers(model, Random, 2), windows_of(uneven_rows))  # type: ignore[arg-type]
    assert model.training and all(module.training for module in model.modules())
    assert np.array_equal(before, np.array(mx.random.state[0]))


def test_a_failing_measurement_is_not_swallowed(uneven_rows: FakeRows) -> None:
    model = adapted()

    class Broken:
        def loss(self, batch: Batch) -> mx.array:
            raise MlxmathError("broken")

    with pytest.raises(MlxmathError, match="broken"):
        mean_loss(Workers(model, lambda _: Broken()), windows_of(uneven_rows))  # type: ignore[arg-type, return-value]
    assert model.training


def held_out_of(workers: Workers, rows: FakeRows) -> HeldOut:
    config = TrainingConfig(batch_size=4, grad_accumulation_steps=2)
    return held_out_rows(workers, BatchSampler(rows, config, 256, Shape(32)), config, "sequences")


class Scripted:
    """A validation that measures what a list says, for which `item_s` seconds pass an item; trials measure nothing."""

    def __init__(
        self, folder: Path, losses: Sequence[float], *, items: int = 1, item_s: float = 0.0, limit_s: float = 1000.0,
        metric: Any = LOSS, total: int = 10, steps_per_epoch: int = 4, **changes: Any,
    ) -> None:  # fmt: skip
        self.model = adapted()
        self.folder, self.left = folder, list(losses)
        self.stop, self.clock = StopRequest(), Clock()
        self.deadline = Deadline(limit_s, self.clock)
        self.asked: list[int] = []
        self.marks: set[int] = set()
        save_config(folder, adapter_config(LORA, ("self_attn.q_proj", "self_attn.v_proj")))
        self.measurements: list[Measurement] = []
        held_out = HeldOut(items, "rows", lambda *given: self.measure(item_s, *given), step_items=2.0, metric=metric)
        self.validation = Validation(
            workers_of(self.model), held_out, folder,
            TrainingConfig(**{"validation_split": 1, "eval_every": 1} | changes), steps_per_epoch=steps_per_epoch,
            total_steps=total, deadline=self.deadline, stop=self.stop, is_marked=self.marks.__contains__,
            clock=self.clock, listeners=[self.measurements.append],
        )  # fmt: skip

    def measure(self, item_s: float, count: int, stopped: Any) -> Any:
        for _ in range(count):
            if stopped():
                return None
            self.clock.now += item_s
        self.asked.append(count)
        is_trial = not self.validation._is_chosen
        return (0.0 if is_trial or not self.left else self.left.pop(0)), count

    def step(self, step: int) -> Any:
        """Change the adapters so that each step's can be told apart, then let it measure."""
        self.model.update(nn.utils.tree_map(lambda a: mx.full(a.shape, float(step)), self.model.trainable_parameters()))
        self.clock.now += 1.0
        return self.validation.after(Position(step=step))

    def run(self, first: int = 1) -> tuple[Any, int]:
        self.validation._is_chosen = True
        ending, step = None, first - 1
        while ending is None and self.left:
            step += 1
            ending = self.step(step)
        return ending, step

    @property
    def kept_step(self) -> float | None:
        path = self.folder / BEST / "adapters.safetensors"
        return float(next(iter(mx.load(str(path)).values())).max()) if path.exists() else None


@pytest.mark.parametrize(
    ("losses", "patience", "min_delta", "ended", "best"),
    [
        ([3, 2, 1, 1.5, 0.5], 2, 0.0, None, 5),
        ([3, 2, 2.5, 2.1, 1.0], 2, 0.0, 4, 2),
        ([3, 2.95, 2.9, 2.85, 2.8], 2, 0.2, 3, 3),  # each is lower and kept, but none by enough
        ([3, 2.9, 2.7, 2.65, 2.6, 2.55], 3, 0.2, 6, 6),
        ([math.nan, math.nan, 1.0], 2, 0.0, 2, None),
        ([2.0, math.nan, 1.0, math.inf, 1.0], 2, 0.0, 5, 3),
        ([1, 1, 1, 1, 1], None, 0.0, None, 1),
    ],
)
def test_the_best_are_kept_and_patience_ends(
    tmp_path: Path, losses: list[float], patience: int | None, min_delta: float, ended: int | None, best: int | None
) -> None:
    scripted = Scripted(tmp_path, losses, early_stopping_patience=patience, early_stopping_min_delta=min_delta)
    assert scripted.run() == (("early_stopped", ended) if ended else (None, len(losses)))
    assert scripted.kept_step == best
    assert (scripted.validation.best and scripted.validation.best.step) == best
    found = [m.best.step if m.best else None for m in scripted.measurements]
    assert found[-1] == best
    assert all(m.is_best == (m.best is not None and m.best.step == m.step) for m in scripted.measurements)
    if best is not None:
        assert {p.name for p in (tmp_path / BEST).iterdir()} == {"adapters.safetensors", "adapter_config.json"}
        assert (tmp_path / BEST / "adapter_config.json").read_text() == (tmp_path / "adapter_config.json").read_text()
        _, metadata = mx.load(str(tmp_path / BEST / "adapters.safetensors"), return_metadata=True)
        assert metadata["step"] == str(best)


@pytest.mark.parametrize(
    ("eval_every", "expected"), [(None, [0, 4, 8, 10]), (3, [0, 3, 6, 9, 10]), (5, [0, 5, 10]), (100, [0, 10])]
)
def test_when_it_is_measured(tmp_path: Path, eval_every: int | None, expected: list[int]) -> None:
    scripted = Scripted(tmp_path, [1.0] * 11, eval_every=eval_every)
    scripted.validation.begin(Position())
    for step in range(1, 11):
        scripted.step(step)
    scripted.validation.close("finished", Position(step=10))
    assert [m.step for m in scripted.measurements] == expected


def test_a_long_epoch_is_measured_in_eighths_and_at_marks_in_time(tmp_path: Path) -> None:
    scripted = Scripted(tmp_path, [1.0] * 9, total=1000, steps_per_epoch=1000, eval_every=None)
    scripted.marks.add(77)
    scripted.validation.begin(Position())
    for step in range(1, 301):
        scripted.step(step)
    assert [m.step for m in scripted.measurements] == [0, 77, 125, 250]


@pytest.mark.parametrize(("per_epoch", "within"), [(30, [30]), (40, [40]), (53, [27, 53])])
def test_each_epochs_end_is_measured(tmp_path: Path, per_epoch: int, within: list[int]) -> None:
    scripted = Scripted(tmp_path, [], total=3 * per_epoch, steps_per_epoch=per_epoch, eval_every=None)
    due = [step for step in range(1, 3 * per_epoch + 1) if scripted.validation._is_due(Position(step=step))]
    assert due == [epoch * per_epoch + step for epoch in range(3) for step in within]


@pytest.mark.parametrize("ending", ["deadline", "stopped", "early_stopped", "diverged", "no_signal"])
def test_a_run_that_ends_between_is_measured_at_its_end(tmp_path: Path, ending: Any) -> None:
    scripted = Scripted(tmp_path, [3.0, 2.0], eval_every=100)
    scripted.validation.begin(Position())
    scripted.step(7)
    if ending == "stopped":
        scripted.stop.signal = signal.SIGTERM
    assert scripted.validation.close(ending, Position(step=7))
    assert [m.step for m in scripted.measurements] == [0, 7] and scripted.kept_step == 7
    assert not scripted.validation.close(ending, Position(step=7)), "once"
    assert scripted.validation.num_without_improvement == 0


def test_the_last_measurement_counts_as_no_vain_one(tmp_path: Path) -> None:
    scripted = Scripted(tmp_path, [1.0, 2.0, 2.0], eval_every=5, early_stopping_patience=1)
    scripted.validation.begin(Position())
    assert scripted.validation.close("stopped", Position(step=3))
    assert scripted.validation.num_without_improvement == 0
    assert scripted.step(5) == "early_stopped"


@pytest.mark.parametrize(("seconds", "is_measured"), [(CLOSING_S - 1, True), (CLOSING_S + 1, False)])
def test_who_sends_a_signal_does_not_wait_long(
    tmp_path: Path, seconds: float, is_measured: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    scripted = Scripted(tmp_path, [3.0, 2.0], items=1, item_s=seconds)
    scripted.validation.begin(Position())
    scripted.stop.signal = signal.SIGTERM
    assert scripted.validation.close("stopped", Position(step=3)) == is_measured
    assert ("not measured once more at the end: a signal ended the run" in capsys.readouterr().err) != is_measured


def test_the_deadline_leaves_room_for_the_last_measurement(tmp_path: Path) -> None:
    scripted = Scripted(tmp_path, [3.0, 2.0], items=1, item_s=20.0, eval_every=100)
    scripted.validation.begin(Position())
    steps = 0
    while not scripted.deadline.reached():
        scripted.step(steps := steps + 1)
        scripted.deadline.note_step(1.0)
    assert 20 < scripted.deadline.left_s < 40
    assert scripted.validation.close("deadline", Position(step=steps))
    assert scripted.deadline.left_s > 0


@pytest.mark.parametrize(
    ("item_s", "limit_s", "total"),
    [(0.5, 600.0, 10**6), (0.01, 120.0, 10**6), (3.0, 57600.0, 27000), (1e-3, 10.0, 10**6)],
)
def test_all_measurements_together_take_a_tenth_of_the_deadline(
    tmp_path: Path, item_s: float, limit_s: float, total: int, capsys: pytest.CaptureFixture[str]
) -> None:
    scripted = Scripted(
        tmp_path, [1.0] * 10**4, items=4000, item_s=item_s, limit_s=limit_s, total=total, eval_every=None
    )
    scripted.validation._every = 1000
    spent, step_s = 0.0, max(4 * item_s, limit_s / 2000)
    scripted.validation.begin(Position())
    spent += scripted.clock.now
    interval = limit_s / 7
    step, marks = 0, 0
    while not scripted.deadline.reached() and step < total:
        step += 1
        scripted.clock.now += step_s
        scripted.deadline.note_step(step_s)
        if scripted.clock.now > (marks + 1) * interval:
            marks += 1
            scripted.marks.add(step)
        before = scripted.clock.now
        assert scripted.validation.after(Position(step=step)) is None
        spent += scripted.clock.now - before
    before = scripted.clock.now
    scripted.validation.close("deadline", Position(step=step))
    spent += scripted.clock.now - before
    assert 0.04 * limit_s < spent <= SHARE * limit_s and scripted.clock.now <= limit_s
    counts = set(scripted.asked[-3:])
    assert counts == {scripted.validation.count} and 1 <= scripted.validation.count < 4000
    assert len(scripted.measurements) >= 5
    said = capsys.readouterr().err
    assert f"validation on {scripted.validation.count:,} of 4,000 held-out rows" in said
    assert scripted.validation.summary()["measured_on"] == scripted.validation.count  # type: ignore[index]


def test_no_trial_takes_long_and_a_single_slow_item_is_measured_all_the_same(tmp_path: Path) -> None:
    scripted = Scripted(tmp_path, [1.0], items=64, item_s=5.0, limit_s=1000.0)
    scripted.validation._held_out = replace(scripted.validation._held_out, at_once=64)  # type: ignore[type-var]
    scripted.validation._choose(Position())
    assert scripted.clock.now < 75, "64 items take 320 s"
    assert 1 <= scripted.validation.count <= 10


def test_guard_against_a_device_that_has_become_slow(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scripted = Scripted(tmp_path, [1.0] * 100, items=4, item_s=1.0, limit_s=400.0, eval_every=1)
    scripted.validation.begin(Position())
    for step in range(1, 10):
        scripted.step(step)
        scripted.validation._seconds = 15.0
    assert [m.step for m in scripted.measurements] == [0, 1, 2, 3, 4, 5]
    assert capsys.readouterr().err.count("measured next at the end of the run") == 1
    scripted.step(10)
    assert [m.step for m in scripted.measurements] == [0, 1, 2, 3, 4, 5, 10], "the last planned step"


def test_the_part_is_seeded_and_a_resumed_run_keeps_it(tmp_path: Path) -> None:
    assert seeded_order(50, 1) == seeded_order(50, 1) != seeded_order(50, 2)
    first = Scripted(tmp_path, [1.0] * 9, items=4000, item_s=0.5, limit_s=600.0)
    first.validation.begin(Position())
    checkpoint = saved(first, 3)
    second = Scripted(tmp_path, [1.0] * 9, items=4000, item_s=0.005, limit_s=600.0)  # a hundred times as fast
    second.validation.restore(checkpoint)
    second.validation.begin(checkpoint.position)
    second.step(4)
    assert second.asked == [first.validation.count] * 2 and first.validation.count < 100


def test_rows_are_measured_in_the_seeded_order(uneven_rows: FakeRows) -> None:
    workers = workers_of(adapted())
    held_out = held_out_of(workers, uneven_rows)
    order = seeded_order(len(uneven_rows), 0)
    few = FakeRows([uneven_rows.tokens[i] for i in order[:5]], [uneven_rows.masks[i] for i in order[:5]])
    found, expected = held_out.measure(5, lambda: False), mean_loss(workers, windows_of(few))
    assert found is not None and expected is not None
    assert found[1] == expected[1] and found[0] == pytest.approx(expected[0], rel=1e-5)
    whole, every = held_out.measure(37, lambda: False), mean_loss(workers, windows_of(uneven_rows))
    assert whole is not None and every is not None
    assert whole[1] == every[1] and whole[0] == pytest.approx(every[0], rel=1e-5)


def test_an_accuracy_is_kept_under_its_own_name_and_higher_is_better(tmp_path: Path) -> None:
    scripted = Scripted(tmp_path, [0.2, 0.6, 0.4], metric=ACCURACY, early_stopping_patience=1)
    assert scripted.run() == ("early_stopped", 3) and scripted.kept_step == 2
    _, metadata = mx.load(str(tmp_path / BEST / "adapters.safetensors"), return_metadata=True)
    assert metadata["validation_accuracy"] == "0.6" and "validation_loss" not in metadata
    summary = scripted.validation.summary()
    assert summary is not None and summary["best"] == {"step": 2, "accuracy": 0.6}
    assert summary["last"] == {"step": 3, "accuracy": 0.4} and summary["metric"] == "accuracy"


def test_without_held_out_rows_nothing_is_measured(tmp_path: Path) -> None:
    model = adapted()
    validation = Validation(
        workers_of(model), None, tmp_path, TrainingConfig(), steps_per_epoch=1, total_steps=1,
        deadline=Deadline(1e9), stop=StopRequest(),
    )  # fmt: skip
    assert validation.after(Position(step=1)) is None
    assert validation.summary() is None and validation.files() == {} and list(tmp_path.iterdir()) == []


def test_a_checkpoint_brings_back_history_patience_and_the_best_of_its_time(tmp_path: Path) -> None:
    losses = [3.0, 2.0, 2.5, 1.0, math.nan, 1.5]
    straight = Scripted(tmp_path / "straight", losses, early_stopping_patience=2)
    ending = straight.run()

    folder = tmp_path / "killed"
    first = Scripted(folder, losses, early_stopping_patience=2)
    first.validation._is_chosen = True
    for step in (1, 2, 3):
        first.step(step)
    checkpoint = saved(first, 3)
    first.step(4)
    assert first.kept_step == 4  # which the resumed run knows nothing of

    second = Scripted(folder, losses[3:], early_stopping_patience=2)
    second.validation.restore(checkpoint)
    assert second.kept_step == 2
    assert second.validation.begin(checkpoint.position) is None
    assert second.run(first=4) == ending == ("early_stopped", 6)
    assert json.dumps(second.validation.state()) == json.dumps(straight.validation.state())
    assert second.validation.summary() == straight.validation.summary()
    assert second.kept_step == straight.kept_step == 4

    exhausted = Scripted(folder, [], early_stopping_patience=1)
    exhausted.validation.restore(checkpoint)
    assert exhausted.validation.begin(checkpoint.position) == "early_stopped"


def test_resuming_before_the_first_measurement_forgets_the_best(tmp_path: Path) -> None:
    scripted = Scripted(tmp_path, [1.0, 1.0])
    scripted.validation._is_chosen = True
    checkpoint = saved(scripted, 0)
    scripted.step(1)
    assert scripted.kept_step == 1
    scripted.validation.restore(checkpoint)
    assert scripted.kept_step is None and not scripted.validation.history


def test_stop_and_deadline_abandon_a_measurement_which_a_resumed_run_makes_up(tmp_path: Path) -> None:
    scripted = Scripted(tmp_path, [1.0, 0.5])
    scripted.validation._is_chosen = True
    scripted.stop.signal = signal.SIGINT
    assert scripted.step(1) == "stopped"
    scripted.stop.signal = None
    scripted.clock.now = 999.9
    assert scripted.step(1) == "deadline"
    assert not scripted.measurements and scripted.left == [1.0, 0.5]
    scripted.clock.now = 0.0
    assert scripted.validation.begin(Position(step=1)) is None
    assert scripted.validation.begin(Position(step=1)) is None  # once
    assert [(m.step, m.value) for m in scripted.measurements] == [(1, 1.0)]


def test_a_full_disk_keeps_the_older_best_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scripted = Scripted(tmp_path, [4.0, 3.0, 3.5, 2.0])
    scripted.validation._is_chosen = True
    scripted.step(1)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        assert scripted.step(2) is None
    assert "the best adapters so far, of step 2, are not kept: cannot write" in capsys.readouterr().err
    assert scripted.kept_step == 1 and scripted.validation.best is not None and scripted.validation.best.step == 1
    assert not list(tmp_path.rglob(".*"))
    scripted.step(3)
    assert scripted.kept_step == 3  # lower than what is kept, though not the lowest
    assert not scripted.measurements[-1].is_best
    scripted.step(4)
    assert scripted.kept_step == 4


class Second(Ranks):
    """A rank that learns from rank 0 what it could not write."""

    first = False  # type: ignore[assignment]
    fails = False

    def any(self, name: str, what: bool) -> bool:
        return what or (name == "best not kept" and self.fails)


def test_all_ranks_know_which_best_is_kept(tmp_path: Path) -> None:
    """Or they would part where they take it from rank 0."""
    scripted, ranks, found = Scripted(tmp_path, [4.0, 3.0, 2.0]), Second(), []
    scripted.validation._ranks, scripted.validation._is_chosen = ranks, True
    for step, ranks.fails in ((1, True), (2, False), (3, True)):
        scripted.step(step)
        found.append(scripted.validation.best and scripted.validation.best.step)
    assert found == [None, 2, 2]


VALIDATED = (
    "--debug", "--num-examples", "40", "--max-seq-len", "64", "--save-every", "3", "--lora-dropout", "0.1",
    "--validation-split", "0.2", "--eval-every", "2", "--learning-rate", "0.01", "--num-epochs", "5",
)  # fmt: skip


def validations(folder: Path) -> list[tuple[int, float]]:
    return [(e["step"], e["loss"], e["best"]) for e in events(folder) if e["event"] == "validation"]


def best_adapters(folder: Path) -> bytes:
    return (folder / "adapters" / "best" / "adapters.safetensors").read_bytes()


def test_killed_and_resumed_equals_uninterrupted_with_validation(prepared: Path, tmp_path: Path) -> None:
    straight = tmp_path / "straight"
    shutil.copytree(prepared, straight)
    succeed(straight, "train", *VALIDATED)
    kill_at(prepared, 4, "train", *VALIDATED)
    kill_at(prepared, 11, "train", *VALIDATED, "--resume")
    succeed(prepared, "train", *VALIDATED, "--resume")
    assert adapters(prepared) == adapters(straight)
    assert best_adapters(prepared) == best_adapters(straight)
    assert validations(prepared) == validations(straight) and len(validations(straight)) >= 10
    records = [json.loads((folder / "adapters" / "run.json").read_text()) for folder in (prepared, straight)]
    assert records[0]["validation"] == records[1]["validation"]
    assert records[0]["validation"]["best"]["loss"] == min(loss for _, loss, _ in validations(straight))
    assert (records[0]["data"]["held_out_rows"], records[0]["data"]["training_rows"]) != (0, 0)
    checkpoints = [newest_checkpoint(folder / "adapters") for folder in (prepared, straight)]
    states = [json.loads((found.path / "state.json").read_text()) for found in checkpoints if found]
    assert len(states) == 2 and states[0] == states[1]

    refused = run(prepared, "train", *VALIDATED, "--validation-split", "0.1", "--resume")
    assert refused.returncode == 2 and "training.validation_split was 0.2 and is 0.1" in refused.stderr
    asked = ("--prompt", "What is 12 + 7?", "--max-new-tokens", "2")
    succeed(prepared, "infer", "--adapter-path", "adapters/best", *asked)


def test_another_dataset_leaves_training_as_it_was_and_early_stopping_ends_it(prepared: Path) -> None:
    plain = ("--debug", "--lora-dropout", "0.1", "--num-epochs", "3")
    succeed(prepared, "train", *plain)
    before = adapters(prepared)
    measured = (*plain, "--validation-dataset", "demo", "--eval-every", "1")
    result = succeed(prepared, "train", *measured)
    assert adapters(prepared) == before
    assert "validation loss" in result.stderr and "--adapter-path adapters/best" in result.stderr
    record = json.loads((prepared / "adapters" / "run.json").read_text())
    assert record["data"]["held_out_rows"] == 200 and record["data"]["training_rows"] == 10

    patient = ("--early-stopping-patience", "2", "--early-stopping-min-delta", "100", "--num-epochs", "100")
    result = succeed(prepared, "train", *measured, *patient)
    assert "early_stopped at step 2 of " in result.stderr  # the start is what must be improved on
    assert json.loads((prepared / "adapters" / "run.json").read_text())["status"] == "early_stopped"
    again = succeed(prepared, "train", *measured, *patient, "--resume")
    assert "early_stopped at step 2 of " in again.stderr
    assert not list((prepared / "adapters").rglob(".*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--validation-split", "0.1", "--validation-dataset", "demo"), "not both"),
        (("--validation-split", "0"), "--validation-split"),
        (("--validation-split", "1.5"), "a fraction below 1 or a whole number of problems; found 1.5"),
        (("--validation-split", "10"), "holds out 10 of 10 problems and leaves none"),
        (("--eval-every", "5"), "--eval-every (option): needs --validation-split or --validation-dataset"),
        (("--early-stopping-patience", "5"), "needs --validation-split or --validation-dataset"),
        (("--validation-dataset", "nowhere.jsonl"), "--validation-dataset nowhere.jsonl: "),
        (("--validation-dataset", "same.jsonl", "--dataset", "same.jsonl"), "is the training data itself"),
    ],
)
def test_bad_requests(prepared: Path, arguments: tuple[str, ...], message: str) -> None:
    (prepared / "same.jsonl").write_text(json.dumps({"problem": "What is 1 + 1?", "solution": "2"}) + "\n")
    result = run(prepared, "train", "--debug", *arguments)
    assert result.returncode == 2 and message in result.stderr and "Traceback" not in result.stderr
    assert not (prepared / "adapters").exists()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("demo", ("demo", "validation", None, None, None, None)),
        ("org/train", ("org/train", "validation", "main", "abc", "Q", None)),
        ("org/train:test", ("org/train", "test", "main", "abc", "Q", None)),
        ("org/other", ("org/other", "validation", None, None, "Q", None)),
        ("held.jsonl", ("held.jsonl", None, None, None, "Q", None)),
    ],
)
def test_what_the_name_of_another_dataset_means(
    monkeypatch: pytest.MonkeyPatch, name: str, expected: tuple[str | None, ...]
) -> None:
    asked: list[DataConfig] = []
    monkeypatch.setattr(prepare, "prepare_rows", lambda config, *_, **__: asked.append(config))
    config = DataConfig(
        dataset="org/train", split="train", dataset_config="main", dataset_revision="abc", question_column="Q",
        num_examples=5, max_seq_len=77,
    )  # fmt: skip
    prepare.prepare_held_out(config, name, Path())
    found = asked[0]
    assert expected == (
        found.dataset, found.split, found.dataset_config, found.dataset_revision, found.question_column,
        found.num_examples,
    )  # fmt: skip
    assert found.max_seq_len == 77


def test_a_missing_split_tells_how_to_name_another(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: Any, **__: Any) -> None:
        raise InputError("--split: org/other has no split 'validation', but train, test.")

    monkeypatch.setattr(prepare, "prepare_rows", absent)
    with pytest.raises(InputError, match="Another split: --validation-dataset org/other:SPLIT"):
        prepare.prepare_held_out(DataConfig(), "org/other", Path())
