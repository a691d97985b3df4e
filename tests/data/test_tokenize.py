"""Batches, in threads and in processes."""

from pathlib import Path

import numpy as np
import pytest

from mlxmath.config.schema import DataConfig
from mlxmath.data import tokenize as module
from mlxmath.data.codec import codec_of, load_tokenizer
from mlxmath.data.problem import Problem
from mlxmath.data.render import Overflow, Rendered, fit_rows, targets_per_row
from mlxmath.data.templates import get_template
from mlxmath.data.tokenize import tokenize

DEMO_MODEL = Path(__file__).parents[2] / "mlxmath" / "demo" / "model"


def test_processes_give_what_threads_give(monkeypatch: pytest.MonkeyPatch) -> None:
    problems = [Problem(str(i), f"Add {i} and 2.", solution=f"{i} + 2 = {i + 2}" if i % 7 else None) for i in range(60)]
    monkeypatch.setattr(module, "BATCH_ROWS", 8)
    results = []
    for from_batches in (100, 3):
        monkeypatch.setattr(module, "PROCESSES_FROM", from_batches)
        tokenizer = load_tokenizer(DEMO_MODEL)
        results.append(list(tokenize(problems, get_template("tutor"), DataConfig(max_seq_len=64), tokenizer)))
    threads, processes = results
    assert len(threads) == len(processes) == 8
    for (rows, counts), (others, other_counts) in zip(threads, processes, strict=True):
        assert counts == other_counts
        for array, other in zip(rows, others, strict=True):
            np.testing.assert_array_equal(array, other)
    assert [counts["problems"] for _, counts in processes] == [8] * 7 + [4]
    assert sum(count for _, counts in processes for name, count in counts.items() if "skipped" in name) == 9


@pytest.mark.parametrize("name", ["tutor", "plain"])
def test_a_plain_text_is_learned_whole_in_chunks(name: str) -> None:
    """Every token after the first is a target in exactly one chunk, and so is the end of the text."""
    tokenizer = load_tokenizer(DEMO_MODEL)
    texts = ["Adding two numbers gives their sum. " * 9, "Short."]
    problems = [Problem(str(i), text, is_text=True) for i, text in enumerate(texts)]
    ((rows, counts),) = tokenize(problems, get_template(name), DataConfig(max_seq_len=16), tokenizer)
    whole = [[*codec_of(tokenizer).prefix, *tokenizer.encode(text, add_special_tokens=False)] for text in texts]
    for number, ids in enumerate(whole):
        ids.append(tokenizer.eos_token_id)
        chunks = [row for row, source in zip(listed(rows), rows.sources, strict=True) if source == number]
        assert all(len(tokens) <= 16 for tokens, _ in chunks)
        assert chunks[0][0][0] == ids[0] and len(chunks) == -(-(len(ids) - 1) // 15)
        learned = [token for tokens, mask in chunks for token, flag in zip(tokens, mask, strict=True) if flag]
        assert learned == ids[1:]
    assert counts["lost_target_tokens"] == 0 and counts["target_tokens"] == sum(map(len, whole)) - 2


def laid_out(rows: list[tuple[list[int], list[int]]]) -> Rendered:
    tokens = [t for row, _ in rows for t in row]
    masks = [m for _, mask in rows for m in mask]
    offsets = np.cumsum([0, *(len(row) for row, _ in rows)])
    return Rendered(np.array(tokens, np.uint32), np.array(masks, np.uint8), offsets, np.arange(len(rows)))


def listed(rows: Rendered) -> list[tuple[list[int], list[int]]]:
    spans = zip(rows.offsets[:-1], rows.offsets[1:], strict=True)
    return [(rows.tokens[a:b].tolist(), rows.mask[a:b].tolist()) for a, b in spans]


def plain_fit(
    rows: list[tuple[list[int], list[int]]], longest: int, overflow: str
) -> list[tuple[list[int], list[int]]]:
    result = []
    for tokens, mask in rows:
        if len(tokens) <= longest or overflow == "truncate":
            pieces = [(tokens[:longest], mask[:longest])]
        elif overflow == "drop":
            pieces = []
        else:
            pieces = [(tokens[:longest], mask[:longest])]
            at = longest
            while at < len(tokens):
                pieces.append((tokens[at - 1 : at - 1 + longest], [0, *mask[at : at - 1 + longest]]))
                at += longest - 1
        result += [piece for piece in pieces if any(piece[1])]
    return result


def test_by_hand() -> None:
    rows = laid_out([([10, 11, 12, 13, 14, 15, 16, 17, 18], [0, 0, 0, 1, 1, 1, 1, 1, 1]), ([1, 2], [0, 1])])
    fitted, counts = fit_rows(rows, 4, "chunk")
    assert listed(fitted) == [
        ([10, 11, 12, 13], [0, 0, 0, 1]),
        ([13, 14, 15, 16], [0, 1, 1, 1]),
        ([16, 17, 18], [0, 1, 1]),
        ([1, 2], [0, 1]),
    ]
    assert fitted.sources is not None and fitted.sources.tolist() == [0, 0, 0, 1]
    assert counts == {
        "rows": 2, "overlong_rows": 1, "output_rows": 4, "tokens": 13, "target_tokens": 7, "dropped_rows": 0,
        "rows_without_target": 0, "lost_target_tokens": 0,
    }  # fmt: skip
    fitted, counts = fit_rows(rows, 4, "truncate")
    assert listed(fitted) == [([10, 11, 12, 13], [0, 0, 0, 1]), ([1, 2], [0, 1])]
    assert counts["lost_target_tokens"] == 5
    fitted, counts = fit_rows(rows, 4, "drop")
    assert listed(fitted) == [([1, 2], [0, 1])]
    assert fitted.sources is not None and fitted.sources.tolist() == [1]
    assert (counts["dropped_rows"], counts["lost_target_tokens"]) == (1, 6)


def test_chunk_of_prompt_alone_is_left_out_and_counted() -> None:
    rows = laid_out([([*range(9)], [0] * 8 + [1])])
    fitted, counts = fit_rows(rows, 4, "chunk")
    assert listed(fitted) == [([6, 7, 8], [0, 0, 1])]
    assert (counts["rows_without_target"], counts["lost_target_tokens"]) == (2, 0)


@pytest.mark.parametrize("overflow", ["chunk", "truncate", "drop"])
@pytest.mark.parametrize("longest", [2, 3, 5, 8, 64])
def test_equals_a_plain_loop(overflow: Overflow, longest: int) -> None:
    rng = np.random.default_rng(longest)
    for _ in range(60):
        rows = []
        for _ in range(rng.integers(0, 7)):
            length = int(rng.integers(1, 30))
            mask = (np.arange(length) >= rng.integers(0, length + 2)).astype(int)
            mask[0] = 0
            rows.append((rng.integers(0, 99, length).tolist(), mask.tolist()))
        fitted, counts = fit_rows(laid_out(rows), longest, overflow)
        expected = plain_fit(rows, longest, overflow)
        assert listed(fitted) == expected
        assert counts["tokens"] == sum(len(tokens) for tokens, _ in expected)
        assert counts["target_tokens"] == sum(sum(mask) for _, mask in expected)
        lost = sum(sum(mask) for _, mask in rows) - counts["target_tokens"]
        assert counts["lost_target_tokens"] == lost
        assert overflow != "chunk" or lost == 0
        assert targets_per_row(fitted.mask, fitted.offsets).tolist() == [sum(mask) for _, mask in expected]
