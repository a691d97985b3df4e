"""A teacher with other tokens than the student's: both read the same text, and are compared piece by piece.

A piece lies between two places where a token of either ends. The student's log-probability of it is the sum of its
tokens', the teacher's likewise; their difference is a sample of the reverse KL, which makes the piece's tokens more or
less likely by a policy gradient. Only what the student drew itself can be compared so.

Shapes: T tokens of a completion.
"""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import mlx.nn as nn
import numpy as np

from mlxmath.data.codec import load_tokenizer
from mlxmath.data.problem import Problem
from mlxmath.data.render import encode_prompt
from mlxmath.evaluation.contestants import Contestant
from mlxmath.generation.engine import Completion
from mlxmath.models.load import check_ids
from mlxmath.training.gradients import choose_gradients
from mlxmath.training.grpo.batches import RolloutRows, RolloutSampler, Trajectory
from mlxmath.training.grpo.loss import target_logprobs
from mlxmath.training.grpo.prompts import solution_tokens
from mlxmath.training.grpo.sampling import Prompt
from mlxmath.training.setup import Run

Piece = tuple[slice, slice]
"""The student's tokens, and the teacher's."""
Excess = tuple[tuple[float, ...], tuple[float, ...]]
"""Of each of T tokens, Σ log p − Σ log q of its piece, and that by the piece's tokens; 0 for a token in no piece."""
_ANY_LENGTH = 1 << 30


class PieceScores:
    """What a teacher with tokens of its own says of completions.

    Args:
        run: of the student; its template is what both read.
        model: the teacher's.
        teacher: its folder holds the tokenizer.
        tokenizer: the student's.
    """

    def __init__(self, run: Run, model: nn.Module, teacher: Contestant, tokenizer: Any) -> None:
        self._run, self._model, self._own, self._other = run, model, tokenizer, load_tokenizer(teacher.model)
        self._template = run.template.for_tokenizer(self._other).verbatim()
        logprobs = partial(target_logprobs, temperature=run.config.gkd.temperature)
        self._logprobs = choose_gradients(model, logprobs, run.kernels, compiled=False)

    def __call__(self, prompts: Sequence[Prompt], drawn: Sequence[Completion]) -> list[Excess]:
        """Of each completion. On several ranks each asks the teacher of its part."""
        ranks = self._run.ranks
        read = [self._read(prompt, one) for prompt, one in zip(prompts, drawn, strict=True)]
        rows = [number for number, text in enumerate(read) if text is not None]
        texts = [Trajectory(n, *text, 0.0, 0.0, (0.0,) * len(text[1])) for n, text in enumerate(read) if text]
        by_row: dict[int, list[float]] = {}
        if texts:
            check_ids(self._model, max(max(t.prompt + t.drawn) for t in texts), "what the teacher reads")
            sampler = RolloutSampler(
                RolloutRows(texts), self._run.config.training, 2 * self._run.max_tokens, self._run.shape
            )
            step = sampler.whole(0, 0)
            for index, ids in list(enumerate(step.micro_batches))[ranks.rank :: ranks.size]:
                ends = np.cumsum([len(texts[i].drawn) for i in ids])
                values = np.array(self._logprobs.loss(step.batch(index)))
                parts = np.split(values[: ends[-1]], ends[:-1])
                by_row |= {rows[i]: part.tolist() for i, part in zip(ids, parts, strict=True)}
        found = {row: values for part in ranks.gather("teacher", list(by_row.items())) for row, values in part}
        return [self._excess(one, read[n], found.get(n)) for n, one in enumerate(drawn)]

    def _read(self, prompt: Prompt, one: Completion) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """The teacher's tokens of the prompt and of the completion with its end; None if it cannot write them."""
        text = _decoded(self._own, one.tokens)
        before = tuple(encode_prompt(self._other, self._template.prompt(prompt.question)))
        problem = Problem("", prompt.question, solution=text)
        found = solution_tokens(self._other, self._template, problem, before, _ANY_LENGTH)
        return None if isinstance(found, str) else (before, found)

    def _excess(self, one: Completion, read: Any, logprobs: list[float] | None) -> Excess:
        excess, shares = np.zeros((2, len(one.drawn)))
        if logprobs is not None:
            own, other = np.array(one.logprobs), np.array(logprobs)
            has_end = len(one.drawn) > len(one.tokens)
            for mine, theirs in pieces(self._own, one.tokens, self._other, read[1][:-1], has_end=has_end):
                excess[mine] = own[mine].sum() - other[theirs].sum()
                shares[mine] = excess[mine] / (mine.stop - mine.start)
        return tuple(excess.tolist()), tuple(shares.tolist())


def pieces(
    own: Any, own_tokens: Sequence[int], other: Any, other_tokens: Sequence[int], *, has_end: bool
) -> list[Piece]:
    """The pieces of a text that two tokenizers have cut, in order; with `has_end` the end that follows both is one."""
    text = _decoded(own, own_tokens).lstrip()
    mine, theirs = (_ends(tokenizer, tokens, text) for tokenizer, tokens in ((own, own_tokens), (other, other_tokens)))
    common = sorted(mine.keys() & theirs.keys())
    found = [(slice(mine[a], mine[b]), slice(theirs[a], theirs[b])) for a, b in pairwise(common)]
    if has_end:
        found.append((slice(len(own_tokens), len(own_tokens) + 1), slice(len(other_tokens), len(other_tokens) + 1)))
    return found


def _ends(tokenizer: Any, tokens: Sequence[int], text: str) -> dict[int, int]:
    """After how many characters of the text how many tokens end; without those that end within a character."""
    found = {0: 0}
    for count in range(1, len(tokens) + 1):
        before = _decoded(tokenizer, tokens[:count]).lstrip()
        if text.startswith(before):
            found[len(before)] = count
    return found


def _decoded(tokenizer: Any, tokens: Sequence[int]) -> str:
    text: str = tokenizer.decode(list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text
