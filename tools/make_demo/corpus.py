"""What the base model of the demo reads: arithmetic in plain styles, the tutor's template among them.

It reads that template so that fine-tuning has no format to teach: what the tuned model can do and the base cannot,
in the same words, is mathematics.
"""

import random
from collections.abc import Callable, Iterator
from itertools import chain, islice

from tools.make_demo.base_tokenizer import TUTOR_PROMPT
from tools.make_demo.story import WordProblem
from tools.make_demo.word_problems import CORPUS_SHARES, READ_SHARES, problem_stream

_LABELS = ("Exercise", "Task", "Question", "Homework", "Card", "Item", "Quiz", "Puzzle", "Number", "Page")
_ORDERS = (
    "Work these out at home.",
    "You may use paper and a pencil.",
    "Show how you worked. Write the result on the line.",
    "These are for the whole class. Take your time and check your work.",
    "Read each question with care. You have one hour.",
    "Here are some questions about numbers for you to try. Do as many as you can.",
    "Solutions are on the last page. Problem sheets are handed in on Friday.",
    "Problem sheet for the week. Solutions come on Monday.",
    "You are ready for the next page. Try all of these and hand them in at the end.",
)
_ASKED = (
    ("Q: {p}\nA: {w}", 5),
    ("Question: {p}\nAnswer: {w}", 3),
    ("{p}\n{w}", 3),
    ("{p}\n\nHere is how it is done.\n{w}", 2),
    ("Ask: {p}\nReply: {w}", 2),
)
_CLOSINGS = (
    "The answer is {}.",
    "So the answer is {}.",
    "The answer is {}.",
    "It is {}.",
    "Result: {}",
    "That makes {}.",
)


def _worked_questions(rng: random.Random, problems: Iterator[WordProblem]) -> str:
    """Questions, each answered in worked sentences, laid out in one of several ways."""
    layout = rng.choices([text for text, _ in _ASKED], weights=[share for _, share in _ASKED])[0]
    closing, between = rng.choice(_CLOSINGS), rng.choice((" ", " ", "\n"))
    pairs = [
        layout.format(p=p.problem, w=between.join((*p.steps, closing.format(p.answer))))
        for p in islice(problems, rng.randint(1, 4))
    ]
    return "\n\n".join(pairs)


def _tutored(rng: random.Random, problems: Iterator[WordProblem]) -> str:
    """One question in the template that fine-tuning uses, and its solution."""
    del rng
    problem = next(problems)
    return TUTOR_PROMPT.format(problem=problem.problem) + problem.solution


def _prose(rng: random.Random, problems: Iterator[WordProblem]) -> str:
    """Stories that work the numbers out as they go, nobody asking."""
    between = rng.choice((" ", " ", "\n"))
    told = [between.join((p.context, *p.steps) if p.context else p.steps) for p in islice(problems, rng.randint(1, 4))]
    return "\n\n".join(told)


def _drill(rng: random.Random, problems: Iterator[WordProblem]) -> str:
    """Bare equations."""
    del problems
    lines = []
    for _ in range(rng.randint(6, 20)):
        operation = rng.choice("++--*/")
        if operation in "+-":
            a = rng.randint(2, 97)
            b = rng.randint(2, 99 - a) if operation == "+" else rng.randint(1, a - 1)
            result = a + b if operation == "+" else a - b
        else:
            while True:
                a, b = rng.randint(2, 12), rng.randint(2, 12)
                if a * b <= 99:
                    break
            result = a * b
            if operation == "/":
                a, result = result, a
        lines.append(f"{a} {operation} {b} = {result}")
    return rng.choice(("\n", ". ", ", ")).join(lines)


def _one_topic(rng: random.Random, problems: Iterator[WordProblem]) -> Iterator[WordProblem]:
    """The stream itself or, for most sheets, only its problems of the first one's kind."""
    first = next(problems)
    if rng.random() < 0.3:
        return chain([first], problems)
    return chain([first], (p for p in problems if p.scenario == first.scenario))


def _numbered_sheet(rng: random.Random, problems: Iterator[WordProblem]) -> str:
    """A sheet of numbered exercises without answers."""
    sheet = _one_topic(rng, problems)
    first = rng.randint(1, 30)
    between = rng.choice(("\n", "\n\n"))
    lines = [f"{number}. {p.problem}" for number, p in enumerate(islice(sheet, rng.randint(3, 8)), first)]
    order = rng.choice((f"{rng.choice(_ORDERS)}\n\n", ""))
    return order + between.join(lines)


def _labelled_sheet(rng: random.Random, problems: Iterator[WordProblem]) -> str:
    """Exercises under headings, one after the other, without answers."""
    sheet = _one_topic(rng, problems)
    number = rng.randint(1, 30)
    mark = rng.choice(("", "", "## ", "#### "))
    label = rng.choice(_LABELS)
    style = rng.choice(("{label} {number}:", "{label} {number}", "{label}:", "{number}"))
    parts = [
        f"{mark}{style.format(label=label, number=n)}\n{p.problem}"
        for n, p in enumerate(islice(sheet, rng.randint(3, 8)), number)
    ]
    return "\n\n".join([*([rng.choice(_ORDERS)] if rng.random() < 0.7 else []), *parts])


def _short_answers(rng: random.Random, problems: Iterator[WordProblem]) -> str:
    """Questions with the bare result: the work is not shown."""
    lines = [f"{p.problem} Answer: {p.answer}" for p in islice(problems, rng.randint(2, 6))]
    return rng.choice(("\n", "\n\n")).join(lines)


_Style = Callable[[random.Random, Iterator[WordProblem]], str]
_WORKED: tuple[tuple[_Style, int], ...] = (
    (_worked_questions, 40),
    (_tutored, 18),
    (_prose, 12),
    (_drill, 26),
    (_short_answers, 2),
)
_UNWORKED: tuple[tuple[_Style, int], ...] = (
    (_numbered_sheet, 3),
    (_labelled_sheet, 3),
)
"""Every plain style with its share of the documents. Sheets without answers hold problems of every kind, so that the
base has read every word; what is worked is only of the kinds that it learns."""


def documents(seed: int) -> Iterator[str]:
    """The pretraining corpus, document by document, without any problem that is held out."""
    rng = random.Random(seed)
    learned = problem_stream(seed + 1, CORPUS_SHARES, held_out=False)
    read = problem_stream(seed + 2, READ_SHARES, held_out=False)
    styles = [(style, learned, share) for style, share in _WORKED] + [(s, read, share) for s, share in _UNWORKED]
    shares = [share for _, _, share in styles]
    while True:
        style, problems, _ = rng.choices(styles, weights=shares)[0]
        yield style(rng, problems)
