"""Rows of every known dataset, with its own columns, become the right problems."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from mlxmath.config.schema import DataConfig, SourceConfig
from mlxmath.data import sources
from mlxmath.data.datasets import DATASETS, known
from mlxmath.data.dedup import normalise, open_benchmark
from mlxmath.data.problem import Problem
from mlxmath.data.rows import AbsentError, Rows
from mlxmath.data.sources import load_problems
from mlxmath.distillation.questions import load_questions
from mlxmath.errors import InputError
from mlxmath.evaluation.benchmarks import load_benchmark
from mlxmath.grading import grade

OPEN_R1 = {
    "problem": "What is $2+2$?",
    "solution": "It is $\\boxed{4}$.",
    "answer": "4",
    "problem_type": "Algebra",
    "question_type": "math-word-problem",
    "source": "olympiads",
    "uuid": "u1",
    "is_reasoning_complete": [True, True, True],
    "generations": ["<think>long way</think> 4", "<think>hm</think> 4", "<think>no</think> 5"],
    "correctness_math_verify": [True, True, False],
    "correctness_llama": None,
    "correctness_count": 2,
    "messages": [{"role": "user", "content": "What is $2+2$?"}, {"role": "assistant", "content": "4"}],
}


def write(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read(path: Path, *rows: dict[str, Any], **changes: Any) -> list[Problem]:
    return list(load_problems(DataConfig(dataset=write(path, *rows), **changes)))


def test_open_r1_takes_its_own_solution(tmp_path: Path) -> None:
    (problem,) = read(tmp_path / "a.jsonl", OPEN_R1)
    assert (problem.id, problem.question, problem.solution, problem.answer) == (
        "u1",
        "What is $2+2$?",
        "It is $\\boxed{4}$.",
        "4",
    )
    assert (problem.subject, problem.source, problem.difficulty) == ("Algebra", "olympiads", None)
    assert problem.meta["correct"] is True


def test_open_r1_takes_verified_generations(tmp_path: Path) -> None:
    path, first, second = tmp_path / "a.jsonl", *OPEN_R1["generations"][:2]
    assert [p.solution for p in read(path, OPEN_R1, solutions="first")] == [first]
    assert [p.solution for p in read(path, OPEN_R1, solutions="shortest")] == [second]
    assert [p.solution for p in read(path, OPEN_R1, solutions="all")] == [first, second]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"correctness_math_verify": None, "correctness_llama": [False, True, None]}, [1]),
        ({"correctness_math_verify": [None, None, None], "correctness_llama": [True]}, [0]),
        ({"is_reasoning_complete": [False, True]}, [1]),
        ({"is_reasoning_complete": None}, [0, 1]),
        ({"generations": None}, []),
        ({"generations": [None, "x", "y"]}, [1]),
        ({"correctness_math_verify": None}, []),
        ({"correctness_math_verify": [True, True, False, True]}, [0, 1]),
    ],
)
def test_open_r1_with_null_fields(tmp_path: Path, changes: dict[str, Any], expected: list[int]) -> None:
    row = OPEN_R1 | changes
    loaded = load_problems(DataConfig(dataset=write(tmp_path / "a.jsonl", row), solutions="all"))
    assert [p.solution for p in loaded] == [row["generations"][i] for i in expected]
    assert dict(loaded.skipped) == ({} if expected else {"no verified generation": 1})
    (own,) = read(tmp_path / "a.jsonl", row)
    if "generations" not in changes:
        assert own.meta["correct"] is bool(expected)


def test_generations_need_no_own_solution(tmp_path: Path) -> None:
    assert len(read(tmp_path / "a.jsonl", OPEN_R1 | {"solution": None}, solutions="first")) == 1
    with pytest.raises(InputError, match=r"--solutions first: b\.jsonl has no verified generations"):
        read(tmp_path / "b.jsonl", {"problem": "q", "solution": "s"}, solutions="first")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            {
                "instruction": "q",
                "response": "<think>t</think> s",
                "input_quality": "Excellent",
                "difficulty": "very hard",
                "task_category": "Math",
                "uuid": "m1",
                "conversations": [{"from": "human", "value": "q"}],
            },
            Problem(
                "m1",
                "q",
                None,
                "<think>t</think> s",
                {"input_quality": "Excellent", "difficulty": "very hard", "task_category": "Math"},
                difficulty="very hard",
                subject="Math",
            ),
        ),
        (
            {"prompt": "q", "response": "s", "ground_truth": "7", "correct": True, "problem_id": 12},
            Problem("12", "q", "7", "s", {"correct": True}),
        ),
        (
            {
                "source": "cn_k12",
                "problem": "q",
                "solution": "so \\boxed{\\frac{1}{2}}",
                "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "other"}],
            },
            Problem("0", "q", "\\frac{1}{2}", "so \\boxed{\\frac{1}{2}}", {"source": "cn_k12"}, source="cn_k12"),
        ),
        (
            {"question": "q", "answer": "48/2 = <<48/2=24>>24\n#### 1,024"},
            Problem("0", "q", "1,024", "48/2 = 24\n#### 1,024", {}),
        ),
        (
            {
                "input": "q",
                "code": 'def solution():\n    """q"""\n    eggs = 16\n    result = eggs - 3.5\n    return result\n',
                "target": 12.5,
            },
            Problem("0", "q", "12.5", "eggs = 16\nresult = eggs - 3.5\n#### 12.5", {}),
        ),
        (
            {"input": "q", "code": "import math\n\ndef solution():\n    return result\n\n", "target": -9.3e12},
            Problem("0", "q", "-9300000000000", "#### -9300000000000", {}),
        ),
        (
            {"problem": "q", "level": "Level 3", "type": "Geometry", "solution": "\\boxed{2}, no: \\boxed{x^{2}}"},
            Problem(
                "0",
                "q",
                "x^{2}",
                "\\boxed{2}, no: \\boxed{x^{2}}",
                {"level": "Level 3", "type": "Geometry"},
                difficulty="Level 3",
                subject="Geometry",
            ),
        ),
        (
            {
                "problem": "q",
                "solution": "s",
                "answer": "5",
                "subject": "Algebra",
                "level": 4,
                "unique_id": "test/1.json",
            },
            Problem(
                "test/1.json", "q", "5", "s", {"subject": "Algebra", "level": 4}, difficulty="4", subject="Algebra"
            ),
        ),
        (
            {
                "Problem": "how many ways ?",
                "Rationale": '"5 * 5 = 25 . answer : b ."',
                "options": "a ) 5 , b ) 25",
                "correct": "b",
                "annotated_formula": "multiply(5, 5)",
                "linear_formula": "multiply(n0,n0)|",
                "category": "general",
            },
            Problem(
                "0",
                "how many ways ?\nOptions: a ) 5 , b ) 25",
                "(B) 25",
                "5 * 5 = 25 . answer : b .",
                {},
                subject="general",
            ),
        ),
        (
            {
                "Body": "Philip has 290 bananas",
                "Question": "How big is each group?",
                "Equation": "( 290.0 / 2.0 )",
                "Answer": 145.0,
                "Type": "Common-Division",
                "ID": "chal-777",
            },
            Problem(
                "chal-777",
                "Philip has 290 bananas. How big is each group?",
                "145",
                "290 / 2 = 145\n#### 145",
                {},
                subject="Common-Division",
            ),
        ),
        (
            {
                "Body": None,
                "Question": "2 of ( 3 + 4 )?",
                "Equation": "( ( 3.5 + 4.0 ) * 2.0 )",
                "Answer": "15",
                "Type": None,
                "ID": "x",
            },
            Problem("x", "2 of ( 3 + 4 )?", "15", "( ( 3.5 + 4 ) * 2 ) = 15\n#### 15", {}),
        ),
        (
            {"id": 60, "problem": "q", "solution": "s", "answer": "204", "url": "https://x", "year": "2024"},
            Problem("60", "q", "204", "s", {"url": "https://x", "year": "2024"}),
        ),
        (
            {"problem": "q", "solution": "\\boxed{1.6} cm", "type": "Astronomy", "idx": 0},
            Problem("0", "q", "1.6", "\\boxed{1.6} cm", {"type": "Astronomy", "idx": 0}, subject="Astronomy"),
        ),
    ],
    ids=[
        "magpie",
        "numinamath-qwq",
        "numinamath-cot",
        "gsm8k",
        "gsm-hard",
        "gsm-hard empty",
        "math",
        "math-500",
        "mathqa",
        "svamp",
        "svamp null",
        "aime24",
        "minerva",
    ],
)
def test_rows(tmp_path: Path, row: dict[str, Any], expected: Problem) -> None:
    (problem,) = read(tmp_path / "a.jsonl", row)
    core = ("id", "question", "answer", "solution", "difficulty", "subject", "source")
    assert {name: getattr(problem, name) for name in core} == {name: getattr(expected, name) for name in core}
    assert expected.meta.items() <= problem.meta.items()


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"input": "q", "code": "def solution(): ...", "target": None}, "empty answer"),
        ({"input": None, "code": None, "target": 3.0}, "empty problem"),
        ({"Body": "b", "Question": "", "Equation": "", "Answer": 1.0}, "empty problem"),
        ({"Body": "b", "Question": "q", "Equation": "", "Answer": None}, "empty answer"),
        ({"Problem": "q", "Rationale": None, "options": "a", "correct": "a"}, "empty solution"),
        ({"Problem": None, "Rationale": "r", "options": None, "correct": "a"}, "empty problem"),
        ({"instruction": "q", "response": None, "input_quality": None, "difficulty": None}, "empty solution"),
    ],
)
def test_rows_that_are_no_problems_are_counted(tmp_path: Path, row: dict[str, Any], reason: str) -> None:
    loaded = load_problems(DataConfig(dataset=write(tmp_path / "a.jsonl", row)))
    assert (list(loaded), dict(loaded.skipped)) == ([], {reason: 1})


def test_columns_asked_for_win(tmp_path: Path) -> None:
    (problem,) = read(
        tmp_path / "a.jsonl", OPEN_R1, question_column="uuid", solution_column="source", answer_column="problem"
    )
    assert (problem.question, problem.solution, problem.answer) == ("u1", "olympiads", "What is $2+2$?")
    with pytest.raises(InputError, match="--answer-column: a.jsonl has no column 'answr', .*did you mean 'answer'"):
        read(tmp_path / "a.jsonl", OPEN_R1, answer_column="answr")


class Hub:
    """Stands in for the hub: what each dataset's rows are, and what was asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, rows: dict[str, list[dict[str, Any]]]) -> None:
        self.rows, self.asked = rows, []
        monkeypatch.setattr(sources, "open_repository", self.open)

    def open(self, source: SourceConfig, **options: Any) -> Rows:
        self.asked.append((source.dataset, source.config, source.split, source.revision, options.get("shuffle_seed")))
        if source.dataset not in self.rows:
            raise AbsentError(f"--dataset: no {source.dataset}")
        rows = self.rows[source.dataset]
        streamed = options.get("shuffle_seed") is not None
        return Rows(
            source.dataset, tuple(rows[0]), lambda _: iter(rows), split=source.split or "train", revision="main@1",
            streamed=streamed,
        )  # fmt: skip


