"""Worked examples of others: the published eight where lm-eval has them, or a file's."""

import importlib.util
import json
from pathlib import Path

import pytest
import yaml

from mlxmath.data.codec import load_tokenizer
from mlxmath.data.gold import gold
from mlxmath.data.problem import Problem
from mlxmath.data.templates import Template, get_template
from mlxmath.errors import InputError
from mlxmath.evaluation.few_shot import examples
from mlxmath.evaluation.prompts import SHOTS, Prompts
from tests.data.chat_templates import CHATML
from tests.data.material import BUILDERS

MODEL = Path(__file__).parents[2] / "mlxmath" / "demo" / "model"
EIGHT = [{"question": f"What is {i} + 1?", "target": f"{i} + 1 = {i + 1}. The answer is {i + 1}."} for i in range(8)]


@pytest.fixture
def lm_eval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that has the task's file where lm-evaluation-harness has it, in its form."""
    path = tmp_path / "site" / "lm_eval" / "tasks" / "gsm8k" / "gsm8k-cot.yaml"
    path.parent.mkdir(parents=True)
    (path.parents[2] / "__init__.py").write_text("raise AssertionError('it is read, not run')\n")
    write(path, EIGHT)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return path


def write(path: Path, samples: list[dict[str, str]]) -> None:
    task = {"task": "gsm8k_cot", "num_fewshot": 8, "fewshot_config": {"sampler": "first_n", "samples": samples}}
    path.write_text(yaml.safe_dump(task))


def test_the_eight_are_read_where_lm_eval_has_them(lm_eval: Path) -> None:
    found = examples("standard", {"gsm8k": "word"})
    assert found == tuple(Problem("", one["question"], solution=one["target"]) for one in EIGHT)
    assert [gold(one) for one in found] == [str(i + 1) for i in range(8)]


@pytest.mark.parametrize("content", ["[", "task: x\n", "fewshot_config: {samples: [{question: 1, target: x}]}", None])
def test_a_file_without_the_eight_is_named(lm_eval: Path, content: str | None) -> None:
    if content is None:
        write(lm_eval, EIGHT[:7])
    else:
        lm_eval.write_text(content)
    with pytest.raises(InputError, match=r"gsm8k-cot.yaml does not hold the eight examples; name a file of them"):
        examples("standard", {"gsm8k": "word"})


def test_without_lm_eval_it_is_said_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"lm-eval is not installed; install mlxmath\[lm-eval\], or name a file"):
        examples("standard", {"gsm8k": "word"})


def test_they_are_not_shown_before_other_problems(lm_eval: Path) -> None:
    with pytest.raises(InputError, match="of grade-school problems, math asks others"):
        examples("standard", {"gsm8k": "word", "math": "competition"})


def test_a_files_examples_stand_before_the_problem(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    rows = [{"problem": f"{i} + {i}?", "solution": f"It is {2 * i}.\n#### {2 * i}"} for i in (3, 4, 5)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    shots = examples(str(path), {"math": "competition"})
    assert [(one.question, one.solution) for one in shots] == [(row["problem"], row["solution"]) for row in rows]
    tokenizer, tutor = load_tokenizer(MODEL), get_template("tutor")
    for num_shots, shown in ((0, 3), (2, 2)):
        text = tokenizer.decode(Prompts(tokenizer, tutor, num_shots, examples=shots).encode("7 + 7?", "word"))
        assert [row["problem"] in text for row in rows] == [i < shown for i in range(3)]
        assert SHOTS["word"][0][0] not in text and "7 + 7?" in text
    with pytest.raises(InputError, match="--shots: expected at most 3, found 4"):
        Prompts(tokenizer, tutor, 4, examples=shots)
    path.write_text('{"problem": "q", "solution": ""}\n')
    with pytest.raises(InputError, match="holds no problem with a solution"):
        examples(str(path), {})


def test_a_file_without_solutions_is_told_what_is_expected_and_no_option_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "bare.jsonl"
    path.write_text(json.dumps({"question": "2 + 2?", "hint": "add"}) + "\n")
    with pytest.raises(
        InputError, match="expected rows with a problem and its solution.*found question, hint"
    ) as caught:
        examples(str(path), {"gsm8k": "word"})
    assert "-column" not in str(caught.value)


def with_answers(tmp_path: Path, *, chat: bool) -> Template:
    path = tmp_path / "mine.toml"
    definition = 'prompt = "Q: {question}\\n"\ncompletion = "{solution}\\nAnswer: {answer}."\n'
    path.write_text(f"{definition}chat = {str(chat).lower()}\n")
    return get_template("", str(path))


@pytest.mark.parametrize("chat", [False, True])
def test_examples_end_as_the_template_ends_solutions(tmp_path: Path, chat: bool) -> None:
    """With the answer that the file or the solution states, in the tokenizer's chat template too."""
    path, long = tmp_path / "mine.jsonl", "We think about it. " * 20
    rows = [
        {"problem": "How long?", "solution": long, "answer": "12 cm"},
        {"problem": "3 + 3?", "solution": "Three and three. The answer is 6."},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer, template = BUILDERS["byte level"](), with_answers(tmp_path, chat=chat)
    tokenizer.chat_template = CHATML

    def shown(*shots: Problem, num_shots: int = 0) -> str:
        return tokenizer.decode(Prompts(tokenizer, template, num_shots, examples=shots).encode("7 + 7?", "choice"))

    text = shown(*examples(str(path), {}))
    assert f"{long}\nAnswer: 12 cm." in text and "The answer is 6.\nAnswer: 6." in text
    assert "The answer is C.\nAnswer: C." in shown(num_shots=1)
    path.write_text(json.dumps({"problem": "How long?", "solution": long}) + "\n")
    with pytest.raises(InputError, match="--few-shot: an example has no answer, which the template needs; give each"):
        shown(*examples(str(path), {}))
