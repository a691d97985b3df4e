"""Loops are flagged, justified doubt is not."""

import json

import pytest

from mlxmath.grading import doubt
from tests.grading.doubt_texts import JUSTIFIED, loops
from tests.grading.shared_data import gsm8k

LOOPS = list(loops())


def test_enough_texts() -> None:
    assert len(LOOPS) == len(set(LOOPS)) == 50 and len(set(JUSTIFIED)) >= 30


@pytest.mark.parametrize("number", range(50))
def test_loops_are_flagged(number: int) -> None:
    assert doubt(LOOPS[number]).flagged, LOOPS[number]


@pytest.mark.parametrize("text", JUSTIFIED)
def test_justified_doubt_is_not(text: str) -> None:
    measured = doubt(text)
    assert not measured.flagged, measured
    assert measured.num_markers >= 1, text


def test_measures_by_hand() -> None:
    measured = doubt(
        "We add 2 + 3 = 5. Wait, is it 5? Hmm. The answer is 5. No, the answer is 6. Actually, the answer is 5."
    )
    assert (measured.num_markers, measured.answer_flips) == (4, 2)
    assert measured.null_doubt == 3 / 4  # only the 6 is new
    assert measured.reasons == ("doubt without progress",)
    assert doubt("a b c d e f g h " * 20).repeated_ngrams == 1 - 8 / 153
    assert doubt("Go on. " + "over and over again " * 5).tail_period == 4
    assert doubt("2 * 3 = 6, so 2 x 3 = 6, and 2*3=6.").max_same_computation == 3
    assert doubt("5 = 5").max_same_computation == 0


def test_a_summary_after_thinking_is_no_repetition() -> None:
    work = "Then 4 * 5 = 20 and 20 - 2 = 18. Check: 4 * 5 = 20."
    assert not doubt(f"<think>{work}</think>{work} #### 18").flagged


def test_empty_and_short() -> None:
    assert not doubt("").flagged and doubt("").markers_per_1000_tokens == 0
    assert not doubt("No. No. No.").flagged
    assert not doubt("3 + 3 + 3 + 3 + 3").flagged


def test_gold_rationales_are_not_flagged() -> None:
    flagged = [row["answer"] for split in ("train", "test") for row in gsm8k(split) if doubt(row["answer"]).flagged]
    assert not flagged, json.dumps(flagged[:3])