def test_known_names(monkeypatch: pytest.MonkeyPatch) -> None:
    assert known("GSM8K") is known("openai/gsm8k") is DATASETS["gsm8k"]
    math = {"problem": "q", "level": "Level 1", "type": "Algebra", "solution": "s"}
    hub = Hub(
        monkeypatch,
        {
            "openai/gsm8k": [{"question": "q", "answer": "#### 1"}],
            "EleutherAI/hendrycks_math": [math],
            "allenai/math_qa": [{"Problem": "q", "Rationale": "r", "options": "a", "correct": "a"}],
            "PrimeIntellect/NuminaMath-QwQ-CoT-5M": [
                {"prompt": "q", "response": "s", "ground_truth": "1", "correct": True, "problem_id": 1}
            ],
        },
    )
    assert len(list(load_problems(DataConfig(dataset="gsm8k")))) == 1
    assert len(list(load_problems(DataConfig(dataset="math")))) == 7, "every subject"
    assert len(list(load_problems(DataConfig(dataset="math", dataset_config="algebra")))) == 1
    assert len(list(load_problems(DataConfig(dataset="mathqa")))) == 1
    assert load_problems(SourceConfig(dataset="numinamath-qwq"), mixture_seed=7).rows.streamed
    assert hub.asked[0] == ("openai/gsm8k", "main", None, None, None)
    assert {config for name, config, *_ in hub.asked if "math" in name} >= {"algebra", "geometry", "precalculus"}
    assert hub.asked[-2][3] == "refs/convert/parquet"
    assert hub.asked[-1][4] == 7


