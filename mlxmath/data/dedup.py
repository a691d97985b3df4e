"""When two problems are the same: normalised words, their hashes, n-grams of them, and MinHash; and which occur in a
benchmark: by normalised text, or by any 13 words in a row.

The criterion for benchmarks is that of GPT-3's paper (Brown et al. 2020, appendix C). The hashes of GSM8K's test and of
MATH-500 come with the package (`benchmarks/*.npz`), so that the same rows are left out on every machine, with or
without a network:

    python -m mlxmath.data.dedup gsm8k=gsm8k/test.jsonl math500=test.jsonl       writes them anew

Everything is hashed with BLAKE2 and integer arithmetic, so that all machines and all values of PYTHONHASHSEED agree.

Shapes: Q questions, W words in all of them together, H hash functions.
"""

import hashlib
import itertools
import re
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlxmath.config.schema import DataConfig, SourceConfig
from mlxmath.data.columns import near
from mlxmath.data.datasets import DATASETS, known
from mlxmath.data.rows import is_file_name
from mlxmath.data.sources import load_problems
from mlxmath.errors import InputError
from mlxmath.runtime.console import say
from mlxmath.runtime.files import atomic_file

Hashes = NDArray[np.uint64]

_BATCH = 2000
_LATEX_SPACE = re.compile(r"\\[,;: ]|\\quad|\{,\}|~")
_GROUPED = re.compile(r"(?<![\d.])\d{1,3}(?:[,  ' _]\d{3})+(?![\d])")
_WORD = re.compile(r"\d+(?:\.\d+)?|[^\W\d_]+")
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_UNITS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_NUMBER_WORDS = {word: str(i) for i, word in enumerate(_UNITS)} | {word: f"{i}0" for i, word in enumerate(_TENS, 2)}
_PRIME = np.uint64(0x100000001B3)


def words(text: str) -> list[str]:
    """The words and numbers of a text, in the one spelling that all its variants share.

    Case, punctuation, spacing and LaTeX spacing do not count; `1,000`, `1 000`, `1{,}000` and `1000.0` are `1000`;
    `four` is `4`.
    """
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    if "\\" in text or "{,}" in text or "~" in text:
        text = _LATEX_SPACE.sub(" ", text.replace("\\!", ""))
    text = _GROUPED.sub(lambda match: re.sub(r"\D", "", match[0]), text)
    return [_NUMBER_WORDS.get(word) or _number(word) if word[0].isalnum() else word for word in _WORD.findall(text)]


def _number(word: str) -> str:
    if not word[0].isdigit():
        return word
    whole, _, decimals = word.partition(".")
    decimals = decimals.rstrip("0")
    return (whole.lstrip("0") or "0") + (f".{decimals}" if decimals else "")


def text_hash(text: str) -> int:
    """64 bits of BLAKE2b."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


word_hash = cache(text_hash)


class Words(NamedTuple):
    """Normalised questions laid end to end: question q is `hashes[offsets[q]:offsets[q + 1]]`."""

    hashes: Hashes
    """(W,)"""
    offsets: NDArray[np.int64]
    """(Q + 1,)"""
    texts: Hashes
    """(Q,) hash of the whole normalised text, spaces left out: re-spaced words are the same."""
    numbers: Hashes
    """(Q,) hash of the numbers in it, in order."""

    def ngrams(self, n: int) -> tuple[Hashes, NDArray[np.int64]]:
        """Hashes of all n-grams, and the question of each."""
        count = len(self.hashes) - n + 1
        if count <= 0:
            return np.zeros(0, np.uint64), np.zeros(0, np.int64)
        total = np.zeros(count, np.uint64)
        for i in range(n):
            total = total * _PRIME + self.hashes[i : i + count]
        question = np.repeat(np.arange(len(self.texts)), np.diff(self.offsets))
        inside = question[:count] == question[n - 1 :]
        return mix(total[inside]), question[:count][inside]


def normalise(questions: Sequence[str]) -> Words:
    """The words of each question, hashed."""
    lists = [words(question) for question in questions]
    lengths = np.fromiter(map(len, lists), np.int64, len(lists))
    return Words(
        np.fromiter((word_hash(word) for found in lists for word in found), np.uint64, int(lengths.sum())),
        np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]),
        np.array([text_hash("".join(found)) for found in lists], np.uint64),
        np.array([text_hash(" ".join(w for w in found if w[0].isdigit())) for found in lists], np.uint64),
    )


def mix(numbers: Hashes) -> Hashes:
    """SplitMix64's output function (Steele, Lea, Flood 2014): every bit of the result depends on every bit given."""
    mixed = numbers + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


NGRAM = 13
"""So many words in a row make two questions the same problem of a benchmark."""
FOLDER = Path(__file__).parent / "benchmarks"
NUM_HASHES, BANDS = 64, 16
SHINGLE = 3
SIMILAR = 0.8
"""Jaccard similarity of the sets of 3-word shingles from which two questions are near-identical."""


