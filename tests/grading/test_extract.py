"""Where the final answer is found, and by which rule."""

import pytest

from mlxmath.grading import grade
from mlxmath.grading.extract import extract, reference

CASES = [
    # ####
    ("She has 48 + 16 in the end.\n#### 64", "64", "####"),
    ("#### Step 1: add\n3 + 4 = 7\n#### 2. Then subtract\n7 - 2\n\\boxed{5}", "5", "boxed"),
    ("### Solution\n#### $12.50 per week", "$12.50 per week", "####"),
    ("So it is \\boxed{3}\n#### \\boxed{4}", "4", "####"),
    ("#### 7 **", "7", "####"),
    # boxed
    (r"nested \boxed{\frac{1}{\sqrt{2}}}.", r"\frac{1}{\sqrt{2}}", "boxed"),
    (r"first \boxed{1}. Then a long way to go, and in the end \boxed{2}", "2", "boxed"),
    (r"$\boxed{5}$ hours for 2000 miles", "5", "boxed"),
    (r"\fbox{9}", "9", "boxed"),
    (r"\boxed 7", "7", "boxed"),
    (r"\boxed{ }, so \boxed{8}", "8", "boxed"),
    (r"fill \boxed{\phantom{22}} with \boxed{8}", "8", "boxed"),
    (r"\boxed{1} and \boxed{2}", "1, 2", "boxed"),
    (r"\boxed{1}, \boxed{2}, or \boxed{3}", "1, 2, 3", "boxed"),
    (r"\boxed{4}. Wait, \boxed{5}", "5", "boxed"),
    (r"\boxed{12", "12", "boxed"),
    (
        r"In all \boxed{200}, and so on. Final Answer: The final answer is 10455. I hope it is correct.",
        "10455",
        "answer is",
    ),
    # answer lines
    ("5 * 4 = 20\nA: 20", "20", "answer is"),
    ("**Answer:** 20", "20", "answer is"),
    ("Answer: $x = 4$", "x = 4", "answer is"),
    ("The final answer is 20. It took 3 steps.", "20", "answer is"),
    ("The answer is $\\frac{1}{2}$.", r"\frac{1}{2}", "answer is"),
    ("The answer is: 4:30 p.m.", "4:30 p.m.", "answer is"),
    ("The correct answer is (C) because 3 > 2.", "C", "answer is"),
    ("The correct option is **B**.", "B", "answer is"),
    ("Final Answer: The largest $n$ is 34.", "34", "answer is"),
    ("So the answer is Evelyn.", "Evelyn", "answer is"),
    ("the answer is $20 for 3 days", "$20", "answer is"),
    ("The answer is $3$ and $4$.", "3, 4", "answer is"),
    ("Final answer:\n\n$12$", "12", "answer is"),
    ("The answer is 5 + 3 = 8 apples", "8 apples", "answer is"),
    # nothing but an answer
    ("42", "42", "whole"),
    ("-3/4", "-3/4", "whole"),
    (r"\frac{1}{2}", r"\frac{1}{2}", "whole"),
    ("12 apples", "12 apples", "whole"),
    ("Paris", "Paris", "whole"),
    # therefore, last
    ("We add 3 and 4.\nTherefore she has 7 apples left after 2 days of 24 hours. Fine.", "24", "therefore"),
    ("We get $x=2$.\nHence the value of $y$ is $9$.", "9", "therefore"),
    ("He has 6.\n\nThe answer is not a straightforward multiplication of apples, but a division.", "6", "last number"),
    ("It is 4 + 8 = 12.\nThe answer is found by adding both.", "12", "last number"),
    ("In all 12.\nThe correct answer is the number of legs on all of the cats.", "12", "last number"),
    ("f(2) = 4. The answer is no real solutions.", "no real solutions", "answer is"),
    (
        "1 + 1. The answer is twenty-five thousand three hundred and twelve",
        "twenty-five thousand three hundred and twelve",
        "answer is",
    ),
    ("There were 12, then 5 more came, and it was 17 in all", "17", "last number"),
    ("It weighs about 1,250 kg", "1,250", "last number"),
    ("it is 3/4 of it", "3/4", "last number"),
    ("we find $x \\lt 3$ here", "x \\lt 3", "last number"),
    ("It costs $12.50.", "$12.50", "last number"),
    # noise behind the end
    ("#### 5<|im_end|>\nuser: and 7?", "5", "####"),
    ("The answer is 5.<|endoftext|>The answer is 6.", "5", "answer is"),
]


@pytest.mark.parametrize(("response", "text", "rule"), CASES)
def test_extract(response: str, text: str, rule: str) -> None:
    found = extract(response)
    assert found is not None
    assert (found.text, found.rule) == (text, rule)


@pytest.mark.parametrize("response", ["", "   \n", "no figures here at all", "\\boxed{}", "####"])
def test_nothing_to_find(response: str) -> None:
    verdict = grade(response, "8")
    assert not verdict.correct
    assert verdict.extracted in (None, "")


def test_thinking() -> None:
    assert grade("<think>Maybe \\boxed{3}?</think>It is \\boxed{4}.", "4").correct
    assert not grade("<think>It is \\boxed{4}.</think>I do not know.", "4").correct
    assert grade("It must be 3. </think>\\boxed{4}", "4").correct  # the prompt opened the tag
    for cut in ("<think>So \\boxed{4}", "<think>a</think><think>\\boxed{4}"):
        verdict = grade(cut, "4")
        assert (verdict.correct, verdict.truncated, verdict.extracted) == (False, True, None)


def test_truncated_is_wrong() -> None:
    verdict = grade("So \\boxed{4}", "4", truncated=True)
    assert (verdict.correct, verdict.truncated, verdict.extracted) == (False, True, "4")
    assert not grade("So \\boxed{4}", "4").truncated


def test_gold_may_be_a_solution() -> None:
    assert reference("3 + 4 = 7\n#### 7") == "7"
    assert reference(r"Thus $\boxed{\frac{1}{2}}$.") == r"\frac{1}{2}"
    assert reference(" 12 ") == "12"
    solution = "The stock falls. " * 20 + r"Final Answer: The final answer is $28 \%$. I hope it is correct."
    assert grade(r"\boxed{28\%}", solution).correct


@pytest.mark.parametrize(
    ("response", "text"),
    [
        ("Each pen costs $3, so he pays $15.", "$15"),
        ("She sells them for $2 each and makes $18 every day.", "$18"),
        ("The total is $4 * 5 = $20", "$20"),
        ("It is $5 and $x = 3$", "x = 3"),
        ("So x = −7", "−7"),
        ("The change is –12 points.", "–12"),
        ("Left over: 10 − 3 apples.", "3"),
        ("The answer is $30,000, which is $20,000 more.", "$30,000"),
    ],
)
def test_amounts_and_signs_in_prose(response: str, text: str) -> None:
    found = extract(response)
    assert found and found.text == text


@pytest.mark.parametrize(
    "response", [r"\boxed{4}\boxed{}", r"It is \boxed{4}. Or rather \boxed{", r"First $\boxed{3}$, then $\boxed{ }$."]
)
def test_an_empty_last_box_is_no_answer(response: str) -> None:
    assert extract(response) is None


def test_what_follows_an_empty_box_counts() -> None:
    found = extract("Write it as \\boxed{}. The answer is 12.")
    assert found and found.text == "12"
