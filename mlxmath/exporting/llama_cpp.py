"""A GGUF file asked in llama.cpp itself (the package xllamacpp), in token ids.

llama.cpp's server tells the log-probability of each token that it draws. A token of a given text is drawn by letting it
draw freely as long as it draws what the text has, and by a bias on the token that it would not take: log-probabilities
are told without the bias.
"""

import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlxmath.errors import InputError, MlxmathError
from mlxmath.exporting.check import Answer

_FORCED = 1e6
"""Added to a logit: more than any other one."""


def require_llama_cpp() -> None:
    """
    Raises:
        InputError: llama.cpp's package is not installed.
    """
    try:
        importlib.import_module("xllamacpp")
    except ImportError:
        raise InputError(
            "--check asks a GGUF file in llama.cpp, whose package is not installed: pip install xllamacpp, or leave "
            "out --check."
        ) from None


class LlamaCpp:
    """See `mlxmath.exporting.check.Answers`.

    Args:
        path: of the GGUF file.
        decode: text of token ids, as the original's tokenizer writes it.
        ends: tokens that end an answer.
        context: longest prompt and answer together, in tokens.

    Raises:
        MlxmathError: llama.cpp does not load the file.
    """

    def __init__(self, path: Path, decode: Any, ends: Sequence[int], context: int) -> None:
        import xllamacpp

        settings = xllamacpp.CommonParams()
        settings.model.path = str(path)
        settings.n_ctx, settings.n_parallel = context, 1
        settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = os.cpu_count() or 1
        settings.warmup, settings.verbosity = False, 0
        try:
            self._server = xllamacpp.Server(settings)
        except Exception as error:  # whatever type xllamacpp raises
            raise MlxmathError(f"llama.cpp does not load {path}: {str(error)[:300]}") from error
        self._decode, self._ends = decode, frozenset(ends)

    def greedy(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[Answer]:
        """See `Answers`."""
        answers = []
        for prompt in prompts:
            drawn, is_over = self._drawn(prompt, max_tokens)
            tokens = tuple(token for token, _ in drawn if token not in self._ends)
            answers.append(Answer(tokens, self._decode(list(tokens)), truncated=not is_over))
        return answers

    def logprobs(self, prompt: Sequence[int], answer: Sequence[int]) -> list[float]:
        """See `Answers`."""
        found: list[float] = []
        while len(found) < len(answer):
            before, rest = [*prompt, *answer[: len(found)]], answer[len(found) :]
            drawn, _ = self._drawn(before, len(rest))
            for (token, logprob), wanted in zip(drawn, rest, strict=False):
                if token != wanted:
                    break
                found.append(logprob)
            if len(found) < len(answer):
                before, wanted = [*prompt, *answer[: len(found)]], answer[len(found)]
                ((token, logprob),), _ = self._drawn(before, 1, {"logit_bias": [[int(wanted), _FORCED]]})
                assert token == wanted
                found.append(logprob)
        return found

    def _drawn(
        self, prompt: Sequence[int], max_tokens: int, more: dict[str, Any] | None = None
    ) -> tuple[list[tuple[int, float]], bool]:
        """The likeliest tokens after a prompt with their log-probabilities, and whether an end token ended them."""
        answer = self._server.handle_completions(
            {"prompt": [int(token) for token in prompt], "n_predict": max_tokens, "temperature": 0.0, "n_probs": 1,
             "cache_prompt": True, **(more or {})}
        )  # fmt: skip
        if "choices" not in answer:
            raise MlxmathError(f"llama.cpp does not answer: {str(answer)[:300]}")
        (choice,) = answer["choices"]
        content = (choice.get("logprobs") or {}).get("content") or []
        return [(one["id"], one["logprob"]) for one in content], choice["finish_reason"] == "stop"
