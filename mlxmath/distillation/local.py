"""A teacher on this machine: an MLX model folder, perhaps with an adapter."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mlxmath.config.methods import DistillationConfig
from mlxmath.config.schema import RuntimeConfig
from mlxmath.data.chat import ChatTemplate
from mlxmath.data.codec import load_tokenizer
from mlxmath.data.render import encode_prompt
from mlxmath.data.templates import get_template, joined, own_template
from mlxmath.distillation.questions import Task
from mlxmath.distillation.teacher import Answer, OnOutcome, prompt, with_thinking
from mlxmath.evaluation.contestants import choose_contestants
from mlxmath.runtime.console import say

_OPENED = "<think>"


class LocalTeacher:
    """A model, its tokenizer and the template that it is asked in."""

    def __init__(self, settings: DistillationConfig, runtime: RuntimeConfig) -> None:
        """Read everything but the weights.

        Raises:
            InputError: no such template.
            MlxmathError: the folders hold no model or adapter.
        """
        self._settings, self._runtime = settings, runtime
        (self._contestant,) = choose_contestants(Path(), (), (settings.teacher or "",), base=False)
        self._model_identity = self._contestant.identity()
        self._tokenizer = load_tokenizer(self._contestant.model)
        if settings.teacher_template is not None:
            template = get_template(settings.teacher_template, where="--teacher-template")
        else:
            template = own_template(self._tokenizer, self._contestant.recorded_template(), get_template("tutor"))
        self._template = template.for_tokenizer(self._tokenizer)

    @property
    def identity(self) -> dict[str, Any]:
        """Everything about it that its answers depend on; end tokens where its files name others than its tokenizer."""
        from mlxmath.generation.ending import load_generation_tokenizer

        tokenizer = load_generation_tokenizer(self._contestant.model, self._template)
        known = {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(self._template.stop or tokenizer.eos_token)}
        others = sorted(tokenizer.eos_token_ids - known)
        found = {**self._model_identity, "template": self._template.definition}
        found |= {"end_tokens": others} if others else {}
        return found | self._settings.model_dump(include={"temperature", "top_p", "max_tokens"})

    def ask(
        self, tasks: Sequence[Task], on_outcome: OnOutcome, on_step: Callable[[int], object] = lambda _: None
    ) -> None:
        """Answer all tasks; each answer depends on the seed, the problem and the sample's number alone.

        Args:
            tasks: what is asked.
            on_outcome: called with each answer as it is whole.
            on_step: called after each decoding step.
        """
        from mlxmath.runtime.device import open_backend

        settings, contestant = self._settings, self._contestant
        seed = settings.seed or 0
        backend, device = open_backend(self._runtime, seed)  # before anything imports mlx

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
        is_chat = isinstance(self._template, ChatTemplate)  # a template for training has its own instruction
        instruction = settings.instruction if is_chat else ""
        asked = {t.question.key: self._template.prompt(prompt(t.question.text, instruction)) for t in tasks}
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
            now, task, text = time.monotonic(), tasks[index], completion.text
            if task.question.key in opened and _OPENED not in text:
                text = f"{_OPENED}\n{text.lstrip()}"
            num_tokens = completion.num_prompt_tokens, len(completion.tokens)
            on_outcome(task, Answer(with_thinking(text), completion.finish_reason, *num_tokens, now - last))
            last = now

        generate_batch(
            loaded.model,
            load_generation_tokenizer(contestant.model, self._template),
            [ids[task.question.key] for task in tasks],
            Sampling(settings.max_tokens, settings.temperature, settings.top_p, seed),
            seeds=[seed_of(seed, *task.key) for task in tasks],
            concurrency=slots,
            on_done=on_done,
            on_step=on_step,
        )
