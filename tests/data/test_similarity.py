"""When two questions are the same."""

import subprocess
import sys

import numpy as np
import pytest

from mlxmath.data.dedup import NearDuplicates, normalise, words

LONG = "Natalia sold clips to 48 of her friends in April and then she sold half as many clips in May. How many in all?"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("She has 1,000 Apples!", ["she", "has", "1000", "apples"]),
        ("1{,}000 and 1\\,000 and 1,\\!000", ["1000", "and", "1000", "and", "1000"]),
        ("1 000 000 or 1\u2009000", ["1000000", "or", "1000"]),
        ("$5.50, 5.500 and 007", ["5.5", "5.5", "and", "7"]),
        ("1000.00 0.0 .5", ["1000", "0", "5"]),
        ("four boys, twenty girls", ["4", "boys", "20", "girls"]),
        ("x  =\n\n 3\\quad y", ["x", "3", "y"]),
        ("1,2,3 and (1,200,300)", ["1", "2", "3", "and", "1200300"]),
        ("ﬁve²", ["5", "2"]),
        ("", []),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected


def test_the_text_s_hash_ignores_spacing() -> None:
    a, b, c = normalise(["some thing 12", "Something,12", "something 13"]).texts
    assert a == b != c


def test_ngrams_stay_within_a_question() -> None:
    hashed = normalise(["a b c d", "e", "c d e f"])
    ngrams, owner = hashed.ngrams(3)
    assert owner.tolist() == [0, 0, 2, 2]
    assert len(set(ngrams.tolist())) == 4
    again, _ = normalise(["x a b c"]).ngrams(3)
    assert again[1] == ngrams[0], "the same words, the same hash"
    assert len(normalise(["a"]).ngrams(3)[0]) == 0


def test_hashes_do_not_depend_on_the_process() -> None:
    program = "from mlxmath.data.dedup import normalise as n; print(n(['Half of 1,000 é']).texts[0])"
    outputs = {
        subprocess.run([sys.executable, "-c", program], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True,
                       check=True, cwd=__file__.partition("/tests/")[0]).stdout
        for seed in ("0", "1")
    }  # fmt: skip
    assert outputs == {f"{normalise(['Half of 1,000 é']).texts[0]}\n"}


def test_near_duplicates() -> None:
    near = NearDuplicates()
    questions = [
        LONG,
        LONG.replace("friends", "good friends").upper(),  # one word more
        LONG.replace("48", "52"),  # another problem
        "What is 2 + 2?",
        "what is 2+2",
        "Something else altogether, about 48 apples and their price in a shop at the end of the road.",
    ]
    assert near.find(normalise(questions)).tolist() == [False, True, False, False, True, False]
    assert near.find(normalise([questions[2], ""])).tolist() == [True, False]


def test_signatures_estimate_the_jaccard_similarity() -> None:
    vocabulary = [f"w{chr(97 + i // 26)}{chr(97 + i % 26)}x" for i in range(400)]
    a, b = " ".join(vocabulary[:300]), " ".join(vocabulary[100:400])
    signatures = NearDuplicates().signatures(normalise([a, b]))
    exact = 198 / (298 + 298 - 198)
    assert abs(np.mean(signatures[0] == signatures[1]) - exact) < 3 * np.sqrt(exact * (1 - exact) / 64)
