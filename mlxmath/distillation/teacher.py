"""What every teacher is asked and gives, how a chat completion's JSON is read, and the teacher on this machine."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mlxmath.config.methods import DistillationConfig
from mlxmath.config.schema import RuntimeConfig
from mlxmath.distillation.questions import Task
from mlxmath.errors import InputError
from mlxmath.runtime.console import printable, say, warn
from mlxmath.runtime.files import parse_json
from mlxmath.tools.forms import Tool
from mlxmath.tools.run import check

_OPENED = "<think>"


@dataclass(frozen=True)
class Answer:
    """What a teacher wrote, its reasoning in front as `<think>…</think>`."""

    text: str
    finish_reason: str
    """"stop", "length" (cut off at the token limit), or the endpoint's own word."""
    prompt_tokens: int
    completion_tokens: int
    seconds: float = 0.0
    attempts: int = 1
    """Requests that it took."""


OnOutcome = Callable[[Task, Answer | str], object]
"""Takes what became of a task: an answer, or the reason why there is none."""


class Teacher(Protocol):
    """Who can be asked: `mlxmath.distillation.endpoint.Endpoint` or `LocalTeacher`."""

    @property
    def identity(self) -> dict[str, Any]:
        """Everything about it that its answers depend on."""

    def ask(self, tasks: Sequence[Task], on_outcome: OnOutcome, on_step: Callable[[int], object]) -> None:
        """Ask all tasks' questions; each has one outcome."""


def open_teacher(settings: DistillationConfig, runtime: RuntimeConfig, tool: Tool | None = None) -> Teacher:
    """The endpoint of the settings, or the model on this machine.

    Raises:
        InputError: a setting is wrong.
        MlxmathError: there is no model or adapter in the folder.
    """
    if settings.teacher_url is not None:
        from mlxmath.distillation.endpoint import Endpoint

        if tool:
            raise InputError(
                f"--tools {tool}: an endpoint's calls are not run; use a local --teacher, or leave it out."
            )
        return Endpoint(settings)
    return LocalTeacher(settings, runtime, tool)