def test_a_benchmark_without_solutions_is_not_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    Hub(monkeypatch, {"math-ai/minervamath": [{"question": "q", "answer": "1"}]})
    with pytest.raises(InputError, match="has no solutions to train on"):
        load_problems(DataConfig(dataset="minerva"))
    (problem,) = load_problems(DataConfig(dataset="minerva"), solutions_required=False)
    assert (problem.question, problem.answer, problem.solution) == ("q", "1", None)


def test_fallback_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    hub = Hub(
        monkeypatch, {"AI-MO/NuminaMath-CoT": [{"source": "gsm8k", "problem": "q", "solution": "s", "messages": []}]}
    )
    source = SourceConfig(
        dataset="numinamath-qwq",
        filters=("correct = true", "length < 9"),
        balance="source",
        count=5,
        fallback="numinamath-cot",
        question_column="prompt",
    )
    loaded = load_problems(source)
    assert (loaded.instead_of, loaded.rows.name) == ("numinamath-qwq", "AI-MO/NuminaMath-CoT")
    assert (loaded.source.filters, loaded.source.balance, loaded.source.count) == (("length < 9",), "source", 5)
    said = capsys.readouterr().err
    assert "numinamath-qwq cannot be had, numinamath-cot is used instead (--dataset: no PrimeIntellect/" in said
    assert "AI-MO/NuminaMath-CoT has no such field: 'correct = true' does not apply to it" in said
    assert len(hub.asked) == 2
    with pytest.raises(AbsentError):
        load_problems(source.model_copy(update={"fallback": None}))


