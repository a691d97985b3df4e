"""What a model is given: worked examples, formulas, the problem, in the template that it was trained with.

Formulas are found by BM25 (Robertson and Zaragoza 2009, section 3) in a JSON-lines file.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxmath.data.chat import ChatTemplate
from mlxmath.data.codec import codec_of
from mlxmath.data.datasets import Kind
from mlxmath.data.problem import Problem, SkippedRowError
from mlxmath.data.render import encode_prompt, render
from mlxmath.data.templates import Template, joined
from mlxmath.errors import InputError
from mlxmath.runtime.files import fits, parse_json

_WORD_PROBLEMS = (
    (
        "A baker has 3 trays with 12 rolls on each. She sells 20 rolls. How many rolls are left?",
        "The baker has 3 * 12 = 36 rolls.\nAfter selling 20 there are 36 - 20 = 16 rolls left.\n#### 16",
    ),
    (
        "Mira reads 15 pages on Monday and twice as many on Tuesday. The book has 100 pages. How many are unread?",
        "On Tuesday Mira reads 2 * 15 = 30 pages.\nTogether she has read 15 + 30 = 45 pages.\n"
        "100 - 45 = 55 pages are unread.\n#### 55",
    ),
    (
        "A bus ticket costs $2.50. Jonas rides to work and back on 4 days. How many dollars does he pay?",
        "Jonas takes 4 * 2 = 8 rides.\nHe pays 8 * 2.50 = 20 dollars.\n#### 20",
    ),
    (
        "In a class of 30 pupils, 40% play football. A third of those also play tennis. How many play both?",
        "30 * 40 / 100 = 12 pupils play football.\n12 / 3 = 4 of them also play tennis.\n#### 4",
    ),
    (
        "A tank holds 240 liters. A pump fills 15 liters a minute and a leak loses 3 liters a minute. "
        "How many minutes does it take to fill the empty tank?",
        "Each minute the tank gains 15 - 3 = 12 liters.\nIt takes 240 / 12 = 20 minutes.\n#### 20",
    ),
    (
        "Lena is 4 years older than Tim. In 6 years Tim will be 18. How old is Lena now?",
        "Tim is 18 - 6 = 12 years old now.\nLena is 12 + 4 = 16 years old.\n#### 16",
    ),
    (
        "A farmer packs 150 eggs into boxes of 6 and sells each box for $3. How many dollars does he earn?",
        "He packs 150 / 6 = 25 boxes.\nHe earns 25 * 3 = 75 dollars.\n#### 75",
    ),
    (
        "A rope of 36 meters is cut into two parts; one is three times as long as the other. "
        "How many meters long is the shorter part?",
        "The parts are together 1 + 3 = 4 times the shorter one.\nIt is 36 / 4 = 9 meters long.\n#### 9",
    ),
)
_COMPETITION = (
    (
        "Solve $3x - 7 = 2x + 5$ for $x$.",
        "Subtracting $2x$ from both sides gives $x - 7 = 5$, so $x = 12$.\nThe answer is $\\boxed{12}$.",
    ),
    (
        "What is the sum of the two solutions of $x^2 - 9x + 14 = 0$?",
        "The polynomial factors as $(x-2)(x-7)$, so the solutions are $2$ and $7$ with sum $2 + 7 = 9$.\n"
        "The answer is $\\boxed{9}$.",
    ),
    (
        "Two fair dice are rolled. What is the probability that the numbers shown add up to $5$?",
        "Of the $6 \\cdot 6 = 36$ outcomes, $(1,4), (2,3), (3,2), (4,1)$ have this sum: "
        "$\\frac{4}{36} = \\frac{1}{9}$.\nThe answer is $\\boxed{\\frac{1}{9}}$.",
    ),
    (
        "A right triangle has legs of length $9$ and $12$. What is its perimeter?",
        "The hypotenuse is $\\sqrt{9^2 + 12^2} = \\sqrt{225} = 15$, so the perimeter is $9 + 12 + 15 = 36$.\n"
        "The answer is $\\boxed{36}$.",
    ),
    (
        "What is the remainder when $7^{10}$ is divided by $5$?",
        "We have $7 \\equiv 2 \\pmod 5$ and $2^4 \\equiv 1 \\pmod 5$, so "
        "$7^{10} \\equiv 2^{10} \\equiv 2^2 = 4 \\pmod 5$.\n"
        "The answer is $\\boxed{4}$.",
    ),
    (
        "Simplify $\\sqrt{50} + \\sqrt{18}$.",
        "$\\sqrt{50} = 5\\sqrt{2}$ and $\\sqrt{18} = 3\\sqrt{2}$; their sum is $8\\sqrt{2}$.\n"
        "The answer is $\\boxed{8\\sqrt{2}}$.",
    ),
)
_CHOICE = (
    (
        "Which of these numbers is prime?\nA) 21\nB) 27\nC) 29\nD) 33",
        "21 = 3 * 7, 27 = 3 * 9 and 33 = 3 * 11 are products. 29 has no divisor but 1 and itself.\nThe answer is C.",
    ),
    (
        "A shirt costs 40 dollars and is reduced by a quarter. What is its new price in dollars?\n"
        "Options: a ) 10 , b ) 28 , c ) 30 , d ) 36 , e ) 50",
        "A quarter of 40 is 40 / 4 = 10, so the new price is 40 - 10 = 30.\nThe answer is c.",
    ),
    (
        "How many elements does the group of symmetries of an equilateral triangle have?\nA) 3\nB) 4\nC) 5\nD) 6",
        "There are 3 rotations and 3 reflections, together 3 + 3 = 6.\nThe answer is D.",
    ),
    (
        "What is the median of 4, 9, 1, 7 and 5?\nA) 4\nB) 5\nC) 5.2\nD) 7",
        "In order they are 1, 4, 5, 7, 9, and the one in the middle is 5.\nThe answer is B.",
    ),
    (
        "What is the derivative of f(x) = x^3 - 2x at x = 1?\nA) 1\nB) -1\nC) 3\nD) 5",
        "f'(x) = 3x^2 - 2, so f'(1) = 3 - 2 = 1.\nThe answer is A.",
    ),
    (
        "A box holds 2 red and 3 blue balls. Two are drawn blindly. What is the probability that both are red?\n"
        "A) 1/10\nB) 1/5\nC) 2/5\nD) 4/25",
        "The first is red with probability 2/5, then the second with 1/4: 2/5 * 1/4 = 1/10.\nThe answer is A.",
    ),
)
SHOTS = {"word": _WORD_PROBLEMS, "competition": _COMPETITION, "choice": _CHOICE}
"""Worked examples that `--shots` puts before a problem. Written for this purpose; they occur in no benchmark."""

BUNDLED = Path(__file__).with_name("formulas.jsonl")
_K1, _B = 1.5, 0.75
_WORD = re.compile(r"[a-z]+")
_COMMON = frozenset(
    _WORD.findall(
        "a an and are as at be by for from has have he her his how if in is it its many much of on or she that the "
        "their then there they this to was what when which who will with you each does do did find"
    )
)


class Prompts:
    """Turns questions into token ids.

    Args:
        tokenizer: the model's.
        template: in which the problem is put.
        num_shots: worked examples before the problem: training rows, or earlier turns of a chat.
        retriever: adds formulas to the problem.
        examples: problems with solutions to show in place of ours, of which 0 shots are all.
    """

    def __init__(
        self,
        tokenizer: Any,
        template: Template,
        num_shots: int = 0,
        retriever: "Retriever | None" = None,
        examples: Sequence[Problem] = (),
    ) -> None:
        self.template = template.for_tokenizer(tokenizer)
        self._tokenizer, self._num_shots, self._retriever = tokenizer, num_shots, retriever
        self._examples = examples
        most = len(examples) or min(map(len, SHOTS.values()))
        if num_shots > most:
            raise InputError(f"--shots: expected at most {most}, found {num_shots}.")

    def encode(self, question: str, kind: Kind) -> list[int]:
        """The ids that the model continues.

        Raises:
            InputError: the template writes an answer, and an example states none.
        """
        ours = [Problem("", q, solution=s) for q, s in SHOTS[kind][: self._num_shots]]
        shots = self._examples[: self._num_shots or None] or ours
        asked = self._retriever.add(question) if self._retriever else question
        try:
            if isinstance(self.template, ChatTemplate):
                return encode_prompt(self._tokenizer, self.template.prompt(asked, shots))
            rows = [self.template.render(shot) for shot in shots]
        except SkippedRowError as reason:
            raise InputError(
                f"--few-shot: an example has {reason}; give each its answer (a column `answer`), or choose a template "
                "without {answer}."
            ) from None
        if not rows:
            return encode_prompt(self._tokenizer, self.template.prompt(asked))
        codec = codec_of(self._tokenizer)
        rendered, _ = render(self._tokenizer, rows)
        ids = list(codec.prefix)
        for start, end in zip(rendered.offsets[:-1], rendered.offsets[1:], strict=True):
            ids += rendered.tokens[start + len(codec.prefix) : end].tolist()
        return ids + codec.encode(joined(self.template.prompt(asked)))


@dataclass(frozen=True)
class Formula:
    """A formula, what it is called, and words under which it should be found."""

    topic: str
    name: str
    formula: str
    keywords: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.formula}"


class Retriever:
    """Ranks formulas for a question."""

    def __init__(self, formulas: Sequence[Formula], count: int) -> None:
        self.formulas, self.count = list(formulas), count
        self._terms = [Counter(words(f"{f.topic} {f.name} {f.keywords}")) for f in self.formulas]
        self._mean = sum(terms.total() for terms in self._terms) / max(1, len(self._terms))
        found_in, total = Counter(word for terms in self._terms for word in terms), len(self.formulas)
        self._idf = {word: math.log(1 + (total - n + 0.5) / (n + 0.5)) for word, n in found_in.items()}

    @classmethod
    def load(cls, source: str, count: int) -> "Retriever":
        """Read a file of {"name", "formula"[, "topic", "keywords"]}, a row a formula; "bundled" is the one beside this.

        Raises:
            InputError: the file is absent or a row is something else.
        """
        path = BUNDLED if source == "bundled" else Path(source).expanduser()
        if not path.is_file():
            raise InputError(f"--retrieve: {path} does not exist; give a .jsonl file of formulas, or 'bundled'.")
        formulas = []
        for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
            if not line.strip():
                continue
            try:
                row = {"topic": "", "name": "", "keywords": ""} | parse_json(line)
            except (ValueError, TypeError):
                row = {}
            if not fits(row, Formula) or not row["formula"]:
                raise InputError(
                    f'--retrieve: {path}:{number}: expected {{"name": …, "formula": …}} with texts; mend the line.'
                )
            formulas.append(Formula(row["topic"], row["name"], row["formula"], row["keywords"]))
        if not formulas:
            raise InputError(f"--retrieve: {path} holds no formula.")
        return cls(formulas, count)

    def scores(self, question: str) -> list[float]:
        """BM25 of each formula for the question."""
        query = set(words(question))
        return [
            sum(
                self._idf[word] * n * (_K1 + 1) / (n + _K1 * (1 - _B + _B * terms.total() / self._mean))
                for word, n in terms.items()
                if word in query
            )
            for terms in self._terms
        ]

    def find(self, question: str) -> list[Formula]:
        """The best-matching formulas, best first, at most `count`; none that shares no word with the question."""
        ranked = sorted(enumerate(self.scores(question)), key=lambda pair: (-pair[1], pair[0]))
        return [self.formulas[i] for i, score in ranked[: self.count] if score > 0]

    def add(self, question: str) -> str:
        """The question with its formulas before it."""
        listed = "".join(f"- {formula}\n" for formula in self.find(question))
        return f"Formulas that may help:\n{listed}\n{question}" if listed else question


def words(text: str) -> list[str]:
    """Lower-case words without common ones, plural endings cut."""
    return [
        word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word
        for word in _WORD.findall(text.lower())
        if word not in _COMMON
    ]
