"""Templates: what stands in their texts, the user's own files, and the chat templates made of them."""

import re
from pathlib import Path
from typing import Any

import jinja2
import pytest

from mlxmath.data.problem import Message, Problem, SkippedRowError
from mlxmath.data.templates import (
    TEMPLATE_FOLDER,
    TEMPLATES,
    Segment,
    get_template,
    joined,
    read_definition,
    recorded_template,
)
from mlxmath.errors import InputError

TUTOR = (
    "You are a helpful math tutor. Solve the problem step by step and give the final answer at the end.\n\n"
    "### Problem:\n{question}\n\n### Solution:\n"
)
NASTY = "{solution} {question} {answer} {0.__class__} {{ x }} {% if %} %s \\n \"'\t$é中\u2028"
PLAIN = [name for name in TEMPLATES if name != "chat"]


def rendered(template: str, messages: list[dict[str, Any]]) -> str:
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, autoescape=False)  # as transformers has it
    return environment.from_string(template).render(messages=messages, bos_token="<s>", eos_token="</s>")


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_names_and_texts() -> None:
    assert set(TEMPLATES) == {
        "tutor", "instruction", "step-by-step", "chain-of-thought", "r1-think", "chat", "plain", "demo-base",
    }  # fmt: skip
    assert joined(get_template("tutor").prompt("q")) == TUTOR.replace("{question}", "q")
    assert joined(get_template("plain").prompt("q")) == "q\n"
    start = "Below is a mathematical problem. Solve it step by step.\n\nProblem: q\n\nSolution:"
    assert joined(get_template("step-by-step").prompt("q")) == f"{start}\n"
    assert joined(get_template("chain-of-thought").prompt("q")) == f"{start} Let's think step by step.\n"
    for name, heads in (("instruction", []), ("r1-think", ["<think>"])):
        lines = joined(get_template(name).prompt("q")).splitlines()
        assert [line for line in lines if line.startswith(("###", "<"))] == [
            "### Instruction:", "### Question:", "### Response:", *heads,
        ]  # fmt: skip
    assert all(read_definition(TEMPLATE_FOLDER / f"{name}.toml").description for name in TEMPLATES)


@pytest.mark.parametrize("name", PLAIN)
def test_problem_goes_in_as_it_is(name: str) -> None:
    template = get_template(name)
    before, _, rest = joined(template.prompt("QUESTION")).partition("QUESTION")
    prompt, completion = template.render(Problem("0", NASTY, solution=NASTY))
    assert prompt == Segment(before + NASTY + rest, False)
    assert completion == Segment(NASTY, True)
    assert template.prompt(NASTY) == (prompt,)


@pytest.mark.parametrize("name", PLAIN)
def test_chat_template(name: str) -> None:
    template = get_template(name)
    chat = template.chat_template(bos=False)
    prompt = joined(template.prompt(NASTY))
    user, system = {"role": "user", "content": NASTY}, {"role": "system", "content": "be brief"}
    answer = {"role": "assistant", "content": NASTY}
    assert rendered(chat, [user]) == prompt
    assert rendered(chat, [system, user]) == prompt
    assert rendered(chat, [user, answer]) == prompt + NASTY + "</s>"
    assert rendered(chat, [user, answer, user]) == prompt + NASTY + "</s>" + prompt
    parts = {
        "role": "user",
        "content": [{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}],
    }
    assert rendered(chat, [parts]) == joined(template.prompt("ab"))
    assert rendered(chat, [{"role": "assistant", "content": None}]) == "</s>"
    assert rendered(template.chat_template(bos=True), [user]) == "<s>" + prompt


@pytest.mark.parametrize(
    ("solution", "expected"),
    [
        ("<think>\nSo 4.\n</think>\n4", "So 4.\n</think>\n4"),
        (" <think>So 4.</think>4", "So 4.</think>4"),
        ("So <think> 4", "So <think> 4"),
    ],
)
def test_a_thinking_block_is_opened_once(solution: str, expected: str) -> None:
    problem = Problem("0", "2+2?", solution=solution)
    assert get_template("r1-think").render(problem)[1].text == expected
    assert get_template("tutor").render(problem)[1].text == solution


def test_several_turns_need_the_chat_template() -> None:
    turns = tuple(Message(role, role) for role in ("user", "assistant", "user", "assistant"))
    with pytest.raises(SkippedRowError, match="several turns"):
        get_template("tutor").render(Problem("0", "q", solution="s", messages=turns))


def test_own_template(tmp_path: Path) -> None:
    file = write(
        tmp_path / "boxed.toml",
        "prompt = 'Put the answer of {question} into \\boxed{}: '\ncompletion = \"{solution}\\n\\\\boxed{{answer}}\"\n",
    )
    template = get_template("tutor", file)
    assert template.name == "boxed"
    text = template.render(Problem("0", "1+1", answer="2", solution="One {answer} more."))
    assert [segment.text for segment in text] == [
        "Put the answer of 1+1 into \\boxed{}: ", "One {answer} more.\n\\boxed{2}",
    ]  # fmt: skip
    with pytest.raises(SkippedRowError, match="no answer, which the template needs"):
        template.render(Problem("0", "1+1", solution="One more than 1 is reached."))
    assert rendered(template.chat_template(bos=False), [{"role": "user", "content": "1+1"}]) == text[0].text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("completion = '{solution}'", r"t\.toml: prompt: is missing"),
        ("prompt = '{question}'\nprompts = 'x'", r"t\.toml: prompts: unknown; did you mean 'prompt'\?"),
        ("prompt = 3", r"t\.toml: prompt: expected text in quotes; found 3"),
        ("prompt = '{question}'\nchat = 'yes'", r"chat: expected true or false; found the text 'yes'"),
        ("prompt = 'x'", r"prompt: \{question\} is missing"),
        ("prompt = '{problem} {question}'", r"prompt: \{problem\} cannot stand here; \{question\} can"),
        ("prompt = '{question} {solution}'", r"prompt: \{solution\} cannot stand here; \{question\} can"),
        ("prompt = '{question}'\ncompletion = '{solutoin}'", r"completion: \{solutoin\} cannot stand here"),
        ("prompt = '{question}'\ncompletion = 'x'", r"completion: \{solution\} or \{answer\} is missing"),
        ("prompt = '{question}'\nsystem = 'x'", r"system: needs chat = true"),
        ("prompt = ", r"--template-file: .*t\.toml is not TOML"),
    ],
)
def test_wrong_template_files(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        get_template("tutor", write(tmp_path / "t.toml", content))
    with pytest.raises(InputError, match=r"--template-file: .*none\.toml does not exist"):
        get_template("tutor", str(tmp_path / "none.toml"))


@pytest.mark.parametrize("name", TEMPLATES)
def test_an_adapter_brings_its_template(name: str, tmp_path: Path) -> None:
    template = get_template(name)
    record = {"template": name, "template_definition": template.definition}
    for known in (record, {"template": name}):
        found = recorded_template(known, tmp_path)
        assert found is not None and (found.name, found.definition) == (name, template.definition)
    own = record | {"template": "mine", "template_definition": template.definition | {"prompt": "! {question}"}}
    found = recorded_template(own, tmp_path)
    assert found is not None and found.name == "mine" and found.definition["prompt"] == "! {question}"
    assert recorded_template({}, tmp_path) is None


def test_unknown_template() -> None:
    wanted = f"no template 'tutr'; there are {', '.join(TEMPLATES)}; did you mean 'tutor'?"
    with pytest.raises(InputError, match=re.escape(wanted)):
        get_template("tutr")