def test_no_fallback_for_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("")
    with pytest.raises(InputError, match="holds no rows"):
        load_problems(SourceConfig(dataset=str(tmp_path / "a.jsonl"), fallback="demo"))
    assert load_problems(SourceConfig(dataset=str(tmp_path / "b.jsonl"), fallback="demo")).rows.name == "demo"


SHARED = Path(__file__).parents[3] / "shared" / "data"


@pytest.mark.parametrize("name", ["math500", "math-500", "MATH-500", "math_500", "HuggingFaceH4/MATH-500"])
def test_a_dataset_has_one_name_however_it_is_spelled(name: str) -> None:
    assert known(name) is DATASETS["math500"]
    assert open_benchmark(name).name == "math500"


def test_what_lies_here_comes_before_another_spelling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gsm_hard").mkdir()
    write(tmp_path / "gsm_hard" / "train.jsonl", {"problem": "mine", "solution": "s"})
    assert [problem.question for problem in load_problems(DataConfig(dataset="gsm_hard"))] == ["mine"]


CHOICES = {
    "question": "Find the order of Z_4 x Z_3.", "subject": "abstract_algebra", "choices": ["0", "1", "2", "12"],
    "answer": 1,
}  # fmt: skip
AIME = {
    "id": 3, "problem": "Find $n$.", "solution": "It is $\\boxed{73}$.", "answer": "073",
    "url": "https://artofproblemsolving.com/wiki/index.php/2023_AIME_I_Problems/Problem_4",
}  # fmt: skip
AMC = {
    "id": 9, "problem": "Find $m+n$.", "answer": 142.0,
    "url": "https://artofproblemsolving.com/wiki/index.php/2022_AMC_12A_Problems/Problem_1",
}  # fmt: skip
OLYMPIAD = {
    "id": 2231, "subfield": "Algebra", "context": "Let $a>0$.", "question": "Find all $x$ with $x^2=a^2$.",
    "solution": ["First way.", "Second way."], "final_answer": ["$a$,$-a$"], "is_multiple_answer": True, "unit": None,
    "answer_type": "Expression", "error": None,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "row", "question", "gold", "subject"),
    [
        ("mmlu-math", CHOICES, "Find the order of Z_4 x Z_3.\nA) 0\nB) 1\nC) 2\nD) 12", "(B) 1", "abstract_algebra"),
        ("mmlu-math", CHOICES | {"answer": "D"}, "Find the order of Z_4 x Z_3.\nA) 0\nB) 1\nC) 2\nD) 12", "(D) 12",
         "abstract_algebra"),
        ("mathqa",
         {"Problem": "how far ?", "Rationale": "r", "options": "a ) 3.5 , b ) rs . 1,200 , c ) 12 , d ) none of these",
          "correct": "b", "category": "gain"},
         "how far ?\nOptions: a ) 3.5 , b ) rs . 1,200 , c ) 12 , d ) none of these", "(B) rs . 1,200", "gain"),
        ("aime", AIME, "Find $n$.", "073", "2023"),
        ("aime23", AIME, "Find $n$.", "073", "2023"),
        ("aime25", {"id": "0", "problem": "Find $n$.", "answer": "70"}, "Find $n$.", "70", None),
        ("amc", AMC, "Find $m+n$.", "142", "2022"),
        ("amc22", AMC, "Find $m+n$.", "142", "2022"),
        ("olympiadbench", OLYMPIAD, "Let $a>0$.\n\nFind all $x$ with $x^2=a^2$.", "$a$,$-a$", "Algebra"),
    ],
)  # fmt: skip
def test_new_benchmarks_have_their_questions_and_answers(
    tmp_path: Path, name: str, row: dict[str, Any], question: str, gold: str, subject: str | None
) -> None:
    (item,) = load_benchmark(f"{name}={write(tmp_path / 'rows.jsonl', row)}").items
    assert (item.question, item.gold, item.subject) == (question, gold, subject)


