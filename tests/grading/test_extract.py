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
    ("The answer is option D.", "D", "answer is"),
    ("The answer is option D: 7 apples.", "(D) 7 apples", "answer is"),
    ("Answer: Option **d** = 7", "(D) 7", "answer is"),
    ("The correct option is D: 7", "(D) 7", "answer is"),
    ("The answer is D) 7.", "(D) 7", "answer is"),
    ("The answer is option (J).", "J", "answer is"),
    ("The answer is therefore B.", "B", "answer is"),
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


@pytest.mark.parametrize(
    ("begin", "end"),
    [
        ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
        ("<|channel>thought\n", "<channel|>"),
        ("[THINK]", "[/THINK]"),
        ("<seed:think>", "</seed:think>"),
        ("<longcat_think>", "</longcat_think>"),
        ("◁think▷", "◁/think▷"),
    ],
)
def test_thinking_of_other_families(begin: str, end: str) -> None:
    assert grade(f"{begin}Maybe \\boxed{{3}}?{end}It is 4.", "4").correct
    assert grade(f"Maybe \\boxed{{3}}?{end}It is 4.", "4").correct
    assert grade(f"{begin}The answer is 4.", "4").truncated


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
    ("response", "text"),
    [
        ("Therefore, he needs 2 1/2 cups of flour.", "2 1/2"),
        ("There are 10, so each person gets 2 1/2 pizzas.", "2 1/2"),
        ("Each person gets 2 and 1/2 pizzas.", "2 and 1/2"),
        ("Answer: He needs 2 1/2 cups of flour for this.", "2 1/2"),
        ("The answer is that he needs 2 1/2 cups of flour for all of the bread.", "2 1/2"),
        (r"He needs 2\frac{1}{2} cups of flour for this.", r"2\frac{1}{2}"),
        (r"He needs -2 \frac{1}{2} cups of flour for this.", r"-2 \frac{1}{2}"),
        (r"Each gets 2 and \frac{1}{2} pizzas.", r"2 and \frac{1}{2}"),
        (r"It weighs 1,000\dfrac{1}{2} pounds in all.", r"1,000\dfrac{1}{2}"),
        ("He needs 2½ cups of it.", "2½"),
        ("He needs 2 ½ cups of it.", "2 ½"),
        ("He had 3 cups and needs ½ of a cup.", "½"),
        ("It sank by -½ inch.", "-½"),
        ("It weighs 1,000 1/2 pounds.", "1,000 1/2"),
        ("The change is -2 1/2 points.", "-2 1/2"),
        ("It costs $2 1/2.", "$2 1/2"),
        ("It grew 12 1/2% in all.", "12 1/2%"),
        ("The area is 2 1/2 π.", "2 1/2 π"),
        ("He drank 5 120/240 of them.", "5 120/240"),
        ("The walk is between 2 1/2 and 3 1/2 miles.", "3 1/2"),
        ("They walked 1, 2 1/3 miles.", "2 1/3"),
        ("It took 3 hours instead of 2 1/2 hours.", "3"),
        # a number and a fraction
        ("On day 2 1/2 of them left.", "1/2"),
        ("In Week 12 1/2 of them left.", "1/2"),
        ("On May 3 1/2 of them left.", "1/2"),
        (r"On day 2 \frac{1}{2} of them left.", r"\frac{1}{2}"),
        ("There are 3\n1/2 of them left.", "1/2"),
        ("It lies between 2 and 1/2.", "1/2"),
        ("They are 1, 2 and 1/2.", "1/2"),
        ("They are 5 10/2", "10/2"),
        ("They are 3 4/4", "4/4"),
        ("They are 3 0/4", "0/4"),
        ("It is 2 * 1/2", "1/2"),
        ("It is = 4 / 8", "4 / 8"),
        ("He ran 2.5 1/2", "1/2"),
        (r"Half of them: 2.5\frac{1}{2} again", r"\frac{1}{2}"),
        ("It was on 12 25/12/2020", "12/2020"),
        ("It takes 2-3 hours.", "3"),
        ("It starts at 7:30", "7:30"),
        ("It is 2 5π", "5π"),
    ],
)
def test_mixed_numbers_in_prose(response: str, text: str) -> None:
    found = extract(response)
    assert found and found.text == text


