"""Which columns are taken, and what a row becomes."""

import math

import pytest

from mlxmath.data.columns import Columns, find_columns
from mlxmath.data.datasets import DATASETS
from mlxmath.data.filters import number
from mlxmath.data.forms import make_problem, number_text
from mlxmath.data.problem import Message, SkippedRowError
from mlxmath.errors import InputError


@pytest.mark.parametrize(
    ("available", "question", "solution", "answer"),
    [
        (["problem", "solution", "answer", "messages", "uuid"], "problem", "solution", "answer"),
        (["question", "answer"], "question", "answer", None),
        (["prompt", "completion"], "prompt", "completion", None),
        (["instruction", "response", "difficulty"], "instruction", "response", None),
        (["query", "response"], "query", "response", None),
        (["prompt", "response", "ground_truth"], "prompt", "response", "ground_truth"),
        (["source", "problem", "solution", "messages"], "problem", "solution", None),
        (["prompt", "prompt_id", "messages"], "messages", "messages", None),
    ],
)
def test_usual_names(available: list[str], question: str, solution: str, answer: str | None) -> None:
    columns = find_columns(available, where="x")
    assert (columns.question, columns.solution, columns.answer) == (question, solution, answer)


def test_columns_asked_for() -> None:
    columns = find_columns(["Body", "Answer", "problem", "solution"], "Body", "Answer", where="x")
    assert (columns.question, columns.solution) == ("Body", "Answer")
    assert find_columns(["Body", "solution"], "Body", where="x").solution == "solution"
    assert find_columns(["problem", "why"], solution="why", where="x").question == "problem"


def test_absent_column_names_those_there_are_and_the_nearest() -> None:
    with pytest.raises(
        InputError, match=r"--question-column: x has no column 'problm', but problem, solution.*'problem'"
    ):
        find_columns(["problem", "solution"], "problm", where="x")
    with pytest.raises(InputError, match="--solution-column: x has no column 'q'"):
        find_columns(["problem", "solution"], None, "q", where="x")


def test_no_usual_name() -> None:
    with pytest.raises(InputError, match=r"x: no column for the problem among a, b; name it with --question-column"):
        find_columns(["a", "b"], where="x")
    with pytest.raises(
        InputError, match=r"no column for the solution among problem, b; name it with --solution-column"
    ):
        find_columns(["problem", "b"], where="x")


def test_solutions_are_not_needed_for_evaluation() -> None:
    columns = find_columns(["problem", "answer", "level"], where="x", solution_required=False)
    assert columns.question == "problem"
    columns = find_columns(["problem", "expected_answer"], where="x", solution_required=False)
    assert columns == Columns("problem", None, "expected_answer")
    problem = make_problem({"problem": "q", "expected_answer": 4}, columns, 0, solution_required=False)
    assert (problem.solution, problem.answer) == (None, "4")


def test_calculator_marks_are_removed() -> None:
    row = {"question": "q", "answer": "48/2 = <<48/2=24>>24 clips.\n1<2 and a << b\n#### 1,024 "}
    problem = make_problem(row, Columns("question", "answer"), 7)
    assert problem.solution == "48/2 = 24 clips.\n1<2 and a << b\n#### 1,024 "
    assert problem.answer == "1,024"
    assert problem.id == "7"


def test_marks_stay_where_the_row_is_not_of_that_kind() -> None:
    problem = make_problem({"question": "q", "answer": "x <<1>> y"}, Columns("question", "answer"), 0)
    assert (problem.solution, problem.answer) == ("x <<1>> y", None)


def test_the_dataset_s_own_answer_and_values() -> None:
    row = {"problem": "q", "solution": "s #### 1", "answer": 2.5, "uuid": "u", "level": "5", "generations": ["a"]}
    problem = make_problem(row, find_columns(list(row), where="x"), 0)
    assert (problem.answer, problem.id, problem.meta) == ("2.5", "u", {"level": "5"})


