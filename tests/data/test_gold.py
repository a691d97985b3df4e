"""A gold answer is what a dataset states, for every use of it, and never what merely stands last."""

from pathlib import Path
from typing import Any

import pytest

from mlxmath.config.schema import DataConfig, ModelConfig, RunConfig
from mlxmath.data.gold import gold, stated
from mlxmath.data.problem import Problem
from mlxmath.data.templates import get_template, joined
from mlxmath.distillation.questions import load_questions
from mlxmath.errors import InputError
from mlxmath.evaluation.benchmarks import load_benchmark
from mlxmath.training.grpo.prompts import load_prompts
from tests.data.material import write_lines

DEMO_MODEL = Path(__file__).parents[2] / "mlxmath" / "demo" / "model"


def run_config(path: str, **data: Any) -> RunConfig:
    made = RunConfig(
        model=ModelConfig(model="demo", mlx_path=str(DEMO_MODEL)),
        data=DataConfig(dataset=path, max_seq_len=128, decontaminate=(), **data),
    )
    return made.model_copy(update={"grpo": made.grpo.model_copy(update={"max_completion_length": 16})})


@pytest.mark.parametrize(
    ("solution", "expected"),
    [
        ("48 / 2 = 24\n#### 24", "24"),
        ("First \\boxed{1}, at last \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
        ("\\boxed{1} and \\boxed{2}", "1, 2"),
        ("We add.\nThe answer is 18 dollars.", "18 dollars"),
        ("We add.\nA: 18", "18"),
        ("The answer is (C), since 12 divides 24.", "C"),
        ("The answer is 3, since x > 3 is wanted.", "3"),
        ("8", "8"),
        ("x > 3", "x > 3"),
        ("<think>\\boxed{1}, no</think> \\boxed{7}", "7"),
        ("all real numbers x > 3", None),
        ("The answer is all real numbers x > 3.", None),
        ("Answer: all real numbers except 3", None),
        ("The answer to the question how many apples is 18.", "18"),
        ("**Answer:** $18$", "18"),
        ("18 is the answer", "18"),
        ("The answer is a total of 18 apples.", "18 apples"),
        ("The answer is all multiples of 3.", None),
        ("A: all integers from 2 to 5", None),
        ("So at least 18 is the answer", None),
        ("The answer is at least 3.", None),
        ("The answer is 3 or more.", None),
        ("option (C), since 12 divides 24.", None),
        ("Therefore she has 5 of them.", None),
        ("She has 3 eggs left.", None),
        ("#### Step 2: add\nThat makes 4 in all.", None),
        ("<think>The answer is 4", None),
        ("\\boxed{}", None),
        ("", None),
    ],
)
def test_what_a_solution_states(solution: str, expected: str | None) -> None:
    assert gold(Problem("0", "q", solution=solution)) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("all real numbers x > 3", "all real numbers x > 3"),
        (" 5 ", "5"),
        ("We add.\n#### 5", "5"),
        ("It is \\boxed{5}.", "5"),
        ("There were 3 of them. " * 20, None),
        ("There were 3 of them. " * 20 + "The answer is 5.", "5"),
    ],
)
def test_an_answer_column_is_taken_as_it_is_unless_it_is_a_solution(answer: str, expected: str | None) -> None:
    assert gold(Problem("0", "q", answer=answer, solution="#### 9")) == expected


def test_an_empty_answer_leaves_it_to_the_solution() -> None:
    assert gold(Problem("0", "q", answer=" ", solution="The answer is 9.")) == "9"


FORMS: list[tuple[tuple[str, ...], Any]] = [
    (("problem", "ground_truth"), "7"),
    (("prompt", "answer"), "7"),
    (("question", "final_answer"), 7),
    (("question", "answer"), "7"),
    (("problem", "expected_answer"), "7"),
    (("prompt", "solution"), "$7$"),
    (("query", "reference_answer"), "7"),
]


@pytest.mark.parametrize(("columns", "answer"), FORMS)
def test_answers_alone_are_enough_for_every_use(tmp_path: Path, columns: tuple[str, ...], answer: Any) -> None:
    texts = ["What is 3 + 4?", "How many days has a week?"]
    empty = {columns[0]: "And how many weeks has it?", columns[1]: None}
    path = write_lines(tmp_path / "a.jsonl", [*({columns[0]: text, columns[1]: answer} for text in texts), empty])
    expected = [(text, str(answer)) for text in texts]
    config = run_config(path)
    assert [(p.question, p.gold.strip("$")) for p in load_prompts(config, DEMO_MODEL).prompts] == [
        (text, gold.strip("$")) for text, gold in expected
    ]
    questions = load_questions(config.data)
    assert [(q.text, q.gold.strip("$")) for q in questions.items] == [(t, g.strip("$")) for t, g in expected]
    assert questions.left_out.total() == 1
    benchmark = load_benchmark(path)
    assert [(item.question, item.gold.strip("$")) for item in benchmark.items] == [
        (text, gold.strip("$")) for text, gold in expected
    ]
    assert benchmark.num_skipped == 1


def test_what_is_left_out_is_said_with_its_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"problem": "Solve x - 3 > 0.", "solution": "all real numbers x > 3"},
        {"problem": "Which option?", "solution": "option (C), since 12 divides 24."},
        {"problem": "What is 1 + 1?", "solution": "#### 2"},
        {"problem": "What is 1 + 1?", "solution": "It is two.\n#### 2"},
        {"problem": "Count " * 200, "solution": "#### 200"},
        {"problem": "", "solution": "#### 2"},
    ]
    path = write_lines(tmp_path / "a.jsonl", rows)
    (prompt,) = load_prompts(run_config(path), DEMO_MODEL).prompts
    assert (prompt.question, prompt.gold) == ("What is 1 + 1?", "2")
    said = capsys.readouterr().err
    for reason in ("1 problem with", "2 without a gold answer", "1 repeated", "1 too long", "1 empty problem"):
        assert reason in said
    assert [item.gold for item in load_benchmark(path).items] == ["2", "2", "200"]
    assert len(load_prompts(run_config(path, deduplicate="off"), DEMO_MODEL).prompts) == 2
    write_lines(tmp_path / "a.jsonl", rows[:2])
    with pytest.raises(InputError, match=r"no problem is left \(2 without a gold answer; .*--answer-column"):
        load_prompts(run_config(path), DEMO_MODEL)
    with pytest.raises(InputError, match=r"gold answer \(2 without a gold answer\)"):
        load_benchmark(path)


def test_an_answer_column_asked_for_is_taken_word_for_word(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"question": "Solve x - 3 > 0.", "answer": "all real numbers x > 3"}])
    with pytest.raises(InputError, match="1 without a gold answer"):
        load_prompts(run_config(path), DEMO_MODEL)
    (prompt,) = load_prompts(run_config(path, answer_column="answer"), DEMO_MODEL).prompts
    assert prompt.gold == "all real numbers x > 3"


def test_a_template_s_answer_is_the_gold_answer(tmp_path: Path) -> None:
    file = tmp_path / "t.toml"
    file.write_text("prompt = '{question} '\ncompletion = '{answer}'\n")
    text = get_template("t", str(file)).render(Problem("0", "1 + 1?", solution="We add.\nThe answer is 2."))
    assert joined(text) == "1 + 1? 2"


@pytest.mark.parametrize("solution", ["So 5 + 3 = 8. #### 8", "5 + 3 = 8 ####8", "5 + 3 = 8\n#### 8"])
def test_a_mark_within_a_line_states_the_answer_too(solution: str) -> None:
    assert stated(solution) == "8"
