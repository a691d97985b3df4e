"""A conversation of several turns with a model: what it is given each time, and what is left out when it is long."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace

from mlxmath.data.problem import Message
from mlxmath.errors import InputError
from mlxmath.generation.engine import Completion, Sampling, seed_of
from mlxmath.generation.kept import KeptPrefix
from mlxmath.generation.model import LanguageModel

Pieces = Generator[str | Completion, None, None]
_ROOM = 4
"""Turns are left out once less than this part of the context remains for an answer."""


@dataclass(frozen=True)
class Prompt:
    """What a model is given."""

    ids: list[int]
    num_left_out: int
    """Messages at the beginning of the conversation that do not fit any more."""
    most_new_tokens: int
    """The longest answer that there is room for."""


def fit(model: LanguageModel, messages: Sequence[Message], max_new_tokens: int, start: int = 0) -> Prompt:
    """The newest messages of a conversation with which there is room for an answer.

    When room runs out, the oldest questions and their answers go until half of the context is free: the keys and values
    of what remains are computed anew then, which is not to happen at every turn.

    Args:
        model: with its template.
        messages: the last one is a question.
        max_new_tokens: longest answer wanted.
        start: messages before this one are left out in any case.

    Raises:
        InputError: the last question alone is too long.
    """
    ids, limit = model.encode_messages(messages[start:]), model.context
    if limit is None:
        return Prompt(ids, start, max_new_tokens)
    wanted = min(max_new_tokens, limit // _ROOM)
    if len(ids) + wanted > limit:
        questions = [place for place, message in enumerate(messages) if message.role == "user" and place > start]
        for start in questions:
            ids = model.encode_messages(messages[start:])
            if len(ids) + max(wanted, limit // 2) <= limit:
                break
    if len(ids) >= limit:
        raise InputError(
            f"the question has {len(ids):,} tokens in its template, and the model's context ends at {limit:,}; ask a "
            "shorter one."
        )
    return Prompt(ids, start, min(max_new_tokens, limit - len(ids)))


class Conversation:
    """Questions to a model and its answers.

    What all prompts begin with goes through the model once, so that a late question costs as little as an early one.

    Args:
        model: that answers.
        sampling: how its tokens are drawn; each answer after the first has a seed of its own.
        base: the model without its adapter (None: there is none), which can be asked the same.
    """

    def __init__(self, model: LanguageModel, sampling: Sampling, base: LanguageModel | None = None) -> None:
        self.messages: list[Message] = []
        self.num_left_out = 0
        """Of the messages, those that the last prompt was without."""
        self._sampling, self._num_answers = sampling, 0
        self._tuned, self._base = _Asked(model), _Asked(base) if base else None

    def ask(self, question: str, is_stopped: Callable[[], bool]) -> Pieces:
        """Pieces of the answer, then the whole; question and answer (if there is any) become part of the conversation.

        Args:
            question: what is asked.
            is_stopped: looked at after each token; the answer ends there (then there is no `Completion`).

        Raises:
            InputError: see `fit`.
        """
        messages = [*self.messages, Message("user", question)]
        answer, is_whole = "", False
        try:
            for piece in self._drawn(self._tuned, messages, is_stopped):
                is_whole = isinstance(piece, Completion)
                answer = piece.text if isinstance(piece, Completion) else answer + piece
                yield piece
        finally:
            if answer or is_whole:
                self.messages = [*messages, Message("assistant", answer)]
        self._num_answers += 1

    def ask_base(self, is_stopped: Callable[[], bool]) -> Pieces:
        """What the base answers to the last question, after the same turns; it does not become part of them.

        Raises:
            InputError: there is no base to ask, or nothing was asked yet.
        """
        if self._base is None:
            raise InputError("/base: this is the base model already; start `mlxmath chat` with an adapter to compare.")
        if not self.messages:
            raise InputError("/base: nothing was asked yet; ask the tuned model first.")
        yield from self._drawn(self._base, self.messages[:-1], is_stopped)

    def clear(self) -> None:
        """Begin anew."""
        self.messages, self.num_left_out = [], 0

    def _drawn(self, asked: "_Asked", messages: Sequence[Message], is_stopped: Callable[[], bool]) -> Pieces:
        prompt = fit(asked.model, messages, self._sampling.max_new_tokens, self.num_left_out)
        self.num_left_out = prompt.num_left_out
        number = self._num_answers - (asked is self._base)
        sampling = replace(
            self._sampling,
            max_new_tokens=prompt.most_new_tokens,
            seed=seed_of(self._sampling.seed, number) if number else self._sampling.seed,
        )
        pieces = asked.model.stream_ids(prompt.ids, sampling, asked.kept)
        try:
            for piece in pieces:
                yield piece
                if is_stopped():
                    return
        finally:
            pieces.close()


class _Asked:
    """A model and what it has read."""

    def __init__(self, model: LanguageModel) -> None:
        self.model, self.kept = model, KeptPrefix(model.model)