class TryAgain(Exception):  # noqa: N818
    """No answer this time; `retry_after_s` is what the endpoint asks to wait."""

    def __init__(self, reason: str, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class Refused(Exception):  # noqa: N818
    """The endpoint does not answer this question, however often it is asked."""


def prompt(question: str, instruction: str) -> str:
    """What the teacher is asked."""
    return f"{question}\n\n{instruction}" if instruction.strip() else question


def with_thinking(content: str, reasoning: str = "", *, finished: bool = True) -> str:
    """A text whose reasoning, if any, stands first between `<think>` and `</think>`.

    Args:
        content: the answer. If it closes a thinking part that the prompt has opened, this is opened.
        reasoning: of endpoints that send it apart.
        finished: False if the token limit was reached: reasoning that nothing follows is then left open.
    """
    if reasoning.strip():
        closed = finished or content.strip()
        return f"<think>\n{reasoning.strip()}\n" + (f"</think>\n\n{content.strip()}" if closed else "")
    if "</think>" in content and "<think>" not in content.partition("</think>")[0]:
        return f"<think>\n{content.lstrip()}".strip()
    return content.strip()


def still_thinking(text: str) -> str:
    """A text that was cut off behind a prompt that opens a thinking part: this is opened, unless it is closed there.

    An answer that ended is one as it stands, as in evaluation: adapters that were tuned on solutions without thoughts
    never close what a chat template opens.
    """
    return text if _OPENED in text or "</think>" in text else f"{_OPENED}\n{text.lstrip()}"


def read_answer(text: str) -> Answer:
    """The answer in a chat completion's JSON.

    Raises:
        TryAgain: it is not one.
    """
    try:
        reply = parse_json(text)
    except ValueError:
        if text.lstrip().startswith(("data:", "event:")):
            raise TryAgain("the reply is a stream, though none was asked for") from None
        raise TryAgain("the reply is not JSON") from None
    try:
        choice = reply["choices"][0]
        message = choice["message"]
        found, reason = message.get("content"), choice.get("finish_reason")
    except (TypeError, KeyError, IndexError, AttributeError):
        said = error_message(text) if isinstance(reply, dict) and "error" in reply else ""
        raise TryAgain(f"the reply holds no answer{f': {said}' if said else ''}") from None
    content, thought = _parts(found)
    reasoning = next((r for name in ("reasoning_content", "reasoning") if isinstance(r := message.get(name), str)), "")
    usage = reply.get("usage") if isinstance(reply.get("usage"), dict) else {}
    prompt_tokens, completion_tokens = (
        count if type(count := usage.get(f"{part}_tokens")) is int and count >= 0 else 0
        for part in ("prompt", "completion")
    )
    text = with_thinking(content, reasoning or thought, finished=reason != "length")
    return Answer(text, reason if isinstance(reason, str) else "stop", prompt_tokens, completion_tokens)


def error_message(text: str) -> str:
    """The message of an error's body in one short line without anything that a terminal obeys."""
    try:
        found = parse_json(text)
    except ValueError:
        found = text
    for name in ("error", "message"):
        found = found.get(name, found) if isinstance(found, dict) else found
    return " ".join(printable(str(found)).split())[:200]


def _parts(content: Any) -> tuple[str, str]:
    """The text and the reasoning of a message's content: a text, or a list of typed parts."""
    if not isinstance(content, list):
        return (content if isinstance(content, str) else ""), ""
    parts = [part for part in content if isinstance(part, dict)]
    thoughts = [_parts(part.get("thinking"))[0] for part in parts if part.get("type") == "thinking"]
    texts = [part.get("text") for part in parts if part.get("type") != "thinking"]
    return "".join(text for text in texts if isinstance(text, str)), "".join(thoughts)


class LocalTeacher:
    """A teacher on this machine: an MLX model folder, perhaps with an adapter, and the template that it is asked in."""

    def __init__(self, settings: DistillationConfig, runtime: RuntimeConfig, tool: Tool | None = None) -> None:
        """Read everything but the weights.

        Raises:
            InputError: no such template.
            MlxmathError: the folders hold no model or adapter.
        """
        from mlxmath.data.chat import ChatTemplate
        from mlxmath.data.codec import load_tokenizer
        from mlxmath.data.templates import get_template, own_template
        from mlxmath.evaluation.contestants import choose_contestants

        self._settings, self._runtime, self._tool = settings, runtime, tool
        check(tool)
        (self._contestant,) = choose_contestants(Path(), (), (settings.teacher or "",), base=False)
        self._model_identity = self._contestant.identity()
        self._tokenizer = load_tokenizer(self._contestant.model)
        template = (
            own_template(self._tokenizer, self._contestant.recorded_template(), get_template("tutor"))
            if settings.teacher_template is None
            else get_template(settings.teacher_template, where="--teacher-template")
        )
        self._template = template.for_tokenizer(self._tokenizer)
        self._instruction = settings.instruction
        if not isinstance(self._template, ChatTemplate):  # a template for training has its own instruction
            self._instruction = ""
            if settings.instruction not in ("", DistillationConfig.model_fields["instruction"].default):
                warn(f"--instruction is not sent: the teacher is asked in {self._template.name}, no chat template")

    @property
    def identity(self) -> dict[str, Any]:
        """Everything about it that its answers depend on; end tokens where its files name others than its tokenizer."""
        from mlxmath.generation.model import load_generation_tokenizer

        tokenizer = load_generation_tokenizer(self._contestant.model, self._template)
        known = {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(self._template.stop or tokenizer.eos_token)}
        others = sorted(tokenizer.eos_token_ids - known)
        ends = {"end_tokens": others} if others else {}
        tools = {"tools": self._tool} if self._tool else {}
        found = {**self._model_identity, "template": self._template.definition, **ends, **tools}
        found["instruction"] = self._instruction
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
        from mlxmath.runtime.device import opened_backend

        settings, contestant, seed = self._settings, self._contestant, self._settings.seed or 0
        with opened_backend(self._runtime, seed) as (backend, device):  # before anything imports mlx
            from mlxmath.data.render import encode_prompt
            from mlxmath.data.templates import joined
            from mlxmath.generation.engine import Completion, Sampling, generate_batch, seed_of
            from mlxmath.generation.model import load_generation_tokenizer
            from mlxmath.generation.slots import choose_slots
            from mlxmath.models.load import load_model
            from mlxmath.models.lora.adapter import load_adapter
            from mlxmath.weights.manifest import read_fingerprint

            loaded = load_model(contestant.model, device.compute_dtype)
            if contestant.adapter is not None:
                load_adapter(loaded.model, contestant.adapter, read_fingerprint(contestant.model))
            asked = {t.question.key: self._template.prompt(prompt(t.question.text, self._instruction)) for t in tasks}
            ids = {key: encode_prompt(self._tokenizer, text) for key, text in asked.items()}
            opened = {key for key, text in asked.items() if joined(text).rstrip().endswith(_OPENED)}
            longest = max(map(len, ids.values())) + settings.max_tokens
            held_bytes, asked_for = backend.memory().active_bytes, settings.concurrency
            slots, reason = choose_slots(loaded.config, device, held_bytes=held_bytes, longest=longest, asked=asked_for)
            say(f"{settings.teacher}: {slots} at a time ({reason}), template {self._template.name}")
            last = time.monotonic()

            def on_done(index: int, completion: Completion) -> None:
                nonlocal last
                now, task, text = time.monotonic(), tasks[index], completion.text
                if task.question.key in opened and completion.finish_reason == "length":
                    text = still_thinking(text)
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
                tool=self._tool,
                on_done=on_done,
                on_step=on_step,
            )
