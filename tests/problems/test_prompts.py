"""Templates, and the chat templates made of them."""

import re
from typing import Any

import jinja2
import pytest

from mlxmath.errors import InputError
from mlxmath.problems.problem import Problem
from mlxmath.problems.prompts import TEMPLATES, get_template

TUTOR = (
    "You are a helpful math tutor. Solve the problem step by step and give the final answer at the end.\n\n"
    "### Problem:\n{problem}\n\n### Solution:\n{solution}"
)
NASTY = "{solution} {problem} {{ x }} {% if %} %s \\n \"'\t$é中\u2028"


def rendered(template: str, messages: list[dict[str, Any]]) -> str:
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, autoescape=False)  # as transformers has it
    return environment.from_string(template).render(messages=messages, bos_token="<s>", eos_token="</s>")


def test_tutor_text() -> None:
    template = get_template("tutor")
    assert template.text == TUTOR
    assert template.prompt("q") == TUTOR.removesuffix("{solution}").replace("{problem}", "q")
    assert template.prompt("q").endswith("q\n\n### Solution:\n")


@pytest.mark.parametrize("name", TEMPLATES)
def test_problem_goes_in_as_it_is(name: str) -> None:
    template = get_template(name)
    prompt, completion = template.render(Problem("0", NASTY, solution=NASTY))
    before, _, rest = template.text.partition("{problem}")
    assert prompt == before + NASTY + rest.removesuffix("{solution}")
    assert completion == NASTY


@pytest.mark.parametrize("name", TEMPLATES)
def test_chat_template(name: str) -> None:
    template = get_template(name)
    chat = template.chat_template(bos=False)
    user, system = {"role": "user", "content": NASTY}, {"role": "system", "content": "be brief"}
    answer = {"role": "assistant", "content": NASTY}
    assert rendered(chat, [user]) == template.prompt(NASTY)
    assert rendered(chat, [system, user]) == template.prompt(NASTY)
    assert rendered(chat, [user, answer]) == template.prompt(NASTY) + NASTY + "</s>"
    assert rendered(chat, [user, answer, user]) == template.prompt(NASTY) + NASTY + "</s>" + template.prompt(NASTY)
    parts = {
        "role": "user",
        "content": [{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}],
    }
    assert rendered(chat, [parts]) == template.prompt("ab")
    assert rendered(chat, [{"role": "assistant", "content": None}]) == "</s>"
    assert rendered(template.chat_template(bos=True), [user]) == "<s>" + template.prompt(NASTY)


def test_unknown_template() -> None:
    with pytest.raises(
        InputError, match=re.escape("no template 'tutr'; there are tutor, plain; did you mean 'tutor'?")
    ):
        get_template("tutr")
