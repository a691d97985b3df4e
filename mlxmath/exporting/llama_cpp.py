"""A GGUF file asked in llama.cpp itself (the package xllamacpp), in token ids.

llama.cpp's server tells the log-probability of each token that it draws. A token of a given text is drawn by letting it
draw freely as long as it draws what the text has, and by a bias on the token that it would not take: log-probabilities
are told without the bias.
"""

import importlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mlxmath.errors import InputError, MlxmathError
from mlxmath.exporting.check import Answer
from mlxmath.generation.engine import cut

PACKAGE = "xllamacpp"
_FORCED = 1e6
"""Added to a logit: more than any other one."""
_ALL = 1_000_000
"""Tokens: more than any vocabulary has."""


def require_llama_cpp() -> None:
    """
    Raises:
        InputError: llama.cpp's package is not installed.
    """
    try:
        importlib.import_module(PACKAGE)
    except ImportError:
        raise InputError(
            "--check asks a GGUF file in llama.cpp, whose package is not installed: pip install "
            "'mlxmath[llama-cpp]', or leave out --check."
        ) from None


class LlamaCpp:
    """See `mlxmath.exporting.check.Answers`.

    Args:
        path: of the GGUF file.
        decode: text of token ids, as the original's tokenizer writes it.
        ends: tokens that end an answer.
        stops: texts that do.
        context: longest prompt and answer together, in tokens.

    Raises:
        MlxmathError: llama.cpp does not load the file.
    """

    def __init__(
        self, path: Path, decode: Callable[[list[int]], str], ends: Sequence[int], context: int,
        stops: Sequence[str] = (),
    ) -> None:  # fmt: skip
        xllamacpp = importlib.import_module(PACKAGE)
        settings = xllamacpp.CommonParams()
        settings.model.path = str(path)
        settings.n_ctx, settings.n_parallel = context, 1
        settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = os.cpu_count() or 1
        settings.warmup, settings.verbosity = False, 0
        try:
            self._server = xllamacpp.Server(settings)
        except Exception as error:  # whatever type xllamacpp raises
            raise MlxmathError(f"llama.cpp does not load {path}: {str(error)[:300]}") from error
        self._decode, self._ends, self._stops = decode, tuple(ends), tuple(stops)

    def greedy(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[Answer]:
        """See `Answers`."""
        answers = []
        for prompt in prompts:
            choice, drawn = self._ask(prompt, max_tokens, stop=list(self._stops))
            tokens = tuple(token for token, *_ in drawn if token not in self._ends)
            told_all = choice["num_tokens"] == len(drawn)  # but those that end within a character
            text, _ = cut(self._decode(list(tokens)) if told_all else choice["text"], self._stops)
            answers.append(Answer(tokens, text, truncated=choice["finish_reason"] != "stop"))
        return answers

    def logprobs(self, prompt: Sequence[int], answer: Sequence[int]) -> list[float]:
        """See `Answers`."""
        found: list[float] = []
        while len(found) < len(answer):
            rest = answer[len(found) :]
            _, drawn = self._ask([*prompt, *answer[: len(found)]], len(rest))
            for (token, logprob, _), wanted in zip(drawn, rest, strict=False):
                if token != wanted:
                    break
                found.append(logprob)
            if len(found) < len(answer):
                found.append(self._logprob([*prompt, *answer[: len(found)]], answer[len(found)]))
        return found

    def _logprob(self, before: Sequence[int], wanted: int) -> float:
        """Of a token that is not the likeliest."""
        for forced, num_told in ((wanted, 1), (self._ends[0], _ALL)):
            # nothing is told of a token that ends within a character; then all are asked for beside one that does not
            _, drawn = self._ask(before, 1, logit_bias=[[int(forced), _FORCED]], n_probs=num_told)
            for token, logprob, others in drawn:
                told = {token: logprob, **others}
                if wanted in told:
                    return told[wanted]
        raise MlxmathError(f"llama.cpp does not tell the log-probability of token {wanted}.")

    def _ask(
        self, prompt: Sequence[int], max_tokens: int, **more: Any
    ) -> tuple[dict[str, Any], list[tuple[int, float, dict[int, float]]]]:
        """The server's answer, greedy, and of each token that it drew: number, log-probability, and those of others."""
        answer = self._server.handle_completions(
            {"prompt": [int(token) for token in prompt], "n_predict": max_tokens, "temperature": 0.0, "n_probs": 1,
             "cache_prompt": True, **more}
        )  # fmt: skip
        if "choices" not in answer:
            raise MlxmathError(f"llama.cpp does not answer: {str(answer)[:300]}")
        (choice,) = answer["choices"]
        choice["num_tokens"] = answer["usage"]["completion_tokens"]
        content = (choice.get("logprobs") or {}).get("content") or []
        return choice, [
            (one["id"], one["logprob"], {other["id"]: other["logprob"] for other in one["top_logprobs"]})
            for one in content
        ]
