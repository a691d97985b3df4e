"""Problems and pairs of completions into rows of tokens, batch by batch, on all cores."""

import gc
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from multiprocessing import get_context
from typing import Any, Literal

import numpy as np

from mlxmath.config.schema import DataConfig
from mlxmath.data.codec import codec_of
from mlxmath.data.problem import Message, Problem, SkippedRowError
from mlxmath.data.render import Rendered, fit_rows, render
from mlxmath.data.templates import Template, Text
from mlxmath.errors import MlxmathError
from mlxmath.runtime.blas import num_usable_cores
from mlxmath.tools.forms import Tool, parts

BATCH_ROWS = 1000
BATCH_CHARACTERS = 1_000_000
NUM_THREADS = 2
PROCESSES_FROM = 20
"""Batches from which starting other processes pays off; fewer are done here, by threads."""
MOST_PROCESSES = 4
"""Each takes about 0.35 GB; where there are more cores, each uses several."""
SKIPPED = "skipped: "
SYSTEM_LEFT_OUT = "system_left_out"
TOO_LONG = f"{SKIPPED}pair with a completion that is too long, or that cannot be written after its prompt"
COMPLETION_TOO_LONG = f"{SKIPPED}completion that is too long, or that cannot be written after its prompt"
Form = Literal["solutions", "pairs", "completions"]
"""What rows are: a problem's solution, the two completions of a pair, or each a completion with a label."""

Result = tuple[Rendered, Counter[str]]


@dataclass
class Batch:
    """Texts to be tokenized together."""

    texts: list[Text] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    """Of each text, its problem's number in the batch."""
    num_problems: int = 0
    num_characters: int = 0
    skipped: Counter[str] = field(default_factory=Counter)

    def add(self, problem: Problem | None, template: Template, only_last: bool) -> None:
        """Render a problem, or leave its number out; `only_last`: of its answers only the last is a target."""
        if problem is None:
            self.num_problems += 1
            return
        try:
            text = template.render(problem)
        except SkippedRowError as reason:
            self.skipped[f"{SKIPPED}{reason}"] += 1
        else:
            self.texts.append(_last_answer(text) if only_last else text)
            self.numbers.append(self.num_problems)
            self.num_characters += sum(len(segment.text) for segment in text)
            if not template.keeps_system and problem.messages and problem.messages[0].role == "system":
                self.skipped[SYSTEM_LEFT_OUT] += 1
        self.num_problems += 1


def tokenize(
    problems: Iterable[Problem | None], template: Template, config: DataConfig, tokenizer: Any, *, pairs: bool = False
) -> Iterator[Result]:
    """Rows of the right length, batch by batch, with `fit_rows`'s counts and more; `sources` are the problems' numbers.

    `problems` counts those of the batch, `not_encodable` those whose solution the tokenizer cannot write after their
    prompt, `skipped: …` those that the template cannot render. The order is that of the problems. A few batches are
    done by threads (the tokenizer's own code is parallel); many by several processes. Of `pairs` both problems come in
    the same batch, and only the last answer is a target.
    """
    batches = _batches(problems, template, pairs)
    head = list(islice(batches, PROCESSES_FROM))
    if len(head) < PROCESSES_FROM:
        codec_of(tokenizer)  # made here, once, not by two threads
        with _frozen_garbage(), ThreadPoolExecutor(NUM_THREADS) as threads:
            yield from _in_order(threads, lambda batch: _tokenize(batch, config, tokenizer), head, NUM_THREADS + 1)
        return
    count = min(MOST_PROCESSES, cores := num_usable_cores())
    try:
        with ProcessPoolExecutor(count, get_context("spawn"), _open, (tokenizer, config, count < cores)) as processes:
            yield from _in_order(processes, _work, chain(head, batches), count + 2)
    except BrokenProcessPool:
        raise MlxmathError(
            "a tokenizing process ended early: too little memory, or a script that prepares data without "
            "`if __name__ == '__main__':` around it."
        ) from None


@contextmanager
def _frozen_garbage() -> Iterator[None]:
    """What is there already is not searched for garbage with each batch, unless the caller has frozen something."""
    is_ours = gc.get_freeze_count() == 0
    if is_ours:
        gc.freeze()
    try:
        yield
    finally:
        if is_ours:
            gc.unfreeze()


def _in_order(
    executor: Executor, work: Callable[[Batch], Result], batches: Iterable[Batch], most: int
) -> Iterator[Result]:
    """The results in order; at most `most` batches are under way."""
    under_way: deque[Future[Result]] = deque()
    for batch in batches:
        under_way.append(executor.submit(work, batch))
        if len(under_way) >= most:
            yield under_way.popleft().result()
    while under_way:
        yield under_way.popleft().result()


