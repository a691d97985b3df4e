"""Which training problems occur in a benchmark: by normalised text, or by any 13 words in a row.

The criterion is that of GPT-3's paper (Brown et al. 2020, appendix C). The hashes of GSM8K's test and of MATH-500 come
with the package (`benchmarks/*.npz`), so that the same rows are left out on every machine, with or without a network:

    python -m mlxmath.data.decontaminate gsm8k=gsm8k/test.jsonl math500=test.jsonl       writes them anew
"""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlxmath.config.schema import DataConfig, SourceConfig
from mlxmath.data.columns import near
from mlxmath.data.datasets import DATASETS, known
from mlxmath.data.dedup import Hashes, Words, normalise
from mlxmath.data.rows import is_file_name
from mlxmath.data.sources import load_problems
from mlxmath.errors import InputError
from mlxmath.runtime.console import say
from mlxmath.runtime.files import atomic_file

NGRAM = 13
FOLDER = Path(__file__).parent / "benchmarks"


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
        found = _among(questions.texts, self.texts)
        ngrams, owner = questions.ngrams(NGRAM)
        found[owner[_among(ngrams, self.ngrams)]] = True
        return found


def fingerprint_benchmark(name: str, revision: str, questions: Sequence[str]) -> Benchmark:
    """The benchmark with these questions."""
    hashed = normalise(questions)
    return Benchmark(name, revision, np.unique(hashed.texts), np.unique(hashed.ngrams(NGRAM)[0]))


def open_benchmarks(names: Iterable[str]) -> list[Benchmark]:
    """The benchmarks that `--decontaminate` names.

    Raises:
        InputError: there is none of that name.
        MlxmathError: its questions cannot be had.
    """
    return [_open(name) for name in names]


def _open(name: str) -> Benchmark:
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


def _among(values: Hashes, ascending: Hashes) -> NDArray[np.bool_]:
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
