"""A teacher on this machine: an MLX model folder, perhaps with an adapter."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mlxmath.config.answering import DistillationConfig
from mlxmath.config.schema import RuntimeConfig
from mlxmath.data.chat import ChatTemplate
from mlxmath.data.render import encode_prompt, load_tokenizer
from mlxmath.data.templates import Template, get_template, joined, own_template
from mlxmath.distillation.endpoint import Answer, with_thinking
from mlxmath.distillation.questions import Task
from mlxmath.distillation.teacher import Outcome, prompt
from mlxmath.evaluation.contestants import Contestant, choose_contestants
from mlxmath.runtime.console import say

_OPENED = "<think>"


class LocalTeacher:
    """A model, its tokenizer and the template that it is asked in."""

    def __init__(self, settings: DistillationConfig) -> None:
        """Read everything but the weights.

        Raises:
            InputError: no such template.
            MlxmathError: the folders hold no model or adapter.
        """
        (self._contestant,) = choose_contestants(Path(), (), (settings.teacher or "",), base=False)
        self._settings = settings
        self._model_identity = self._contestant.identity()
        self._tokenizer = load_tokenizer(self._contestant.model)
        self._template = _template(settings, self._contestant, self._tokenizer).for_tokenizer(self._tokenizer)

    @property
    def identity(self) -> dict[str, Any]:
        """Everything about it that its answers depend on; end tokens where its files name others than its tokenizer."""
        from mlxmath.generation.ending import load_generation_tokenizer

        tokenizer = load_generation_tokenizer(self._contestant.model, self._template)
        known = {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(self._template.stop or tokenizer.eos_token)}
        others = sorted(tokenizer.eos_token_ids - known)
        found = {**self._model_identity, "template": self._template.definition}
        return found | {"end_tokens": others} if others else found

    def ask(
        self,
        tasks: Sequence[Task],
        runtime: RuntimeConfig,
        on_outcome: Callable[[Outcome], object],
        on_step: Callable[[int], object],
    ) -> None:
        """Answer all tasks; each answer depends on the seed, the problem and the sample's number alone."""
        from mlxmath.runtime.select import open_backend

        settings, contestant = self._settings, self._contestant
        seed = settings.seed or 0
        backend, device = open_backend(runtime, seed)

        from mlxmath.generation.engine import (
            Completion,
            Sampling,
            generate_batch,
            load_generation_tokenizer,
            seed_of,
        )
        from mlxmath.generation.slots import choose_slots
        from mlxmath.models.load import load_model
        from mlxmath.models.lora.adapter import load_adapter
        from mlxmath.weights.manifest import read_fingerprint

        loaded = load_model(contestant.model, device.compute_dtype)
        if contestant.adapter is not None:
            load_adapter(loaded.model, contestant.adapter, read_fingerprint(contestant.model))
        tokenizer = load_generation_tokenizer(contestant.model, self._template)
        asked = {task.question.key: self._prompt(task.question.text) for task in tasks}
        ids = {key: encode_prompt(self._tokenizer, text) for key, text in asked.items()}
        opened = {key for key, text in asked.items() if joined(text).rstrip().endswith(_OPENED)}
        longest = max(map(len, ids.values())) + settings.max_tokens
        slots, reason = choose_slots(loaded.config, device, held_bytes=backend.memory().active_bytes, longest=longest)
        if settings.concurrency is not None:
            slots, reason = settings.concurrency, "asked for"
        say(f"{settings.teacher}: {slots} at a time ({reason}), template {self._template.name}")
        last = time.monotonic()

        def on_done(index: int, completion: Completion) -> None:
            nonlocal last
            now, task = time.monotonic(), tasks[index]
            text = completion.text
            if task.question.key in opened and _OPENED not in text:
                text = f"{_OPENED}\n{text.lstrip()}"
            answer = Answer(
                with_thinking(text), completion.finish_reason, completion.num_prompt_tokens, len(completion.tokens)
            )
            on_outcome(Outcome(task, answer, None, now - last, 1))
            last = now

        generate_batch(
            loaded.model,
            tokenizer,
            [ids[task.question.key] for task in tasks],
            Sampling(settings.max_tokens, settings.temperature, settings.top_p, seed),
            seeds=[seed_of(seed, *task.key) for task in tasks],
            concurrency=slots,
            on_done=on_done,
            on_step=on_step,
        )

    def _prompt(self, question: str) -> Any:
        """The question in the template; a template for training has its own instruction."""
        is_chat = isinstance(self._template, ChatTemplate)
        return self._template.prompt(prompt(question, self._settings.instruction) if is_chat else question)


def _template(settings: DistillationConfig, contestant: Contestant, tokenizer: Any) -> Template:
    """The one asked for, or its own."""
    if settings.teacher_template is not None:
        return get_template(settings.teacher_template, where="--teacher-template")
    return own_template(tokenizer, contestant.recorded_template(), get_template("tutor"))