def _tokenize(batch: Batch, config: DataConfig, tokenizer: Any) -> Result:
    texts = [without_results(text, config.tools) for text in batch.texts] if config.tools else batch.texts
    rendered, num_failed = render(tokenizer, texts, config.train_on_prompt)
    rendered = rendered._replace(sources=np.array(batch.numbers, np.int64)[rendered.sources])
    rows, counts = fit_rows(rendered, config.max_seq_len, config.overflow)
    counts.update(batch.skipped, problems=batch.num_problems, not_encodable=num_failed)
    return rows, counts


def _batches(problems: Iterable[Problem | None], template: Template, pairs: bool) -> Iterator[Batch]:
    """Texts, in batches large enough for all cores and small enough for the memory."""
    batch = Batch()
    for problem in problems:
        batch.add(problem, template, pairs)
        is_full = batch.num_problems >= BATCH_ROWS or batch.num_characters >= BATCH_CHARACTERS
        if is_full and not (pairs and batch.num_problems % 2):
            yield batch
            batch = Batch()
    if batch.num_problems:
        yield batch


_opened: list[tuple[DataConfig, Any]] = []
"""In a tokenizing process: what it works with."""


def _open(tokenizer: Any, config: DataConfig, parallel: bool) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if parallel else "false"
    codec_of(tokenizer)
    _opened.append((config, tokenizer))
    gc.freeze()


def _work(batch: Batch) -> Result:
    config, tokenizer = _opened[0]
    return _tokenize(batch, config, tokenizer)


def tokenize_pairs(
    pairs: Iterable[Problem], template: Template, config: DataConfig, tokenizer: Any
) -> Iterator[Result]:
    """Rows 2 p and 2 p + 1 are the completions of a pair, whose number both have as their source; see `tokenize`.

    Of a pair either both rows come out or none. Completions are what the pair says, word for word, whatever the
    template would make of a solution; of a conversation only the last answer is a target.

    Args:
        pairs: problems with `rejected`.
        template: makes prompts.
        config: the longest row; a pair with a longer one is left out.
        tokenizer: of `transformers`, or mlx_lm's wrapper around one.
    """
    config = config.model_copy(update={"overflow": "drop", "train_on_prompt": False})
    for rows, counts in tokenize(_sides(pairs), template.verbatim(), config, tokenizer, pairs=True):
        pair = rows.sources // 2
        is_whole = np.bincount(pair)[pair] == 2
        num_pairs, num_whole = counts["problems"] // 2, int(is_whole.sum()) // 2
        found = Counter({name: n // 2 for name, n in counts.items() if name.startswith(SKIPPED)})
        if too_long := num_pairs - num_whole - found.total():
            found[TOO_LONG] = too_long
        found.update(problems=num_pairs, output_rows=2 * num_whole)
        yield rows.taken(rows.offsets[:-1][is_whole], np.diff(rows.offsets)[is_whole], pair[is_whole]), found


def tokenize_completions(
    preferences: Iterable[Problem], template: Template, config: DataConfig, tokenizer: Any
) -> Iterator[Result]:
    """A row of each completion: its source is 2 p where it is desirable, else 2 p + 1, for row p of the dataset.

    Of a pair either row may come out alone; else see `tokenize_pairs`.

    Args:
        preferences: problems with `rejected` (a pair is one of each) or with `is_desirable`.
        template: makes prompts.
        config: the longest row; a longer one is left out.
        tokenizer: of `transformers`, or mlx_lm's wrapper around one.
    """
    config = config.model_copy(update={"overflow": "drop", "train_on_prompt": False})
    for rows, counts in tokenize(_sides(preferences), template.verbatim(), config, tokenizer, pairs=True):
        found = Counter({name: n for name, n in counts.items() if name.startswith(SKIPPED)})
        if too_long := counts["dropped_rows"] + counts["rows_without_target"] + counts["not_encodable"]:
            found[COMPLETION_TOO_LONG] = too_long
        found.update(problems=counts["problems"], output_rows=counts["output_rows"])
        yield rows, found


def _sides(preferences: Iterable[Problem]) -> Iterator[Problem | None]:
    """The desirable completion and the other one; None for the one that is not there."""
    for problem in preferences:
        if problem.rejected is None:
            yield from (problem, None) if problem.is_desirable else (None, problem)
            continue
        other = (*problem.messages[:-1], Message("assistant", problem.rejected)) if problem.messages else ()
        yield problem
        yield replace(problem, solution=problem.rejected, messages=other)


def without_results(text: Text, tool: Tool) -> Text:
    """The text in which what a tool wrote is no target."""
    return tuple(
        segment._replace(text=part, is_target=segment.is_target and not is_result)
        for segment in text
        for part, is_result in (
            parts(tool, segment.text) if segment.is_target and not segment.is_control else [(segment.text, False)]
        )
    )


def _last_answer(text: Text) -> Text:
    """The text with nothing but its last answer as a target."""
    first = next((i + 1 for i in reversed(range(len(text))) if not text[i].is_target), 0)
    return *(segment._replace(is_target=False) for segment in text[:first]), *text[first:]
