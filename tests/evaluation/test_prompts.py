"""Prompts: the training's own text, worked examples as training rows, formulas before the problem."""

import math
from pathlib import Path

import pytest

from mlxmath.data.codec import load_tokenizer
from mlxmath.data.render import encode_prompt
from mlxmath.data.templates import get_template, joined
from mlxmath.errors import InputError
from mlxmath.evaluation.prompts import SHOTS, Formula, Prompts, Retriever
from mlxmath.grading import faithfulness, grade

MODEL = Path(__file__).parents[2] / "mlxmath" / "demo" / "model"


def test_zero_shot_is_the_training_prompt_and_shots_are_training_rows() -> None:
    tokenizer = load_tokenizer(MODEL)
    tutor = get_template("tutor")
    assert Prompts(tokenizer, tutor).encode("1 + 1?", "word") == encode_prompt(tokenizer, tutor.prompt("1 + 1?"))
    ids = Prompts(tokenizer, tutor, num_shots=2).encode("1 + 1?", "word")
    rows = tokenizer.decode(ids, skip_special_tokens=False).split(tokenizer.eos_token)
    assert len(rows) == 3
    for row, (question, solution) in zip(rows[:2], SHOTS["word"][:2], strict=True):
        assert row.removeprefix(tokenizer.bos_token or "").strip() == joined(tutor.prompt(question)) + solution
    assert rows[2].endswith(joined(tutor.prompt("1 + 1?")))


def test_the_worked_examples_are_right() -> None:
    for kind, question, solution in ((kind, *pair) for kind, pairs in SHOTS.items() for pair in pairs):
        rules = {"word": "####", "competition": "boxed", "choice": "answer is"}
        assert grade(solution, "0").rule == rules[kind], question
        assert faithfulness(solution, question).num_false == 0, question
    assert [grade(s, "0").extracted for _, s in SHOTS["word"]] == ["16", "55", "20", "4", "20", "16", "75", "9"]
    assert [grade(s, "0").extracted for _, s in SHOTS["choice"]] == ["C", "c", "D", "B", "A", "A"]


def test_bm25_by_hand_and_in_the_prompt() -> None:
    formulas = [Formula("geometry", "circle area", "A"), Formula("geometry", "circle", "C"), Formula("x", "speed", "v")]
    retriever = Retriever(formulas, 2)
    scores = retriever.scores("What is the area of the circle?")
    idf = {"area": math.log(1 + (3 - 1 + 0.5) / 1.5), "circle": math.log(1 + (3 - 2 + 0.5) / 2.5)}
    mean = (3 + 2 + 2) / 3

    def weight(length: int) -> float:
        return 2.5 / (1 + 1.5 * (0.25 + 0.75 * length / mean))

    expected = [(idf["area"] + idf["circle"]) * weight(3), idf["circle"] * weight(2), 0]
    assert scores == pytest.approx(expected)
    assert [f.formula for f in retriever.find("circle areas")] == ["A", "C"]
    assert retriever.find("nothing of the kind") == []
    assert retriever.add("Area?") == "Formulas that may help:\n- circle area: A\n\nArea?"


def test_the_bundled_formulas() -> None:
    retriever = Retriever.load("bundled", 3)
    assert len(retriever.formulas) >= 80
    best = retriever.find("A right triangle has legs of 5 and 12. How long is the hypotenuse?")[0]
    assert best.name == "Pythagorean theorem"


def test_more_examples_than_there_are() -> None:
    with pytest.raises(InputError, match="--shots"):
        Prompts(load_tokenizer(MODEL), get_template("tutor"), num_shots=99)


@pytest.mark.parametrize(
    "bad",
    ["5", '["a"]', '{"name": 1, "formula": "x"}', '{"name": "a"}', "[" * 100_000, '{"name": "a", "for', "\xff",
     "not json", '{"formula": 3}'],
)  # fmt: skip
def test_a_file_that_holds_no_formulas_says_where(tmp_path: Path, bad: str) -> None:
    path, good = tmp_path / "formulas.jsonl", '{"name": "a\u2028b", "formula": "x"}\n'
    path.write_bytes(f"{good}\n{bad}\n".encode("latin-1" if bad == "\xff" else "utf-8", "replace"))
    with pytest.raises(InputError, match=r"formulas\.jsonl:3: expected"):
        Retriever.load(str(path), 3)
    path.write_text("\n")
    with pytest.raises(InputError, match="holds no formula"):
        Retriever.load(str(path), 3)
    path.write_text(good, encoding="utf-8")
    assert [formula.name for formula in Retriever.load(str(path), 3).formulas] == ["a\u2028b"]
