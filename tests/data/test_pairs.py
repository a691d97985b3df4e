"""Pairs as rows, and how they stay together in windows and micro-batches."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlxmath.config.schema import DataConfig
from mlxmath.config.training import TrainingConfig
from mlxmath.data import tokenize as tokenize_module
from mlxmath.data.batch import Shape
from mlxmath.data.codec import load_tokenizer
from mlxmath.data.load import hold_out
from mlxmath.data.pairs import Pairs, PairSampler
from mlxmath.data.problem import Message, Problem
from mlxmath.data.render import encode_prompt
from mlxmath.data.templates import Definition, Template, get_template
from mlxmath.data.tokenize import TOO_LONG, tokenize_pairs
from tests.conftest import FakeRows

DEMO_MODEL = Path(__file__).parents[2] / "mlxmath" / "demo" / "model"
CHATML = (
    "{% for m in messages %}<s>{{ m['role'] + '\n' + m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


def pair(number: int, *, chosen: str = "", rejected: str = "") -> Problem:
    return Problem(
        str(number), f"Add {number} and 2.", solution=chosen or f"{number} + 2 = {number + 2}",
        rejected=rejected or f"It is {number}.",
    )  # fmt: skip


def rows_of(results: list[Any]) -> list[tuple[int, list[int], list[int]]]:
    """(pair, tokens, targets) of all rows."""
    found, first = [], 0
    for rows, counts in results:
        for i, source in enumerate(rows.sources):
            span = slice(rows.offsets[i], rows.offsets[i + 1])
            tokens = rows.tokens[span].tolist()
            found.append((first + source, tokens, rows.tokens[span][rows.mask[span] == 1].tolist()))
        first += counts["problems"]
    return found


@pytest.mark.parametrize("batch_rows", [1, 3, 1000])
def test_both_rows_come_out_or_none_wherever_batches_end(monkeypatch: pytest.MonkeyPatch, batch_rows: int) -> None:
    monkeypatch.setattr(tokenize_module, "BATCH_ROWS", batch_rows)
    monkeypatch.setattr(tokenize_module, "PROCESSES_FROM", 10**6)
    tokenizer = load_tokenizer(DEMO_MODEL)
    pairs = [pair(i, chosen="1 + " * 60 if i == 2 else "", rejected="2 + " * 60 if i == 5 else "") for i in range(8)]
    template = get_template("plain")
    results = list(tokenize_pairs(pairs, template, DataConfig(max_seq_len=40), tokenizer))
    found = rows_of(results)
    assert [number for number, _, _ in found] == [i for i in range(8) if i not in (2, 5) for _ in range(2)]
    for index, (number, tokens, targets) in enumerate(found):
        text = pairs[number].rejected if index % 2 else pairs[number].solution
        prompt = encode_prompt(tokenizer, template.prompt(pairs[number].question))
        assert tokens[: len(prompt)] == prompt and tokens[len(prompt) :] == targets
        assert tokenizer.decode(targets[:-1]) == text and targets[-1] == tokenizer.eos_token_id
    totals = {name: sum(counts[name] for _, counts in results) for name in ("problems", "output_rows", TOO_LONG)}
    assert totals == {"problems": 8, "output_rows": 12, TOO_LONG: 2}


def test_completions_are_written_word_for_word_and_only_the_last_answer_counts() -> None:
    tokenizer = load_tokenizer(DEMO_MODEL)
    boxed = Template("mine", Definition(prompt="{question}\n", completion="{solution} Answer: {answer}"))
    (_, _, chosen), (_, _, rejected) = rows_of(list(tokenize_pairs([pair(1)], boxed, DataConfig(), tokenizer)))
    assert tokenizer.decode(chosen[:-1]) == "1 + 2 = 3" and tokenizer.decode(rejected[:-1]) == "It is 1."
    tokenizer.chat_template = CHATML
    turns = (Message("user", "Add 1."), Message("assistant", "To what?"), Message("user", "To 2."))
    talk = Problem("0", "Add 1.", solution="3", rejected="4", messages=(*turns, Message("assistant", "3")))
    chat = get_template("chat").for_tokenizer(tokenizer)
    found = rows_of(list(tokenize_pairs([talk], chat, DataConfig(), tokenizer)))
    assert [tokenizer.decode(targets) for _, _, targets in found] == ["3</s>", "4</s>"]
    assert "To what?" in tokenizer.decode(found[0][1])
    refused = list(tokenize_pairs([talk, pair(1)], get_template("plain"), DataConfig(), tokenizer))
    assert [n for name, n in refused[0][1].items() if "several turns" in name] == [1] and len(rows_of(refused)) == 2


@pytest.fixture
def rows() -> FakeRows:
    rng = np.random.default_rng(3)
    tokens = [rng.integers(1, 64, rng.integers(5, 41)) for _ in range(38)]
    return FakeRows(tokens, [(np.arange(len(t)) >= len(t) // 3).astype(np.uint8) for t in tokens])


@pytest.mark.parametrize("batching", ["bucket", "pad", "pack"])
@pytest.mark.parametrize("num_workers", [1, 2])
def test_windows_hold_whole_pairs_each_once_an_epoch(rows: FakeRows, batching: Any, num_workers: int) -> None:
    config = TrainingConfig(batch_size=2, grad_accumulation_steps=3, num_epochs=2, batching=batching)
    pairs = Pairs(rows, packed=batching == "pack")
    plan = PairSampler(pairs, config, 200, Shape(8), num_workers)
    windows = [*plan.epoch(0), *plan.epoch(1)]
    for epoch in (windows[:4], windows[4:]):
        assert sorted(len(window.row_ids) for window in epoch) == [1, 6, 6, 6]
        assert sorted(p for window in epoch for p in window.row_ids) == list(range(19))
    for window in windows:
        for batch in window.batches():
            assert batch.num_targets == len(batch.row_ids)
            counts = np.array(batch.extra.counts_B)
            assert len(counts) == 2 * len(batch.row_ids) and batch.extra.numbers_P.tolist() == list(batch.row_ids)
            if batching != "pad" and len(batch.row_ids) > 1:
                assert batch.inputs_BL.size <= 200
            expected = [
                int(token) for p in batch.row_ids for side in (2 * p, 2 * p + 1)
                for token in rows.tokens[side][1:][rows.masks[side][1:] == 1]
            ]  # fmt: skip
            present = np.array(batch.weights_N) == 1
            assert np.array(batch.targets_N)[present].tolist() == expected
            inputs = np.array(batch.inputs_BL).reshape(-1)
            owners = np.array(batch.extra.rows_N)[present]
            np.testing.assert_array_equal(np.bincount(owners, minlength=len(counts)), counts)
            for position, owner in zip(np.array(batch.positions_N)[present][:5], owners, strict=False):
                assert inputs[position] in rows.tokens[2 * batch.row_ids[owner // 2] + owner % 2]


def test_scored_rows_end_in_their_last_token(rows: FakeRows) -> None:
    pairs = Pairs(rows, scored=True)
    plan = PairSampler(pairs, TrainingConfig(batch_size=19), 10**6, Shape(8))
    (window,) = plan.epoch(0)
    (batch,) = window.batches()
    last = [rows.tokens[side][-1] for p in batch.row_ids for side in (2 * p, 2 * p + 1)]
    assert np.array(batch.inputs_BL).reshape(-1)[np.array(batch.positions_N)].tolist() == last
    assert batch.extra.counts_B.tolist() == [1] * 38 and batch.extra.rows_N.tolist() == list(range(38))


def test_held_out_pairs_are_whole_and_keep_their_numbers() -> None:
    from mlxmath.data.cache import TokenRows

    tokens = np.arange(40, dtype=np.uint32)
    rows = TokenRows(
        tokens, (tokens % 2).astype(np.uint8), np.arange(0, 41, 2), fingerprint="f", sources=np.repeat(np.arange(10), 2)
    )
    kept, held = (Pairs(part, first_id=first) for part, first in zip(hold_out(rows, 3, 0), (0, 100), strict=True))
    assert (len(kept), len(held)) == (7, 3)
    assert sorted([*kept.ids.tolist(), *held.ids.tolist()]) == list(range(10))
    for pairs in (kept, held):
        for i, number in enumerate(pairs.ids.tolist()):
            assert [pairs.row(2 * i + side)[0].tolist() for side in (0, 1)] == [
                [4 * number, 4 * number + 1], [4 * number + 2, 4 * number + 3],
            ]  # fmt: skip
    assert held.numbers.tolist() == [100 + number for number in held.ids.tolist()]
