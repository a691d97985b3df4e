"""Formulas that fit a problem, found by BM25 (Robertson and Zaragoza 2009, section 3) in a JSON-lines file."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mlxmath.errors import InputError
from mlxmath.runtime.files import parse_json

BUNDLED = Path(__file__).with_name("formulas.jsonl")
_K1, _B = 1.5, 0.75
_WORD = re.compile(r"[a-z]+")
_COMMON = frozenset(
    _WORD.findall(
        "a an and are as at be by for from has have he her his how if in is it its many much of on or she that the "
        "their then there they this to was what when which who will with you each does do did find"
    )
)


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
        self._lengths = [sum(terms.values()) for terms in self._terms]
        self._mean = sum(self._lengths) / max(1, len(self._lengths))
        found_in = Counter(word for terms in self._terms for word in terms)
        total = len(self.formulas)
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
                row = parse_json(line)
                texts = {key: row.get(key, "") for key in ("topic", "name", "formula", "keywords")}
                if not all(isinstance(text, str) for text in texts.values()) or not texts["formula"]:
                    raise ValueError
            except (ValueError, AttributeError):
                raise InputError(
                    f'--retrieve: {path}:{number}: expected {{"name": …, "formula": …}} with texts; mend the line.'
                ) from None
            formulas.append(Formula(**texts))
        if not formulas:
            raise InputError(f"--retrieve: {path} holds no formula.")
        return cls(formulas, count)

    def scores(self, question: str) -> list[float]:
        """BM25 of each formula for the question."""
        query = set(words(question))
        return [
            sum(
                self._idf[word] * terms[word] * (_K1 + 1) / (terms[word] + _K1 * (1 - _B + _B * length / self._mean))
                for word in query & terms.keys()
            )
            for terms, length in zip(self._terms, self._lengths, strict=True)
        ]

    def find(self, question: str) -> list[Formula]:
        """The best-matching formulas, best first, at most `count`; none that shares no word with the question."""
        ranked = sorted(enumerate(self.scores(question)), key=lambda pair: (-pair[1], pair[0]))
        return [self.formulas[i] for i, score in ranked[: self.count] if score > 0]

    def add(self, question: str) -> str:
        """The question with its formulas before it."""
        found = self.find(question)
        if not found:
            return question
        return "Formulas that may help:\n" + "\n".join(f"- {formula}" for formula in found) + f"\n\n{question}"


def words(text: str) -> list[str]:
    """Lower-case words without common ones, plural endings cut."""
    return [
        word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word
        for word in _WORD.findall(text.lower())
        if word not in _COMMON
    ]
