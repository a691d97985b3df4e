"""Conversations with tools, reasoning and weights, in a chat template; and the forms that datasets have them in."""

import json
from decimal import Decimal
from typing import Any, ClassVar

import pytest

from mlxmath.data.chat import ChatTemplate
from mlxmath.data.chat_format import DATE
from mlxmath.data.columns import find_columns
from mlxmath.data.forms import make_problem
from mlxmath.data.gold import gold, options_of, with_options
from mlxmath.data.problem import Message, Problem, SkippedRowError
from mlxmath.data.render import encode_prompt, render
from mlxmath.data.templates import Definition, get_template, joined
from mlxmath.errors import InputError
from tests.data.material import BUILDERS

WITH_TOOLS = (
    "{% if tools %}<|im_start|>system\nTools:{% for t in tools %} {{ t | tojson }}{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}{% if m['role'] == 'tool' %}<|im_start|>user\n<out>{{ m['content'] }}</out><|im_end|>\n"
    "{% else %}<|im_start|>{{ m['role'] + '\n' }}"
    "{% if m['reasoning_content'] %}<think>\n{{ m['reasoning_content'] }}\n</think>\n\n{% endif %}{{ m['content'] }}"
    "{% for c in m['tool_calls'] or [] %}<call>{{ c['function'] | tojson }}</call>{% endfor %}<|im_end|>\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHANNELS = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "{% if m['thinking'] %}<|start|>assistant<|head|>analysis: {{ m['thinking'] }}<|im_end|>{% endif %}"
    "<|start|>assistant<|head|>final: {{ m['content'] }}<|eot|>"
    "{% else %}<|start|>{{ m['role'] }}: {{ m['content'] }}<|im_end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
PLAIN = (
    "{% for m in messages %}<|im_start|>{{ m['role'] + '\n' + m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CALL = {"id": "c1", "type": "function", "function": {"name": "calc", "arguments": '{"e": "3+5"}'}}
TOOLS = [{"type": "function", "function": {"name": "calc", "description": "computes", "parameters": {}}}]
ALTERNATING = (  # as Gemma's and Mistral's
    "{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "<|im_start|>{{ m['role'] + '\n' + m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
Q, A = "Tom has 3 pens and buys 5.", "3 + 5 = 8."


def tokenizer_with(template: Any) -> Any:
    tokenizer = BUILDERS["byte level"]()
    special = ["<|im_start|>", "<|im_end|>", "<|start|>", "<|head|>", "<|eot|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    tokenizer.chat_template = template
    return tokenizer


def template_with(source: Any) -> ChatTemplate:
    return ChatTemplate("chat", Definition(prompt="{question}", chat=True)).for_tokenizer(tokenizer_with(source))


def problem_of(row: dict[str, Any], **columns: Any) -> Problem:
    return make_problem(row, find_columns(list(row), **columns, where="rows"), 0)


def test_a_tokenizer_without_control_tokens_ends_nothing() -> None:
    tokenizer = tokenizer_with(PLAIN)
    tokenizer._special_tokens_map["eos_token"] = None
    template = ChatTemplate("chat", Definition(prompt="{question}", chat=True)).for_tokenizer(tokenizer)
    assert template.stop == "<|im_end|>" and template.format.ends_a_call.search("a<|im_end|>")
    template = ChatTemplate("chat", Definition(prompt="{question}", chat=True)).for_tokenizer(_Bare(PLAIN))
    assert template.stop is None and template.format.ends_a_call.search("a<|im_end|>") is None


class _Bare:
    """Of a tokenizer, what a chat template needs; it has no token for the end of a text."""

    eos_token, name_or_path = None, "bare"
    added_tokens_decoder: ClassVar[dict[int, Any]] = {}
    special_tokens_map: ClassVar[dict[str, str]] = {}

    def __init__(self, chat_template: str) -> None:
        self.chat_template = chat_template


def targets(template: ChatTemplate, problem: Problem) -> list[str]:
    """The parts of the training text that are learned, each as one text."""
    parts: list[str] = []
    was_target = False
    for segment in template.render(problem):
        if segment.is_target:
            parts[-1:] = [parts[-1] + segment.text] if was_target else [*parts[-1:], segment.text]
        was_target = segment.is_target
    return parts


def test_tool_calls_are_learned_and_results_are_not() -> None:
    turns = [
        {"role": "user", "content": Q},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "8"},
        {"role": "assistant", "content": A},
    ]
    template = template_with(WITH_TOOLS)
    problem = problem_of({"messages": turns, "tools": TOOLS})
    assert targets(template, problem) == [
        '<call>{"name": "calc", "arguments": {"e": "3+5"}}</call><|im_end|>',
        f"{A}<|im_end|>",
    ]
    plain_data = [{**turn, "content": turn["content"] or ""} for turn in turns]
    plain_data[1]["tool_calls"] = [{**CALL, "function": {"name": "calc", "arguments": {"e": "3+5"}}}]
    text = template.tokenizer.apply_chat_template(plain_data, tools=TOOLS, tokenize=False)
    assert joined(template.render(problem)) == text.rstrip("\n")
    rendered, failed = render(template.tokenizer, [template.render(problem)])
    whole = template.tokenizer.encode(text.rstrip("\n"), add_special_tokens=False)
    assert failed == 0 and rendered.tokens.tolist() == whole


def test_a_call_at_the_end_is_learned() -> None:
    problem = problem_of(
        {
            "conversations": [
                {"from": "human", "value": Q},
                {"from": "function_call", "value": json.dumps({"name": "calc", "arguments": {"e": "3+5"}})},
            ]
        }
    )
    (target,) = targets(template_with(WITH_TOOLS), problem)
    assert target.startswith("<call>") and target.endswith("</call><|im_end|>")


@pytest.mark.parametrize(
    ("source", "arguments", "reason"),
    [(PLAIN, "{}", "does not know"), (WITH_TOOLS, '{"e": "<|im_end|>"}', "spell a control token")],
)
def test_calls_that_cannot_be_written(source: str, arguments: str, reason: str) -> None:
    call = {"function": {"name": "calc", "arguments": arguments}}
    problem = problem_of({"messages": [{"role": "user", "content": Q}, {"role": "assistant", "tool_calls": [call]}]})
    with pytest.raises(SkippedRowError, match=reason):
        template_with(source).render(problem)
    with pytest.raises(SkippedRowError, match="need the chat template"):
        get_template("plain").render(
            problem_of(
                {"messages": [{"role": "user", "content": Q}, {"role": "assistant", "content": A}], "tools": TOOLS}
            )
        )


@pytest.mark.parametrize("name", ["reasoning_content", "thinking", "reasoning"])
def test_reasoning_in_the_form_that_the_template_has(name: str) -> None:
    problem = problem_of(
        {"messages": [{"role": "user", "content": Q}, {"role": "assistant", name: "I add.", "content": A}]}
    )
    assert targets(template_with(WITH_TOOLS), problem) == [f"<think>\nI add.\n</think>\n\n{A}<|im_end|>"]
    assert targets(template_with(PLAIN), problem) == [f"<think>\nI add.\n</think>\n\n{A}<|im_end|>"]
    assert targets(template_with(CHANNELS), problem) == [
        f"<|head|>analysis: I add.<|im_end|><|start|>assistant<|head|>final: {A}<|eot|>"
    ]
    assert get_template("plain").render(problem)[1].text.startswith("<think>\nI add.\n</think>\n\n3 + 5")


def test_what_the_template_writes_before_an_answer_is_learned_where_the_prompt_leaves_it_out() -> None:
    template = template_with(CHANNELS)
    problem = problem_of({"question": Q, "solution": A})
    assert targets(template, problem) == [f"<|head|>final: {A}<|eot|>"]
    begun = encode_prompt(template.tokenizer, template.prompt(Q))
    rendered, _ = render(template.tokenizer, [template.render(problem)])
    assert rendered.tokens.tolist()[: len(begun)] == begun and not rendered.mask[: len(begun)].any()


def test_an_answer_of_weight_0_is_context() -> None:
    turns = [
        {"role": "user", "content": Q},
        {"role": "assistant", "content": "WRONG", "weight": 0},
        {"role": "user", "content": "Again."},
        {"role": "assistant", "content": A, "weight": 1},
    ]
    template = template_with(PLAIN)
    assert targets(template, problem_of({"messages": turns})) == [f"{A}<|im_end|>"]
    assert "WRONG" in joined(template.render(problem_of({"messages": turns})))
    with pytest.raises(SkippedRowError, match="without a question and an answer"):
        problem_of({"messages": turns[:2]})


def said(*turns: str) -> dict[str, Any]:
    """A row of messages; "u: text" is the user's."""
    roles = {"u": "user", "a": "assistant", "s": "system", "d": "developer"}
    return {"messages": [{"role": roles[turn[0]], "content": turn[3:]} for turn in turns]}


def written(*turns: str) -> str:
    """What the tests' templates make of a conversation up to its last answer."""
    return "".join(f"<|im_start|>{turn}<|im_end|>\n" for turn in turns).removesuffix("\n")


def test_neighbours_of_one_role_stay_apart_where_the_template_takes_them_and_are_joined_elsewhere() -> None:
    problem = problem_of(said("u: Hi", f"u: {Q}", f"a: {A}", "a: Indeed.", "u: Why?", "a: So."))
    assert (problem.question, problem.solution) == (f"Hi\n\n{Q}", "So.")
    apart, joins = template_with(PLAIN), template_with(ALTERNATING)
    assert joined(apart.render(problem)) == written(
        "user\nHi", f"user\n{Q}", f"assistant\n{A}", "assistant\nIndeed.", "user\nWhy?", "assistant\nSo."
    )
    assert targets(apart, problem) == [f"{A}<|im_end|>", "Indeed.<|im_end|>", "So.<|im_end|>"]
    assert joined(joins.render(problem)) == written(
        f"user\nHi\n\n{Q}", f"assistant\n{A}\n\nIndeed.", "user\nWhy?", "assistant\nSo."
    )
    assert targets(joins, problem) == [f"{A}\n\nIndeed.<|im_end|>", "So.<|im_end|>"]
    plain = get_template("plain").render(problem_of(said("u: Hi", f"u: {Q}", f"a: {A}")))
    assert f"Hi\n\n{Q}" in plain[0].text and plain[1].text == A


def test_answers_one_after_the_other_of_which_one_is_not_learned() -> None:
    row = said(f"u: {Q}", "a: WRONG", f"a: {A}")
    row["messages"][1]["weight"] = 0
    assert targets(template_with(PLAIN), problem_of(row)) == [f"{A}<|im_end|>"]
    with pytest.raises(SkippedRowError, match="one after the other, of which not all are learned"):
        template_with(ALTERNATING).render(problem_of(row))


@pytest.mark.parametrize("system", [(), ("s: Be brief.",)])
def test_what_an_assistant_says_before_it_is_asked_is_context(system: tuple[str, ...]) -> None:
    problem = problem_of(said(*system, "a: Hello, what can I do?", f"u: {Q}", f"a: {A}"))
    assert (problem.question, problem.solution) == (Q, A)
    template = template_with(PLAIN)
    assert targets(template, problem) == [f"{A}<|im_end|>"]
    assert "<|im_start|>assistant\nHello, what can I do?<|im_end|>" in joined(template.render(problem))
    with pytest.raises(SkippedRowError, match="that an assistant opens, which the chat template does not take"):
        template_with(ALTERNATING).render(problem)
    with pytest.raises(SkippedRowError, match="need the chat template"):
        get_template("plain").render(problem)


def test_system_messages_at_the_start_are_one_and_inside_are_none() -> None:
    problem = problem_of(said("s: Be brief.", "d: Be kind.", f"u: {Q}", f"a: {A}"))
    assert problem.messages[0] == Message("system", "Be brief.\n\nBe kind.")
    with pytest.raises(SkippedRowError, match="a system message inside"):
        problem_of(said(f"u: {Q}", "s: Be brief.", f"a: {A}"))


def test_turns_that_the_template_refuses_cost_their_row_and_not_the_run() -> None:
    only_one = "{% if messages | length > 2 %}{{ raise_exception('one question only') }}{% endif %}" + PLAIN
    template = template_with(only_one)
    assert targets(template, problem_of(said(f"u: {Q}", f"a: {A}"))) == [f"{A}<|im_end|>"]
    with pytest.raises(SkippedRowError, match="whose turns the chat template refuses"):
        template.render(problem_of(said(f"u: {Q}", f"a: {A}", "u: Why?", "a: So.")))
    with pytest.raises(InputError, match="--template chat: .* refuses .* choose another template"):
        template.prompt(Q, [Problem("", Q, solution=A)])


@pytest.mark.parametrize(
    "row",
    [
        {"conversations": [{"from": "human", "value": Q}, {"from": "gpt", "value": A}]},
        {"conversations": [{"role": "user", "content": Q}, {"role": "assistant", "content": A}]},
        {"messages": [{"role": "User", "content": Q}, {"role": "Assistant", "content": A}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": Q}]}, {"role": "assistant", "content": A}]},
        {"messages": json.dumps([{"role": "user", "content": Q}, {"role": "assistant", "content": A}])},
        {"prompt": [{"role": "user", "content": Q}], "completion": [{"role": "assistant", "content": A}]},
        {"prompt": [{"role": "user", "content": Q}], "completion": A},
        {"Question": Q, "Answer": A},
        {"input": Q, "target": A},
        {"question": Q, "answer": "8", "solution": A},
        {"problem": Q, "answer": "8", "generated_solution": A},
        {"question": Q, "rationale": A, "answer": "8"},
        {"question": Q, "cot": A, "answer": "8"},
        {"prompt": Q, "messages": [{"role": "user", "content": Q}, {"role": "assistant", "content": A}]},
        {"messages": {"role": ["user", "assistant"], "content": [Q, A]}},
        {"conversation": [{"input": Q, "output": A}]},
        {"conversation": [{"human": Q, "assistant": A}]},
        {"messages": [{"role": "user", "content": {"type": "text", "text": Q}}, {"role": "assistant", "content": A}]},
        {"prompt": json.dumps([{"role": "user", "content": Q}]), "completion": A},
        {"Problem Statement": Q, "generatedSolution": A, "Final Answer": "8"},
        {" question ": Q, "answer": "8", "Solution": A},
        {"inputs": Q, "targets": A},
        {"problem": Q, "solution": A, "answer": Decimal("8")},
        {"problem": Q, "solution": A, "answer": {"value": "8", "aliases": ["eight"]}},
        {"problem": Q, "solution": A, "reward_model": '{"ground_truth": "8", "style": "rule"}'},
    ],
)  # fmt: skip
def test_forms_of_the_same_problem(row: dict[str, Any]) -> None:
    problem = problem_of(row)
    assert (problem.question, problem.solution) == (Q, A)
    if {"answer", "Final Answer", "reward_model"} & set(row):
        assert problem.answer == "8"


@pytest.mark.parametrize(
    ("columns", "question", "answer"),
    [
        ({"options": ["A)7", "B)8"], "correct": "B"}, f"{Q}\nA) 7\nB) 8", "B"),
        ({"choices": ["7", "8"], "answer": 1}, f"{Q}\nA) 7\nB) 8", "B"),
        ({"choices": ["7", "8"], "answer": 8}, f"{Q}\nA) 7\nB) 8", "8"),
        ({"choices": {"text": ["7", "8"], "label": ["1", "2"]}, "answerKey": "2"}, f"{Q}\n1) 7\n2) 8", "2"),
        ({"options": {"A": "7", "B": "8"}, "answer_idx": "B"}, f"{Q}\nA) 7\nB) 8", "B"),
        ({"options": "a ) 7 , b ) 8", "answer": "b"}, f"{Q}\nOptions: a ) 7 , b ) 8", "b"),
    ],
)
@pytest.mark.parametrize("worked", [{"rationale": A}, {}])
def test_options_belong_to_the_question(columns: dict[str, Any], question: str, answer: str, worked: Any) -> None:
    row = {"question": Q, **columns, **worked}
    found = find_columns(list(row), where="rows", solution_required=bool(worked))
    problem = make_problem(row, found, 0, solution_required=bool(worked))
    assert (problem.question, gold(problem)) == (question, answer)
    assert "correct" not in find_columns(["problem", "solution", "correct"], where="rows").used


@pytest.mark.parametrize(
    "columns",
    [
        {"verification_info": '{"ground_truth": "8"}'},
        {"extra_info": {"index": 3, "answer": "8"}},
        {"answer": {"text": ["8"], "answer_start": [4]}},
        {"answerNumber": 8.0, "metadata": "none"},
        {"reward_model": {"style": "rule", "ground_truth": "8"}},
    ],
)
def test_an_answer_in_other_places(columns: dict[str, Any]) -> None:
    row = {"problem": Q, **columns}
    found = find_columns(list(row), where="rows", solution_required=False)
    assert float(gold(make_problem(row, found, 0, solution_required=False)) or "nan") == 8
    for metadata in ("from a book", {"book": 3}, '{"book": 3}', {"text": "chapter one", "value": 3}):
        row = {"problem": Q, "solution": "It depends.", "metadata": metadata}
        assert problem_of(row).answer is None


def test_a_message_that_names_its_user_has_no_role() -> None:
    with pytest.raises(SkippedRowError, match="messages without a role"):
        problem_of({"messages": [{"user": "alice", "text": Q}, {"user": "bob", "text": A}]})
    assert problem_of({"user": "alice", "text": Q}).is_text and problem_of({"Text": Q}).is_text


def test_an_empty_answer_is_not_learned() -> None:
    row = said(f"u: {Q}", "a: ", "u: Again.", f"a: {A}")
    assert targets(template_with(PLAIN), problem_of(row)) == [f"{A}<|im_end|>"]
    with pytest.raises(SkippedRowError):
        problem_of(said(f"u: {Q}", "a: "))


def test_an_answer_that_is_no_single_text_costs_the_answer_and_not_the_row() -> None:
    for answer in (["7", "8"], True, "half \ud83d"):
        problem = problem_of({"problem": Q, "solution": "It depends.", "answer": answer})
        assert (problem.solution, problem.answer) == ("It depends.", None)


def test_a_question_to_be_answered() -> None:
    for row in (said("s: Be brief.", f"u: {Q}"), {"prompt": said(f"u: {Q}")["messages"]}):
        row["answer"] = "8"
        columns = find_columns(list(row), where="rows", solution_required=False)
        problem = make_problem(row, columns, 0, solution_required=False)
        assert (problem.question, gold(problem)) == (Q, "8")
    row = said(f"u: {Q}", f"a: {A}", "u: And 3 more?") | {"answer": "11"}
    columns = find_columns(list(row), where="rows", solution_required=False)
    with pytest.raises(SkippedRowError, match="several turns, not one question"):
        make_problem(row, columns, 0, solution_required=False)


def test_reasoning_and_weights_by_their_other_names() -> None:
    parts = [{"type": "thinking", "thinking": "I add."}, {"type": "text", "text": A}]
    turns = [
        {"role": "user", "content": Q},
        {"role": "assistant", "content": "WRONG", "train": False},
        {"role": "user", "content": "Again.", "weight": None},
        {"role": "assistant", "content": "WRONG too", "loss": False, "tool_calls": None},
        {"role": "user", "content": "Once more."},
        {"role": "assistant", "content": parts, "loss": True},
    ]
    (target,) = targets(template_with(PLAIN), problem_of({"messages": turns}))
    assert target == f"<think>\nI add.\n</think>\n\n{A}<|im_end|>"


@pytest.mark.parametrize(
    ("row", "question", "solution"),
    [
        *(({"problem": text, "solution": A}, text, A) for text in ('[{"x": 1}]', "[{broken}]", '{"value": 3}')),
        ({"instruction": "Solve it.", "input": Q, "output": A}, f"Solve it.\n\n{Q}", A),
        ({"instruction": Q, "input": "", "output": A}, Q, A),
        ({"instruction": "Solve it.", "context": Q, "response": A, "category": "x"}, f"Solve it.\n\n{Q}", A),
        ({"question": "How many?", "context": Q, "answer": A}, f"{Q}\n\nHow many?", A),
        ({"prompt": Q, "thinking": "I add.", "response": A}, Q, f"<think>\nI add.\n</think>\n\n{A}"),
    ],
)
def test_what_belongs_to_the_problem(row: dict[str, Any], question: str, solution: str) -> None:
    problem = problem_of(row)
    assert (problem.question, problem.solution) == (question, solution)


def test_a_system_column_and_a_developer_are_the_system_message() -> None:
    system = (Message("system", "Be brief."), Message("user", Q), Message("assistant", A))
    assert problem_of({"system": "Be brief.", "prompt": Q, "response": A}).messages == system
    turns = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": Q},
        {"role": "assistant", "content": A},
    ]
    assert problem_of({"messages": turns}).messages == system
    assert joined(template_with(PLAIN).render(problem_of({"messages": turns}))).startswith(
        "<|im_start|>system\nBe brief."
    )


def test_a_whole_text_is_learned_from_its_first_word_to_its_end() -> None:
    problem = problem_of({"text": f"{Q}\n{A}"})
    assert problem.is_text
    for template in (get_template("plain"), template_with(PLAIN)):
        tokenizer = tokenizer_with(PLAIN)
        rendered, _ = render(tokenizer, [template.render(problem)])
        assert rendered.tokens.tolist() == [*tokenizer.encode(f"{Q}\n{A}"), tokenizer.eos_token_id]
        assert rendered.mask.tolist() == [0, *[1] * (len(rendered.tokens) - 1)]


def test_a_date_in_the_template_is_always_the_same_one() -> None:
    dated = "{{ strftime_now('%d %B %Y') }} " + PLAIN
    assert joined(template_with(dated).prompt(Q)).startswith(f"{DATE} <|im_start|>user\n{Q}")


def test_several_templates() -> None:
    named = {"default": PLAIN, "tool_use": WITH_TOOLS}
    assert template_with(named).format.source == PLAIN
    assert template_with({"only": PLAIN}).format.source == PLAIN
    with pytest.raises(InputError, match="first, second and none called default"):
        template_with({"first": PLAIN, "second": PLAIN}).prompt(Q)


def test_options_are_as_many_as_letters() -> None:
    many = [str(number) for number in range(26)]
    assert options_of(many)[-1] == ("Z", "25")
    for more in (1, 40, 60_000):  # the labels after Z were signs of a regular expression, then halves of characters
        with pytest.raises(SkippedRowError, match="more options than letters"):
            options_of(["1"] * (26 + more))
    for options in ("x\udfffy", ["x\udfffy"]):
        with pytest.raises(SkippedRowError, match="half a character"):
            with_options("Which?", options)
