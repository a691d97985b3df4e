"""What a model is given: worked examples, formulas, the problem, in the template that it was trained with."""

from typing import Any

from mlxmath.data.chat import ChatTemplate
from mlxmath.data.codec import codec_of
from mlxmath.data.datasets import Kind
from mlxmath.data.problem import Problem
from mlxmath.data.render import encode_prompt, render
from mlxmath.data.templates import Template, joined
from mlxmath.errors import InputError
from mlxmath.evaluation.formulas import Retriever
from mlxmath.evaluation.shots import SHOTS


class Prompts:
    """Turns questions into token ids.

    Args:
        tokenizer: the model's.
        template: in which the problem is put.
        num_shots: worked examples before the problem: training rows, or earlier turns of a chat.
        retriever: adds formulas to the problem.
    """

    def __init__(
        self, tokenizer: Any, template: Template, num_shots: int = 0, retriever: Retriever | None = None
    ) -> None:
        self.template = template.for_tokenizer(tokenizer)
        self._tokenizer, self._num_shots, self._retriever = tokenizer, num_shots, retriever
        most = min(map(len, SHOTS.values()))
        if num_shots > most:
            raise InputError(f"--shots: expected at most {most}, found {num_shots}.")

    def encode(self, question: str, kind: Kind) -> list[int]:
        """The ids that the model continues."""
        shots = SHOTS[kind][: self._num_shots]
        asked = self._retriever.add(question) if self._retriever else question
        if isinstance(self.template, ChatTemplate):
            return encode_prompt(self._tokenizer, self.template.prompt(asked, shots))
        if not shots:
            return encode_prompt(self._tokenizer, self.template.prompt(asked))
        codec = codec_of(self._tokenizer)
        rows = [self.template.render(Problem("", q, solution=s, answer=s)) for q, s in shots]
        rendered, _ = render(self._tokenizer, rows)
        ids = list(codec.prefix)
        for start, end in zip(rendered.offsets[:-1], rendered.offsets[1:], strict=True):
            ids += rendered.tokens[start + len(codec.prefix) : end].tolist()
        return ids + codec.encode(joined(self.template.prompt(asked)))
