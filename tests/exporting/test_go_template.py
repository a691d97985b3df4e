"""Jinja chat templates in Go's language: rendered by Go itself, as Ollama does."""

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path

import jinja2
import jinja2.sandbox
import pytest

from mlxmath.data.templates import get_template
from mlxmath.errors import InputError
from mlxmath.exporting.go_template import GoTemplate, Message, Render, quoted, translate
from tests.data.chat_templates import CHATML, TEMPLATES, THINKING

GEMMA = (  # the system message begins the first user's turn; roles must alternate; the assistant is called model
    "{{ bos_token }}{%- if messages[0]['role'] == 'system' -%}{%- set first = messages[0]['content'] + '\n\n' -%}"
    "{%- set rest = messages[1:] -%}{%- else -%}{%- set first = '' -%}{%- set rest = messages -%}{%- endif -%}"
    "{%- for m in rest -%}{%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) -%}{{ raise_exception('no') }}"
    "{%- endif -%}{{ '<turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' }}"
    "{{ (first if loop.first else '') + (m['content'] | trim) }}{{ '<end>\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<turn>model\n' }}{%- endif -%}"
)
QWEN = (  # a default system message; tools, which no problem has
    "{%- if tools %}{{ 'TOOLS' }}{%- elif messages[0]['role'] == 'system' %}"
    "{{ '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}"
    "{%- else %}{{ '<|im_start|>system\nYou are \"Qwen\".\\\\<|im_end|>\n' }}{%- endif %}"
    "{%- for m in messages %}{%- if m.role == 'user' or m.role == 'assistant' %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{%- endif %}"
)
Go = Callable[[str, Sequence[Sequence[Message]]], list[str]]
PLAIN = {name: get_template(name).chat_template(bos=True) for name in ("plain", "r1-think", "demo-base")}
TRANSLATED = {**TEMPLATES, "gemma": GEMMA, "qwen": QWEN, **PLAIN}


def rendering(source: str) -> Render:
    """As transformers renders."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )

    def raise_exception(text: str) -> None:
        raise jinja2.TemplateError(text)

    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda _: "26 Jul 2024"
    template = environment.from_string(source)

    def render(messages: Sequence[Message]) -> str | None:
        try:
            return template.render(
                messages=[dict(one) for one in messages], add_generation_prompt=True, bos_token="<s>", eos_token="</s>"
            )
        except (jinja2.TemplateError, TypeError):
            return None

    return render


def prompts(count: int = 50) -> list[list[Message]]:
    """Conversations of one to five turns that end with a question."""
    texts = [
        "Tom has {{ 3 }} pens.",
        "  is it 5%? \n",
        "<b>&amp;</b> \"q\" \\n 'x'",
        "é中😀\n\n\n`r`",
        "1 < 2\tor {% if %}",
    ]
    found = []
    for number in range(count):
        roles = ("system",) * (number % 3 == 0) + ("user", "assistant") * (number % 4 // 2) + ("user",)
        found.append(
            [{"role": role, "content": f"{texts[(number + place) % 5]} {number}"} for place, role in enumerate(roles)]
        )
    return found


@pytest.mark.parametrize("name", TRANSLATED)
def test_go_writes_what_jinja_writes(name: str, go: Go) -> None:
    render = rendering(TRANSLATED[name])
    conversations = [one for one in prompts() if render(one) is not None]
    assert len(conversations) >= 30
    found = translate(render)
    assert go(found.source(), conversations) == [render(one) for one in conversations]


@pytest.mark.parametrize("name", TRANSLATED)
def test_the_table_says_what_go_writes_in_any_conversation(name: str, go: Go) -> None:
    found = translate(rendering(TRANSLATED[name]))
    odd = ["assistant"], ["system"], ["user", "assistant"], ["user", "tool", "user"], ["assistant", "user"], []
    conversations = [[{"role": role, "content": " \n x \t"} for role in roles] for roles in odd]
    assert go(found.source(), conversations) == [found.rendered(one) for one in conversations]


@pytest.mark.parametrize(
    ("name", "thinks"),
    [
        ("deepseek_r1_distill", True), ("gemma", False), ("gemma3", False), ("gptoss", False), ("llama3", False),
        ("llama3_2", False), ("phi3", False), ("qwen2_5", False), ("qwen3", True), ("qwen3_instruct_2507", False),
    ],
)  # fmt: skip
def test_templates_of_real_models(name: str, thinks: bool, go: Go) -> None:
    """As TRL brings them along."""
    trl = importlib.util.find_spec("trl")
    if trl is None or trl.origin is None:
        pytest.skip("trl is not installed")
    path = Path(trl.origin).parent / "chat_templates" / f"{name}.jinja"
    if not path.is_file():
        pytest.skip(f"this version of trl brings no {path.name}")
    render = rendering(path.read_text(encoding="utf-8"))
    conversations = [one for one in prompts() if render(one) is not None]
    found = translate(render)
    assert len(conversations) >= 30
    assert go(found.source(), conversations) == [render(one) for one in conversations]
    assert bool(found.notes) is thinks


def test_trimming_is_that_of_python(go: Go) -> None:
    found = GoTemplate({("", "user"): "<", ("user", "end"): ">"}, frozenset({"user"}))
    texts = ["", " ", "a", " \t\n\r\v\fa b\n ", "é ", "\n\n中\n", "x" * 2000 + " " * 2000]
    assert go(found.source(), [[{"role": "user", "content": text}] for text in texts]) == [
        f"<{text.strip()}>" for text in texts
    ]


def test_a_system_message_that_a_template_refuses_begins_the_users() -> None:
    found = translate(rendering(TEMPLATES["mistral"]))
    assert found.rendered([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1?"}]) == (
        "<s>[INST] Be brief.\n\n1 + 1? [/INST]"
    )


def test_the_beginning_of_text_is_left_to_llama_cpp() -> None:
    found = translate(rendering(TEMPLATES["llama 3"])).without_start("<s>")
    assert found.rendered([{"role": "user", "content": "x"}]).startswith("<|start|>system")


def test_dropped_thinking_is_noted() -> None:
    assert not translate(rendering(CHATML)).notes
    (note,) = translate(rendering(THINKING)).notes
    assert "</think>" in note


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("{% for m in messages %}{{ m['content'] | upper }}{% endfor %}", "depends on the text of a message"),
        ("{% for m in messages %}{{ m['content'] | replace('<', '&lt;') }}|{% endfor %}", "depends on the text"),
        ("{% for m in messages %}{{ loop.index }}{{ m['content'] }}{% endfor %}", "in one place and"),
        ("{% for m in messages | reverse %}{{ m['content'] }}{% endfor %}", "leaves out or moves"),
        ("{{ messages[-1]['content'] }}", "leaves out or moves"),
        ("{% for m in messages %}{{ m['content'].rstrip() }}|{% endfor %}", "changes the spaces"),
        ("{{ raise_exception('never') }}", "does not write a user's message"),
        ("{{ messages | length }}", "does not write a user's message"),
        ("{% for m in messages %}{{ 'L' if m['content'] | length > 9 }}{{ m['content'] }}|{% endfor %}", "on the text"),
    ],
)  # fmt: skip
def test_what_a_table_of_roles_cannot_say_is_refused(source: str, why: str) -> None:
    with pytest.raises(InputError, match="cannot be translated") as error:
        translate(rendering(source))
    assert why in str(error.value)


def test_constants_are_go_s() -> None:
    assert quoted('a"\\\n\té\u200b\U000e0001') == '"a\\"\\\\\\n\\té\\u200b\\U000e0001"'
