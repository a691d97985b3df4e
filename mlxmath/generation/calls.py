"""Calls in answers that are being drawn: each is run where it ends, and its result stands behind it as if drawn.

An answer with a call stays among the others that are decoded: the tokens that the tool writes take the place of those
that were drawn. So nothing of it is read again, and it comes out as it would alone; while programs run, the others
wait for them, as long as `mlxmath.tools.run` allows.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlxmath.data.render import continuation
from mlxmath.tools.forms import ENDS, MOST_CALLS, Tool, behind, call_at_end
from mlxmath.tools.run import run_all

_LOOKED_AT = 4
"""Tokens at the end of an answer in which a call's end is looked for before the whole is."""


@dataclass
class _Answer:
    """An answer so far."""

    tokens: list[int] = field(default_factory=list)
    by_tool: list[bool] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    waiting: deque[int] = field(default_factory=deque)
    """What the tool writes next."""
    text_before: str = ""
    """Up to the end of the last result."""
    num_before: int = 0
    """Tokens of it."""


class Calls:
    """The calls of all answers, by the answers' positions.

    Args:
        tool: that answers call.
        tokenizer: decodes, and writes results as training rows have them.
    """

    def __init__(self, tool: Tool, tokenizer: Any) -> None:
        self._tool, self._tokenizer = tool, tokenizer
        self._answers: dict[int, _Answer] = {}

    def took(self, index: int, token: int) -> bool:
        """Note an answer's next token; whether the tool wrote it."""
        answer = self._answers.setdefault(index, _Answer())
        is_given = bool(answer.waiting)
        answer.tokens.append(token)
        answer.by_tool.append(is_given)
        if is_given:
            assert answer.waiting.popleft() == token
            if not answer.waiting:
                answer.text_before, answer.num_before = self._decoded(answer.tokens), len(answer.tokens)
        return is_given

    def drawn(self, index: int) -> list[int]:
        """The tokens that the model wrote since the last result."""
        answer = self._answers[index]
        return answer.tokens[answer.num_before :]

    def given(self, indices: Sequence[int]) -> Mapping[int, int]:
        """The token that is next, by the row, of each answer that a tool goes on; calls that end here are run.

        Args:
            indices: of the rows, the answers' positions.
        """
        ended = {index: texts for index in indices if (texts := self._ended(index))}
        for (index, text), result in zip(
            ended.items(), run_all(self._tool, [self._answers[index].calls for index in ended]), strict=True
        ):
            if result is not None:
                more = behind(self._tool, text, result)
                self._answers[index].waiting.extend(continuation(self._tokenizer, text, more))
        return {row: self._answers[i].waiting[0] for row, i in enumerate(indices) if self._answers[i].waiting}

    def _ended(self, index: int) -> str:
        """The text since the last result, if a call ends it; the call is noted."""
        answer = self._answers[index]
        if answer.waiting or answer.by_tool[-1] or len(answer.calls) >= MOST_CALLS[self._tool]:
            return ""
        if not self._decoded(answer.tokens[-_LOOKED_AT:]).endswith(ENDS[self._tool]):
            return ""
        text = self._decoded(answer.tokens)[len(answer.text_before) :]
        call = call_at_end(self._tool, text)
        if call is None:
            return ""
        answer.calls.append(call)
        return text

    def finish(self, index: int) -> tuple[str, tuple[bool, ...]]:
        """Of an answer that has ended: its text up to the end of the last result, and which tokens the tool wrote."""
        answer = self._answers.pop(index)
        return answer.text_before, tuple(answer.by_tool)

    def _decoded(self, tokens: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(tokens))
        return text