@pytest.mark.parametrize(
    ("name", "row", "reason"),
    [
        ("aime22", AIME, "of another year"),
        ("amc23", AMC, "of another year"),
        ("amc22", AMC | {"url": None}, "of another year"),
        ("mmlu-math", CHOICES | {"answer": 4}, "answer that is no place among the choices"),
        ("mmlu-math", CHOICES | {"question": None}, "empty problem"),
        ("olympiadbench", OLYMPIAD | {"question": "As in <img_3362>"}, "problem with a picture"),
        ("olympiadbench", OLYMPIAD | {"error": "1e-1"}, "answer that is right within a tolerance"),
        ("olympiadbench", OLYMPIAD | {"final_answer": None}, "empty answer"),
    ],
)
def test_rows_that_new_benchmarks_leave_out(tmp_path: Path, name: str, row: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=rf"no row has a problem and a gold answer \(1 {reason}\)"):
        load_benchmark(f"{name}={write(tmp_path / 'rows.jsonl', row)}")


ANSWERS_IN_CELLS = [
    ("12", "12"), ("$\\frac{1}{2}$", "$\\frac{1}{2}$"), ("['12']", "12"), ("['$x$', \"$y'$\"]", "$x$, $y'$"),
    ('["\\\\sqrt{2}", "\\u03c0"]', "\\sqrt{2}, π"), ("['$\\\\sqrt{2}$']", "$\\sqrt{2}$"),
    ("['1' '2']", None), ("[1, 2]", None), ("[0, \\infty)", None), ("['a', ['b']]", None), ("[" * 10_000, None),
    ("['\\x1']", None), ("['" + "a" * 50_000, None), ("[]", None), ("", None),
]  # fmt: skip


@pytest.mark.parametrize(("cell", "gold"), ANSWERS_IN_CELLS)
def test_lists_in_cells_of_text(tmp_path: Path, cell: str, gold: str | None) -> None:
    """As pandas writes the rows of OlympiadBench into CSV; an answer is never cut into letters."""
    path = tmp_path / "rows.csv"
    names = ("question", "final_answer", "solution", "subfield", "is_multiple_answer", "answer_type", "error")
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(
            [names, ("Find $n$.", cell, "['So $n$.', 'Or so.']", "Algebra", "False", "Numerical", "")]
        )
    if gold is None:
        with pytest.raises(InputError, match=r"\(1 (answer that begins as a list of texts and is none|empty answer)\)"):
            load_benchmark(f"olympiadbench={path}")
        return
    (item,) = load_benchmark(f"olympiadbench={path}").items
    assert (item.gold, item.solution) == (gold, "So $n$.")


@pytest.mark.parametrize(
    ("gold", "right", "wrong"),
    [
        ("(B) 1", ["B", "b", "(B)", "B) 1", "b ) 1", "\\boxed{B}", "1"], ["A", "0", "C) 2", "D) 12", "A) 1"]),
        ("(D) none of these", ["D", "d ) none of these", "(D) None of these"], ["C", "none"]),
        ("(B) True, False", ["B", "B) True, False"], ["A", "True, True"]),
    ],
)
def test_a_choice_is_right_by_its_letter_or_its_text(gold: str, right: list[str], wrong: list[str]) -> None:
    said = {answer: grade(f"So it is clear.\nThe answer is: {answer}", gold).correct for answer in (*right, *wrong)}
    assert said == dict.fromkeys(right, True) | dict.fromkeys(wrong, False)


def test_what_lies_in_one_repository_goes_by_its_first_name() -> None:
    assert known("AI-MO/aimo-validation-aime") is DATASETS["aime"] and known("aimo-validation-amc") is DATASETS["amc"]
    assert DATASETS["mmlu-math"].configs == (
        "abstract_algebra", "college_mathematics", "elementary_mathematics", "high_school_mathematics",
        "high_school_statistics",
    )  # fmt: skip


def test_aliases_and_names_are_of_one_dataset_each() -> None:
    names = [name.lower().replace("-", "") for d in DATASETS.values() for name in (d.name, *d.aliases)]
    assert len(set(names)) == len(names) and known("gsm_hard") is DATASETS["gsm-hard"]
    assert known("minerva_math") is DATASETS["minerva"] and known("nothing") is None