class NearDuplicates:
    """Finds questions that are nearly the same as an earlier one: MinHash signatures (Broder 1997) in LSH bands.

    Two questions match if at least 80 % of their signatures agree and they hold the same numbers: a problem with other
    numbers is another problem.
    """

    def __init__(self) -> None:
        self._factors = mix(np.arange(NUM_HASHES, dtype=np.uint64)) | np.uint64(1)
        self._bands: list[dict[int, int]] = [{} for _ in range(BANDS)]
        self._signatures: list[NDArray[np.uint32]] = []

    def find(self, questions: Words) -> NDArray[np.bool_]:
        """(Q,) whether each is near-identical to one seen before; the others are remembered."""
        signatures = self.signatures(questions)
        rows = NUM_HASHES // BANDS
        bands = np.zeros((len(signatures), BANDS), np.uint64)
        for i in range(rows):
            bands = mix(bands * _PRIME + signatures[:, i::rows])
        bands = mix(bands + questions.numbers[:, None])
        found = np.zeros(len(signatures), bool)
        for q, keys in enumerate(bands.tolist()):
            candidates = {seen[key] for key, seen in zip(keys, self._bands, strict=True) if key in seen}
            found[q] = any(np.mean(signatures[q] == self._signatures[c]) >= SIMILAR for c in candidates)
            if not found[q]:
                for key, seen in zip(keys, self._bands, strict=True):
                    seen.setdefault(key, len(self._signatures))
                self._signatures.append(signatures[q])
        return found

    def signatures(self, questions: Words) -> NDArray[np.uint32]:
        """(Q, H) the least hash of a question's shingles under each hash function."""
        shingles, owner = questions.ngrams(SHINGLE)
        of_texts = mix(questions.texts[:, None] ^ self._factors)  # a question too short for shingles is one itself
        result = (of_texts >> np.uint64(32)).astype(np.uint32)
        if len(shingles):
            starts = np.flatnonzero(np.diff(owner, prepend=-1))
            for h, factor in enumerate(self._factors):
                hashed = ((shingles * factor) >> np.uint64(32)).astype(np.uint32)
                result[owner[starts], h] = np.minimum.reduceat(hashed, starts)
        return result


@dataclass(frozen=True)
class Benchmark:
    """The hashes of a benchmark's questions."""

    name: str
    revision: str
    texts: Hashes
    """Ascending, of the normalised questions."""
    ngrams: Hashes
    """Ascending, of all runs of 13 words in them."""

    def holds(self, questions: Words) -> NDArray[np.bool_]:
        """(Q,) whether each question occurs in the benchmark."""
        found = _is_among(questions.texts, self.texts)
        ngrams, owner = questions.ngrams(NGRAM)
        found[owner[_is_among(ngrams, self.ngrams)]] = True
        return found


def fingerprint_benchmark(name: str, revision: str, questions: Sequence[str]) -> Benchmark:
    """The benchmark with these questions."""
    hashed = normalise(questions)
    return Benchmark(name, revision, np.unique(hashed.texts), np.unique(hashed.ngrams(NGRAM)[0]))


def occurring(questions: Sequence[str], data: Iterable[str]) -> NDArray[np.bool_]:
    """(Q,) whether each question occurs in `data`, by the same criterion; of `data` only what is shared is kept."""
    wanted = normalise(questions)
    texts, ngrams = np.unique(wanted.texts), np.unique(wanted.ngrams(NGRAM)[0])
    seen_texts, seen_ngrams = np.zeros(0, np.uint64), np.zeros(0, np.uint64)
    rows = iter(data)
    while batch := list(itertools.islice(rows, _BATCH)):
        words = normalise(batch)
        seen_texts = np.union1d(seen_texts, np.intersect1d(texts, words.texts))
        seen_ngrams = np.union1d(seen_ngrams, np.intersect1d(ngrams, words.ngrams(NGRAM)[0]))
    return Benchmark("", "", seen_texts, seen_ngrams).holds(wanted)


def open_benchmark(name: str) -> Benchmark:
    """A benchmark that `--decontaminate` names.

    Raises:
        InputError: there is none of that name.
        MlxmathError: its questions cannot be had.
    """
    dataset = known(name)
    name = dataset.name if dataset else name
    bundled = FOLDER / f"{name}.npz"
    if dataset and bundled.exists():
        with np.load(bundled, allow_pickle=False) as file:
            return Benchmark(name, str(file["revision"]), file["texts"], file["ngrams"])
    if dataset is None and not is_file_name(name) and "/" not in name:
        names = ", ".join(DATASETS)
        raise InputError(f"--decontaminate: no benchmark {name!r}, but {names}, or a file{near(name, DATASETS)}")
    split = dataset.test_split if dataset else None
    try:
        loaded = load_problems(SourceConfig(dataset=name, split=split), solutions_required=False)
    except InputError as error:
        raise InputError(f"--decontaminate {name}: {error}") from None
    return fingerprint_benchmark(name, loaded.revision, [problem.question for problem in loaded])


def _is_among(values: Hashes, ascending: Hashes) -> NDArray[np.bool_]:
    if not len(ascending):
        return np.zeros(len(values), bool)
    places = np.minimum(np.searchsorted(ascending, values), len(ascending) - 1)
    return ascending[places] == values


def main(arguments: Sequence[str]) -> None:
    """Write the hashes of NAME=FILE … into the package."""
    for argument in arguments:
        name, _, file = argument.partition("=")
        loaded = load_problems(DataConfig(dataset=file), solutions_required=False)
        benchmark = fingerprint_benchmark(name, loaded.revision, [problem.question for problem in loaded])
        with atomic_file(FOLDER / f"{name}.npz") as out:
            np.savez(out, revision=np.array(benchmark.revision), texts=benchmark.texts, ngrams=benchmark.ngrams)
        say(f"{name}: {len(benchmark.texts):,} questions, {len(benchmark.ngrams):,} runs of {NGRAM} words")


if __name__ == "__main__":
    main(sys.argv[1:])