@pytest.mark.parametrize(
    ("response", "gold", "is_correct"),
    [
        ("Therefore, he needs 2 1/2 cups of flour.", "2.5", True),
        ("Therefore, he needs 2 1/2 cups of flour.", "1/2", False),
        ("Each person gets 2 and 1/2 pizzas.", "2.5", True),
        ("It weighs 1,000 and 1/2 pounds.", "1000.5", True),
        ("He needs 2½ cups of it.", "2.5", True),
        ("It sank by −2 1/2 inches.", "-2.5", True),
        ("The area is 2 1/2 π.", r"\frac{5\pi}{2}", True),
        ("The solutions are 2 and 1/2.", r"2, \frac{1}{2}", True),
    ],
)
def test_mixed_numbers_count_whole(response: str, gold: str, is_correct: bool) -> None:
    assert grade(response, gold).correct is is_correct


@pytest.mark.parametrize(
    ("response", "text"),
    [
        ("Option C is correct.", "C"),
        ("Therefore, option (C) is correct.", "C"),
        ("Thus, C is the correct answer.", "C"),
        ("It takes 8 hours. Since 8*5=40 and 40/2=20, option C is correct.", "C"),
        ("We get 8 + 5 = 13. Since 5 > 3, B is the correct answer.", "B"),
        ("It is 13.\n(D) is the right choice", "D"),
        ("It is 13.\n**D** is the right choice", "D"),
        ("A is the correct answer, as 5 > 3.", "A"),
        ("We get 13. Hence B is the answer.", "B"),
        ("We get 13, so **option B** is correct.", "B"),
        ("We get 13. Choice B (13 hours) is right.", "B"),
        ("We get 13. This means answer E must be the correct one.", "E"),
        ("Option A is 12. Option B is 13. So option B is correct.", "B"),
        ("The answer is 13 hours, so option C is correct.", "C"),
        ("Option C is correct because 8 + 5 = 13.", "C"),
        # the last one counts
        ("Option A is correct. Wait, 8 + 5 = 13. Option B is correct.", "B"),
        ("Option A is correct. No: the answer is B.", "B"),
        ("Option A is correct. No: the correct option is B.", "B"),
        ("C is the correct answer. Option A is incorrect, as 5 > 3.", "C"),
        ("C is the correct answer. Option A is not correct, as 5 > 3.", "C"),
        ("C is the correct answer. 13 is the answer to another question.", "13"),
        ("Not option A but option B is correct.", "B"),
        # no letter
        ("It is 13. Option C is incorrect.", "13"),
        ("It is 13. Option C is not correct.", "13"),
        ("It is 13. Option C isn't correct.", "13"),
        ("It is 13. Is option C correct?", "13"),
        ("It is 13. Option C is correct?", "13"),
        ("It is 13. Option C is correct only if 5 < 3.", "3"),
        ("It is 13. If option C is correct, it is 12 or 14.", "14"),
        ("It is 13. Neither option A nor option B is correct.", "13"),
        ("It is 13. It is not true that option B is correct.", "13"),
        ("It is 13. Such a is the correct answer.", "13"),
        ("It is 13. Thus, a is the correct answer.", "13"),
        ("It is 13. The angle at C is right.", "13"),
        ("It is 13. Thus, C is right.", "13"),
        ("It is 13. Vitamin A is the best choice.", "13"),
        ("We get B = 13. Therefore, B is the correct answer.", "13"),
        ("It is 13. Step B is correct.", "13"),
    ],
)
def test_letters_that_are_said_to_be_right(response: str, text: str) -> None:
    found = extract(response)
    assert found and found.text == text


@pytest.mark.parametrize(
    ("gold", "is_correct"), [("C", True), ("(C)", True), ("(C) 8", True), ("(B) 8", False), ("8", False)]
)
def test_a_letter_in_prose_against_golds(gold: str, is_correct: bool) -> None:
    assert grade("It takes 8 hours. Since 8*5=40, option C is correct.", gold).correct is is_correct


@pytest.mark.parametrize(
    "response", [r"\boxed{4}\boxed{}", r"It is \boxed{4}. Or rather \boxed{", r"First $\boxed{3}$, then $\boxed{ }$."]
)
def test_an_empty_last_box_is_no_answer(response: str) -> None:
    assert extract(response) is None


def test_what_follows_an_empty_box_counts() -> None:
    found = extract("Write it as \\boxed{}. The answer is 12.")
    assert found and found.text == "12"