SVAMP = {"Body": "Philip has 290 bananas", "Question": "How big?", "Equation": "( 290.0 / 2.0 )", "Answer": 145.0}


@pytest.mark.parametrize(
    ("name", "row", "question", "gold"),
    [
        ("svamp", SVAMP, "Philip has 290 bananas. How big?", "145"),
        ("gsm-hard", {"input": "q?", "code": "def solution():\n    return result", "target": -2.5}, "q?", "-2.5"),
        (
            "mathqa",
            {"Problem": "q?", "Rationale": "r", "options": "a ) 1", "correct": "a"},
            "q?\nOptions: a ) 1",
            "(A) 1",
        ),
        ("gsm8k", {"question": "q?", "answer": "1 + 1 = <<1+1=2>>2\n#### 2"}, "q?", "2"),
        ("minerva", {"question": "q?", "answer": "1.6"}, "q?", "1.6"),
    ],
)
def test_every_use_gets_the_same_text_and_gold(
    tmp_path: Path, name: str, row: dict[str, Any], question: str, gold: str
) -> None:
    path = write(tmp_path / "rows.jsonl", row)
    (item,) = load_benchmark(f"{name}={path}").items
    (asked,) = load_questions(DataConfig(dataset=path, decontaminate=())).items
    (problem,) = load_problems(DataConfig(dataset=path), solutions_required=False)
    assert {item.question, asked.text, problem.question} == {question}
    assert {item.gold, asked.gold} == {gold}
    assert item.id == f"{name}/0"
    clean = tmp_path / "bench.jsonl"
    write(clean, {"problem": item.question, "solution": "s"})
    benchmark = open_benchmark(str(clean))
    assert benchmark.texts.tolist() == normalise([problem.question]).texts.tolist()


@pytest.mark.parametrize(
    ("name", "file"), [("svamp", "svamp/test"), ("math500", "math500/test"), ("gsm-hard", "gsm_hard/train")]
)
def test_published_files_have_one_text(name: str, file: str) -> None:
    path = SHARED / f"{file}.jsonl"
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    items = load_benchmark(f"{name}={path}").items
    problems = list(load_problems(DataConfig(dataset=str(path)), solutions_required=False))
    assert [item.question for item in items] == [problem.question for problem in problems]


def test_benchmarks_come_from_the_hub_by_the_same_table(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(
        monkeypatch,
        {
            "ChilleD/SVAMP": [SVAMP],
            "reasoning-machines/gsm-hard": [{"input": "q", "code": "c", "target": 3.0}],
            "EleutherAI/hendrycks_math": [
                {"problem": "q", "level": "Level 5", "type": "Algebra", "solution": "\\boxed{1}"}
            ],
            "HuggingFaceH4/aime_2024": [{"id": 60, "problem": "q", "solution": "s", "answer": "204"}],
        },
    )
    assert load_benchmark("svamp").items[0].gold == "145"
    assert load_benchmark("gsm-hard").items[0].gold == "3"
    math = load_benchmark("hendrycks_math")
    assert (math.name, len(math.items), math.items[0].level, math.items[0].subject) == ("math", 7, "5", "Algebra")
    assert (math.max_tokens, math.kind) == (2048, "competition")
    assert load_benchmark("aime_2024").items[0].id == "aime24/0"
    assert [open_benchmark(name).name for name in ("svamp", "gsm-hard")] == ["svamp", "gsm-hard"]
    asked = {(name, split) for name, _, split, *_ in hub.asked}
    assert asked == {
        ("ChilleD/SVAMP", "test"), ("reasoning-machines/gsm-hard", "train"), ("EleutherAI/hendrycks_math", "test"),
        ("HuggingFaceH4/aime_2024", "train"),
    }  # fmt: skip


def test_rows_with_a_benchmarks_columns_and_solutions_are_trained_on(tmp_path: Path) -> None:
    row = {"question": "2 + 2?", "subject": "sums", "choices": ["3", "4"], "answer": 1, "solution": "2 + 2 = 4, so B"}
    path = write(tmp_path / "rows.jsonl", row)
    (problem,) = load_problems(DataConfig(dataset=path))
    assert problem.solution == "2 + 2 = 4, so B"
    del row["solution"]
    with pytest.raises(InputError, match="has no solutions to train on"):
        load_problems(DataConfig(dataset=write(tmp_path / "bare.jsonl", row)))
