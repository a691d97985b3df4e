"""`--to ollama`: a GGUF file and the Modelfile that gives it the trained template."""

from collections.abc import Sequence
from typing import Any

from mlxmath.data.chat_format import write as write_chat
from mlxmath.data.render import adds_bos
from mlxmath.errors import InputError
from mlxmath.exporting import gguf
from mlxmath.exporting.check import Answers
from mlxmath.exporting.go_template import GoTemplate, Message, translate
from mlxmath.exporting.original import Job, Original, refuse_flags
from mlxmath.generation.model import load_generation_tokenizer
from mlxmath.runtime.bounded import OverrunError
from mlxmath.runtime.foreign import TemplateError

MODELFILE = "Modelfile"


def write(job: Job) -> list[str]:
    """Write the model and its Modelfile; see `Target`."""
    refuse_flags(job.settings, "adapter_only")
    template = go_template(job.original)
    notes = gguf.write(job)
    (path,) = job.folder.glob("*.gguf")
    text = modelfile(job.original, path.name, template)
    (job.folder / MODELFILE).write_text(text, encoding="utf-8")
    return [*notes, *template.notes, f"ollama create NAME -f {MODELFILE}, in that folder, makes it a model of Ollama"]


def reopened(job: Job) -> Answers:
    """The written model in llama.cpp, which Ollama runs it with."""
    return gguf.reopened(job)


def go_template(original: Original) -> GoTemplate:
    """The trained template in Go's language, without the beginning-of-text token that the file has llama.cpp add.

    Raises:
        InputError: it cannot be translated.
    """
    tokenizer = load_generation_tokenizer(original.model, original.template)
    begins = adds_bos(tokenizer)
    jinja = original.template.chat_template(bos=begins)
    plain = getattr(tokenizer, "_tokenizer", tokenizer)

    def render(messages: Sequence[Message]) -> str | None:
        return written(plain, jinja, messages)

    found = translate(render)
    return found.without_start(tokenizer.bos_token) if begins else found


def written(tokenizer: Any, jinja: str, messages: Sequence[Message]) -> str | None:
    """What a chat template makes of messages and the beginning of an answer; None if it refuses them."""
    try:
        return write_chat(tokenizer, jinja, messages, None, generate=True)
    except TemplateError:
        return None
    except OverrunError as error:
        raise InputError(f"--to ollama: the chat template is not followed to its end: {error}.") from None


def modelfile(original: Original, file: str, template: GoTemplate) -> str:
    """The text of a Modelfile.

    Temperature 0 and no penalty for repetition are how the answers were evaluated; Ollama's own defaults draw.
    """
    tokenizer = load_generation_tokenizer(original.model, original.template)
    ends = [tokenizer.convert_ids_to_tokens(number) for number in gguf.ends_of(tokenizer, original)]
    lines = [f"FROM ./{file}", f"TEMPLATE {_quoted(template.source(), 'template')}"]
    if original.template.spec.system:
        lines.append(f"SYSTEM {_quoted(original.template.spec.system, 'system message')}")
    lines += [f"PARAMETER stop {_quoted(text, 'stop text')}" for text in (*ends, *original.template.stop_strings)]
    lines += ["PARAMETER temperature 0", "PARAMETER repeat_penalty 1"]
    return "\n".join(lines) + "\n"


def _quoted(text: str, what: str) -> str:
    """A value of a Modelfile, which knows no escapes; other characters than these Ollama's reader drops or misreads."""
    odd = next((char for char in text if not char.isprintable() and char not in "\n\t"), None)
    if '"""' in text or odd is not None:
        raise InputError(
            f"--to ollama: the {what} holds {odd or '3 quotation marks in a row'!r}, which a Modelfile cannot; export "
            "with --to gguf."
        )
    return f'"""{text}"""'