def test_an_empty_cell_that_came_as_nan_is_empty() -> None:
    columns = Columns("problem", "solution", "answer")
    problem = make_problem({"problem": "q", "solution": "#### 4", "answer": float("nan")}, columns, 0)
    assert problem.answer == "4"
    with pytest.raises(SkippedRowError, match="empty solution"):
        make_problem({"problem": "q", "solution": float("nan"), "answer": 4.5}, columns, 0)


def test_a_number_beyond_all_floats_is_a_number() -> None:
    large = 10**400
    row = {"problem": "q", "solution": "s", "answer": large, "level": large}
    problem = make_problem(row, Columns("problem", "solution", "answer", difficulty="level"), 0)
    assert problem.answer == str(large) == number_text(large)
    assert number(large) == math.inf and number(-large) == -math.inf and number(3) == 3.0
    with pytest.raises(SkippedRowError, match="empty answer"):
        DATASETS["svamp"].adapt({"Question": "q", "Answer": large})


def test_text_is_kept_as_it_is() -> None:
    problem = make_problem({"problem": " {q} \n", "solution": "\n s "}, Columns("problem", "solution"), 0)
    assert (problem.question, problem.solution) == (" {q} \n", "\n s ")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"problem": None, "solution": "s"}, "empty problem"),
        ({"problem": " \n", "solution": "s"}, "empty problem"),
        ({"problem": "q", "solution": ""}, "empty solution"),
        ({"problem": "q"}, "empty solution"),
        ({"problem": "q", "solution": ["s", "t"]}, "solution is not text"),
        ({"problem": "q", "solution": float("nan")}, "empty solution"),
        ({"problem": "q \ud83d", "solution": "s"}, "problem with half a character"),
        ({"problem": True, "solution": "s"}, "problem is not text"),
    ],
)
def test_rows_left_out(row: dict[str, object], reason: str) -> None:
    with pytest.raises(SkippedRowError, match=reason):
        make_problem(row, Columns("problem", "solution"), 0)


def turns(*roles: str) -> list[dict[str, str]]:
    return [{"role": role, "content": f"{role} {i}"} for i, role in enumerate(roles)]


def test_conversation() -> None:
    columns = Columns("messages", "messages")
    problem = make_problem({"messages": turns("system", "user", "assistant", "user")}, columns, 0)
    assert (problem.question, problem.solution) == ("user 1", "assistant 2")
    assert problem.messages[0] == Message("system", "system 0")
    assert len(problem.messages) == 3
    several = make_problem({"messages": turns("user", "assistant", "user", "assistant")}, columns, 0)
    assert (several.question, several.solution, len(several.messages)) == ("user 0", "assistant 3", 4)


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        (turns("assistant", "user"), "without a question and an answer"),
        (turns("user", "assistant", "system", "user", "assistant"), "conversation with a system message inside"),
        (turns("user"), "without a question and an answer"),
        (turns("assistant"), "without a question and an answer"),
        ([], "without a question and an answer"),
        (None, "empty conversation"),
        ("text", "messages are not a list"),
        (["text"], "messages without a role"),
        ([{"role": "user", "content": None}, {"role": "assistant", "content": "a"}], "empty problem"),
        ([{"role": "user", "content": [{"type": "image"}]}, {"role": "assistant", "content": "a"}], "no text .image"),
        ([{"role": "narrator", "content": "q"}, {"role": "assistant", "content": "a"}], "unknown role 'narrator'"),
        (
            [{"role": "user", "content": "q"}, {"role": "tool", "content": "8"}, {"role": "assistant", "content": "a"}],
            "tool calls and results do not follow one another",
        ),
        (
            [{"role": "user", "content": "q"}, {"role": "assistant", "tool_calls": [{"function": {}}]}],
            "tool calls that are not",
        ),
    ],
)
def test_conversations_left_out(messages: object, reason: str) -> None:
    with pytest.raises(SkippedRowError, match=reason):
        make_problem({"messages": messages}, Columns("messages", "messages"), 0)
