"""mlx_lm.server's engine with our models, our templates and our ends of answers."""

from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import mlx.core as mx
from mlx_lm import server as mlx_lm_server
from mlx_lm.generate import StopSequences, TextStateMachine
from mlx_lm.models.cache import LRUPromptCache, can_trim_prompt_cache, make_prompt_cache, trim_prompt_cache

from mlxmath.generation.engine import Sampling, cut, stop_strings
from mlxmath.generation.kept import lacks_keys
from mlxmath.generation.model import LanguageModel
from mlxmath.generation.neighbours import way_of

_CACHES = 10
"""Conversations whose keys and values are kept, if there is memory for them."""


class Models(mlx_lm_server.ModelProvider):
    """Models that are in memory already, by name; a request loads nothing.

    Args:
        models: the first one answers requests that name none; they are put into evaluation mode.
        sampling: of requests that do not say otherwise.
        origins: web pages that may ask.
        cache_bytes: most memory for keys and values of earlier requests.
    """

    def __init__(
        self, models: Mapping[str, LanguageModel], sampling: Sampling, origins: Sequence[str], cache_bytes: int
    ) -> None:
        super().__init__(
            Namespace(
                model=None, adapter_path=None, draft_model=None, pipeline=False, trust_remote_code=False,
                chat_template=None, use_default_chat_template=False, chat_template_args={}, num_draft_tokens=3,
                temp=sampling.temperature, top_p=sampling.top_p, top_k=0, min_p=0.0,
                max_tokens=sampling.max_new_tokens, allowed_origins=list(origins), decode_concurrency=32,
                prompt_concurrency=8, prefill_step_size=2048, prompt_cache_size=_CACHES,
                prompt_cache_bytes=cache_bytes, kv_bits=None, kv_group_size=64, quantized_kv_start=0,
            )
        )  # fmt: skip
        for one in models.values():
            one.model.eval()  # adapters are in training mode, where they drop inputs out
            mx.eval(one.model.state)  # another thread computes, which cannot evaluate what this one has begun
        self.models = dict(models)
        self.model_key: str | None
        self._device, self._seed = mx.default_device(), sampling.seed
        self._batchable = {
            name: way_of(one.model) == "together" and all(hasattr(c, "merge") for c in make_prompt_cache(one.model))
            for name, one in models.items()
        }

    def load_default(self) -> None:
        """Called by the thread that computes: MLX's device and random numbers are those of a thread."""
        mx.set_default_device(self._device)
        mx.random.seed(self._seed)
        self.load(next(iter(self.models)))

    def load(self, model_path: str, adapter_path: Any = None, draft_model_path: Any = None) -> tuple[Any, Any]:  # noqa: ARG002
        """Choose a model by its name."""
        if self.model_key != model_path:
            chosen = self.models[model_path]
            self.model_key, self.model, self.tokenizer = model_path, chosen.model, chosen.tokenizer
            self.is_batchable = self._batchable[model_path]
        return self.model, self.tokenizer


class Kept(LRUPromptCache):
    """Keys and values of earlier requests; at least one token of a prompt is left for the model to go on from."""

    def fetch_nearest_cache(self, model: Any, tokens: list[int]) -> tuple[Any, list[int]]:
        """See mlx_lm's, which gives no token at all for a prompt that ends where an earlier answer did, and cuts chunks
        back to before what they hold."""
        cache, rest = super().fetch_nearest_cache(model, tokens)
        if cache is not None and lacks_keys(cache, len(tokens) - max(1, len(rest))):
            return None, tokens
        if cache is None or rest:
            return cache, rest
        if not can_trim_prompt_cache(cache):
            return None, tokens
        trim_prompt_cache(cache, 1)
        return cache, tokens[-1:]


class Engine(mlx_lm_server.ResponseGenerator):
    """mlx_lm's generation of many requests at once.

    Args:
        models: that answer.
        on_failure: called when the thread that computes has failed, with the error; nothing is answered any more.
    """

    def __init__(self, models: Models, on_failure: Callable[[Exception], object]) -> None:
        self._on_failure = on_failure
        super().__init__(models, Kept(_CACHES, models.cli_args.prompt_cache_bytes))

    def _run_generate(self) -> None:
        try:
            self._generate()
        except Exception as error:
            self._generation_failed = True
            self._on_failure(error)

    def _tokenize(
        self, tokenizer: Any, request: Any, _args: Any
    ) -> tuple[list[int], list[list[int]], list[str], str, None]:
        """The ids that the handler has made of the request; whether the model begins by thinking."""
        prompt: list[int] = request.prompt
        state = "normal"
        if tokenizer.has_thinking and request.request_type == "chat":
            is_open = tokenizer.rfind_think_start(prompt) > tokenizer.rfind_think_end(prompt)
            state = "reasoning" if is_open else state
        return prompt, [prompt], ["assistant"], state, None

    def _make_state_machine(self, model_key: Any, tokenizer: Any, stop_words: Any) -> Any:  # noqa: ARG002
        """End tokens; what the model thinks is told apart. Texts that end an answer are found in `generate`."""
        changes: dict[str, list[tuple[str, str]]] = {}
        if tokenizer.has_thinking:
            changes = {
                "normal": [(tokenizer.think_start, "reasoning")], "reasoning": [(tokenizer.think_end, "normal")],
            }  # fmt: skip
        return StopSequences([(token,) for token in tokenizer.eos_token_ids]), TextStateMachine(changes or None)

    def generate(self, request: Any, generation_args: Any, progress_callback: Any = None) -> tuple[Any, Iterator[Any]]:
        """As mlx_lm's, with answers that are cut before a stop string, wherever in a token it begins."""
        stops = (*stop_strings(self.model_provider.models[generation_args.model.model].tokenizer),
                 *generation_args.stop_words)  # fmt: skip
        context, responses = super().generate(
            request, replace(generation_args, stop_words=[]), progress_callback=progress_callback
        )
        return context, ended(responses, stops)


def ended(responses: Iterator[Any], stops: Sequence[str]) -> Iterator[Any]:
    """Responses of single tokens up to a stop string, whose beginning is held back.

    mlx_lm drops the text of the response that ends an answer, so each one waits for the next and takes what is left.
    """
    text, num_shown, held_back = "", 0, max(map(len, stops), default=1) - 1
    waiting: Any = None
    for response in responses:
        text, has_stopped = cut(text + response.text, stops)
        is_last = has_stopped or response.finish_reason is not None
        end = len(text) if is_last else max(num_shown, len(text) - held_back)
        new, num_shown = text[num_shown:end], end
        if is_last and waiting is not None:
            waiting, new = replace(waiting, text=waiting.text + new), ""
        if waiting is not None:
            yield waiting
        waiting = replace(response, text=new, finish_reason="stop" if has_stopped else response.finish_reason)
        if new and waiting.finish_reason == "stop":  # the very first token
            yield replace(waiting, finish_reason=None)
        if has_stopped:
            break
    if waiting is not None:
        yield waiting
