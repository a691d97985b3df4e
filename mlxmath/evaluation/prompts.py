"""What a model is given: worked examples, formulas, the problem, in the template that it was trained with."""

from collections.abc import Sequence
from typing import Any

from mlxmath.data.codec import codec_of
from mlxmath.data.render import encode_prompt
from mlxmath.errors import InputError
from mlxmath.evaluation.benchmarks import Kind
from mlxmath.evaluation.formulas import Retriever
from mlxmath.evaluation.shots import SHOTS
from mlxmath.problems.prompts import get_template

CHAT = "chat"
"""The template name that stands for the tokenizer's own chat template."""


class Prompts:
    """Turns questions into token ids.

    Args:
        tokenizer: the model's.
        template: a template's name, or `CHAT`.
        num_shots: worked examples before the problem. Each ends with the end-of-text token, as a training row does.
        retriever: adds formulas to the problem.
    """

    def __init__(self, tokenizer: Any, template: str, num_shots: int = 0, retriever: Retriever | None = None) -> None:
        self.template, self.num_shots, self.retriever = template, num_shots, retriever
        self._tokenizer = tokenizer
        if template == CHAT and not getattr(tokenizer, "chat_template", None):
            raise InputError("--template chat: the model's tokenizer has no chat template; name another template.")
        most = min(map(len, SHOTS.values()))
        if num_shots > most:
            raise InputError(f"--shots: expected at most {most}, found {num_shots}.")
        self._text = get_template(template) if template != CHAT else None

    def question(self, question: str) -> str:
        """The problem as it is put to the model, formulas included."""
        return self.retriever.add(question) if self.retriever else question

    def encode(self, question: str, kind: Kind) -> list[int]:
        """The ids that the model continues."""
        shots, asked = SHOTS[kind][: self.num_shots], self.question(question)
        if self._text is None:
            return self._chat(shots, asked)
        if not shots:
            return encode_prompt(self._tokenizer, self._text.prompt(asked))
        codec = codec_of(self._tokenizer)
        pairs = codec.encode_pairs([(self._text.prompt(q), solution) for q, solution in shots])
        ids = list(codec.prefix)
        for question_ids, solution_ids in filter(None, pairs):
            ids += [*question_ids, *solution_ids, self._tokenizer.eos_token_id]
        return ids + codec.encode(self._text.prompt(asked))

    def _chat(self, shots: Sequence[tuple[str, str]], asked: str) -> list[int]:
        messages = [
            {"role": role, "content": text}
            for pair in shots
            for role, text in zip(("user", "assistant"), pair, strict=True)
        ]
        found = self._tokenizer.apply_chat_template(
            [*messages, {"role": "user", "content": asked}], add_generation_prompt=True, tokenize=True
        )
        return list(found["input_ids"] if hasattr(found, "keys") else found)
