"""Which problems a mixture takes."""

import dataclasses
import json
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlxmath.config.schema import DataConfig, SourceConfig
from mlxmath.data.dedup import NearDuplicates, fingerprint_benchmark, normalise, open_benchmark, words
from mlxmath.data.filters import check_fields, parse_filter
from mlxmath.data.mixture import Mixture
from mlxmath.data.problem import Problem
from mlxmath.errors import InputError
from tests.data.material import write_lines

REPOSITORY = Path(__file__).parents[2]
SHARED = REPOSITORY.parent / "shared" / "data"
needs_gsm8k = pytest.mark.skipif(not (SHARED / "gsm8k").exists(), reason=f"{SHARED}/gsm8k is absent")
WORDS = [
    "river", "apple", "stone", "cloud", "train", "garden", "window", "paper", "bridge", "candle", "forest", "mirror",
    "basket", "ladder", "pencil",
]  # fmt: skip


def question(i: int) -> str:
    rng = random.Random(i)
    return f"Problem {i}: " + " ".join(rng.choice(WORDS) for _ in range(20))


def rows(start: int, count: int, **columns: Any) -> list[dict[str, Any]]:
    return [{"problem": question(i), "solution": f"s{i}", **columns} for i in range(start, start + count)]


def chosen(config: DataConfig) -> Mixture:
    mixture = Mixture(config)
    mixture.choose()
    return mixture


def solutions(mixture: Mixture) -> list[str]:
    return [problem.solution or "" for problem in mixture]


def test_a_single_source_keeps_its_order(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", rows(0, 50))
    mixture = chosen(DataConfig(dataset=path))
    assert solutions(mixture) == [f"s{i}" for i in range(50)]
    assert solutions(mixture) == solutions(mixture), "each iteration starts anew"
    assert solutions(chosen(DataConfig(dataset=path, num_examples=3))) == ["s0", "s1", "s2"]
    assert solutions(chosen(DataConfig(dataset=path, num_examples=3, filters="solution matches [5-9]$"))) == [
        "s5", "s6", "s7",
    ]  # fmt: skip


def sources(tmp_path: Path, *settings: dict[str, Any], size: int = 100) -> tuple[SourceConfig, ...]:
    return tuple(
        SourceConfig(dataset=write_lines(tmp_path / f"{n}.jsonl", rows(1000 * n, size)), **values)
        for n, values in enumerate(settings)
    )


def counts(mixture: Mixture) -> list[int]:
    assert len(mixture) == len(solutions(mixture)) == sum(report.taken for report in mixture.reports)
    return [report.taken for report in mixture.reports]


def test_counts_are_drawn_at_random_with_a_seed(tmp_path: Path) -> None:
    of = sources(tmp_path, {"count": 30}, {"count": 5}, {})
    first = chosen(DataConfig(sources=of))
    assert counts(first) == [30, 5, 100]
    taken = solutions(first)
    assert taken == sorted(taken, key=lambda s: int(s[1:])), "in the sources' order"
    assert taken[:30] != [f"s{i}" for i in range(30)], "not the first ones"
    assert solutions(chosen(DataConfig(sources=of))) == taken
    assert solutions(chosen(DataConfig(sources=of, mixture_seed=1))) != taken


def test_the_choice_itself(tmp_path: Path) -> None:
    """Written down, so that another machine, Python or numpy that chose differently would fail."""
    of = sources(tmp_path, {"count": 4}, {"count": 3})
    assert solutions(chosen(DataConfig(sources=of))) == CHOICE


def test_the_choice_does_not_depend_on_the_hash_seed(tmp_path: Path) -> None:
    of = sources(tmp_path, {"count": 4}, {"count": 3})
    program = (
        "import sys, json; from mlxmath.config.schema import *; from mlxmath.data.mixture import Mixture\n"
        "m = Mixture(DataConfig(sources=json.loads(sys.argv[1]), deduplicate='near')); m.choose()\n"
        "print([p.solution for p in m])"
    )
    arguments = json.dumps([source.model_dump() for source in of])
    for seed in ("1", "77"):
        result = subprocess.run(
            [sys.executable, "-c", program, arguments], env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(REPOSITORY)},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert result.stdout.strip() == str(CHOICE)


CHOICE = ["s7", "s58", "s85", "s92", "s1041", "s1057", "s1094"]


def test_weights_share_out(tmp_path: Path) -> None:
    of = sources(tmp_path, {"weight": 3.0}, {"weight": 1.0})
    assert counts(chosen(DataConfig(sources=of))) == [100, 33], "as much as lets no source run out"
    assert counts(chosen(DataConfig(sources=of, num_examples=40))) == [30, 10]
    of = sources(tmp_path, {"weight": 1.0}, {"weight": 1.0}, {"count": 10})
    assert counts(chosen(DataConfig(sources=of, num_examples=50))) == [20, 20, 10]
    of = sources(tmp_path, {"count": 90}, {"count": 30}, {})
    assert counts(chosen(DataConfig(sources=of, num_examples=22))) == [9, 3, 10]
    with pytest.raises(ValueError, match="a count or a weight, not both"):
        SourceConfig(dataset="x", count=1, weight=1.0)


def test_a_count_that_cannot_be_had_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mixture = chosen(DataConfig(sources=sources(tmp_path, {"count": 500}, {})))
    assert counts(mixture) == [100, 100]
    assert "0.jsonl: 500 rows were asked for, 100 could be had" in capsys.readouterr().err


def levels(tmp_path: Path) -> str:
    names = ["easy"] * 40 + ["Medium"] * 20 + ["hard"] * 30 + ["very hard"] * 5 + [None] * 5
    return write_lines(tmp_path / "a.jsonl", [r | {"difficulty": d} for r, d in zip(rows(0, 100), names, strict=True)])


def test_balance(tmp_path: Path) -> None:
    path = levels(tmp_path)
    report = chosen(DataConfig(dataset=path, balance="difficulty")).reports[0]
    assert report.buckets == {"easy": (40, 5), "hard": (30, 5), "medium": (20, 5), "very hard": (5, 5)}
    assert report.filtered == {"difficulty is given": 5}
    of = (SourceConfig(dataset=path, balance="difficulty", count=60),)
    report = chosen(DataConfig(sources=of)).reports[0]
    assert report.buckets == {"easy": (40, 19), "hard": (30, 18), "medium": (20, 18), "very hard": (5, 5)}
    assert report.taken == 60, "what the short one lacks comes from the others"
    assert chosen(DataConfig(dataset=path, balance="difficulty", num_examples=8)).reports[0].taken == 8
    with pytest.raises(InputError, match="--balance: a.jsonl has no field 'dificulty', .*did you mean 'difficulty'"):
        Mixture(DataConfig(dataset=path, balance="dificulty"))


def test_a_stream_is_balanced_too(tmp_path: Path) -> None:
    """Over ten times as many rows as are asked for; what follows is not read."""
    names = ["easy"] * 30 + ["hard"] * 20 + ["medium"] * 50
    path = write_lines(tmp_path / "a.jsonl", [r | {"difficulty": d} for r, d in zip(rows(0, 100), names, strict=True)])
    mixture = Mixture(DataConfig(sources=(SourceConfig(dataset=path, balance="difficulty", count=4),)))
    (loaded,) = mixture.sources
    loaded.rows = dataclasses.replace(loaded.rows, streamed=True)
    mixture.choose()
    assert mixture.reports[0].buckets == {"easy": (30, 2), "hard": (10, 2)}
    assert [problem.difficulty for problem in mixture] == ["easy", "easy", "hard", "hard"]


def test_filters_are_counted(tmp_path: Path) -> None:
    mixture = chosen(DataConfig(dataset=levels(tmp_path), filters="difficulty in easy, hard; solution matches 1$"))
    assert mixture.reports[0].filtered == {"difficulty in easy, hard": 30, "solution matches 1$": 63}
    assert mixture.reports[0].left == 7
    with pytest.raises(InputError, match="did you mean 'difficulty'"):
        Mixture(DataConfig(dataset=levels(tmp_path), filters="difficult in easy"))


def test_repeated_problems(tmp_path: Path) -> None:
    a = [
        {"problem": "What is 1,000 + 2?", "solution": "x"},
        {"problem": "what is 1000+2", "solution": "another way"},  # a second solution of the same source
        {"problem": "What is 1000 + 2 ?", "solution": "x"},  # the same one
        {"problem": "What is 1000 + 3?", "solution": "x"},
    ]
    b = [{"problem": "WHAT IS 1000 + 2", "solution": "third"}, {"problem": "new", "solution": "x"}]
    of = tuple(SourceConfig(dataset=write_lines(tmp_path / f"{n}.jsonl", r)) for n, r in enumerate((a, b)))
    exact = chosen(DataConfig(sources=of))
    assert (counts(exact), [report.repeated for report in exact.reports]) == ([3, 1], [1, 1])
    assert counts(chosen(DataConfig(sources=of, deduplicate="off"))) == [4, 2]


def talk(*turns: str) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]}


def greeted(asked: str, worked: str) -> dict[str, Any]:
    return talk("Hi, can you help me?", "Of course.", asked, worked, "Thanks", "You are welcome!")


@pytest.mark.parametrize("how", ["exact", "near"])
def test_conversations_that_begin_and_end_alike_are_not_the_same(tmp_path: Path, how: Any) -> None:
    rows = [greeted(question(i), f"It is {i}.") for i in range(20)]
    first = write_lines(tmp_path / "a.jsonl", [*rows, rows[3], greeted(question(4), "Another way: 4.")])
    mixture = chosen(DataConfig(dataset=first, deduplicate=how))
    assert (len(mixture), mixture.reports[0].repeated) == (21, 1), "of one problem there may be two solutions"
    assert len(np.unique(mixture.questions)) == 20, "problems are held out one by one"
    second = write_lines(tmp_path / "b.jsonl", [rows[5], greeted(question(90), "It is 5.")])
    of = (SourceConfig(dataset=first), SourceConfig(dataset=second))
    assert counts(chosen(DataConfig(sources=of, deduplicate=how))) == [21, 1]


def test_what_a_conversation_asks_later_is_looked_for_in_benchmarks(tmp_path: Path) -> None:
    benchmark = write_lines(tmp_path / "bench.jsonl", [*rows(0, 1), {"problem": "What is 3 + 3?", "solution": "6"}])
    asked = [question(0), "what is 3+3", *map(question, range(1, 6))]
    path = write_lines(tmp_path / "a.jsonl", [greeted(text, f"s{i}") for i, text in enumerate(asked)])
    mixture = chosen(DataConfig(dataset=path, decontaminate=benchmark))
    assert (len(mixture), mixture.reports[0].contaminated) == (5, {benchmark: 2})


def test_rows_of_other_forms_are_in_the_key(tmp_path: Path) -> None:
    """They are not read where columns are named, though these be the same."""
    path = write_lines(tmp_path / "a.jsonl", [*rows(0, 5), *(talk(question(i), f"s{i}") for i in range(5, 10))])
    found = chosen(DataConfig(dataset=path))
    named = chosen(DataConfig(dataset=path, question_column="problem", solution_column="solution"))
    assert (len(found), len(named)) == (10, 5)
    assert found.key != named.key
    of = (SourceConfig(dataset=path),)
    assert found.key == Mixture(DataConfig(sources=of)).key, "which settings say the same does not matter"


def test_near_identical_problems(tmp_path: Path) -> None:
    base = rows(0, 30)
    close = [row | {"problem": row["problem"] + " please"} for row in base[:10]]
    other = [row | {"problem": row["problem"].replace("Problem", "Problem 7 and")} for row in base[:10]]
    path = write_lines(tmp_path / "a.jsonl", base + close + close + other)
    assert counts(chosen(DataConfig(dataset=path))) == [50]
    near = chosen(DataConfig(dataset=path, deduplicate="near"))
    assert counts(near) == [40], "other numbers are other problems"
    assert near.reports[0].repeated == 20


def test_curriculum(tmp_path: Path) -> None:
    names = ["hard", "easy", "very hard", "medium", "easy"]
    path = write_lines(tmp_path / "a.jsonl", [r | {"difficulty": d} for r, d in zip(rows(0, 5), names, strict=True)])
    mixture = chosen(DataConfig(dataset=path, curriculum="easy-to-hard"))
    assert mixture.ranks.tolist() == [600, 0, 800, 400, 0]
    assert mixture.reports[0].order == "difficulty"
    texts = [row | {"solution": "x" * n} for row, n in zip(rows(0, 4), (30, 5, 20, 5), strict=True)]
    mixture = chosen(DataConfig(dataset=write_lines(tmp_path / "b.jsonl", texts), curriculum="easy-to-hard"))
    assert (mixture.ranks.tolist(), mixture.reports[0].order) == ([750, 0, 500, 0], "solution length")
    assert chosen(DataConfig(dataset=path)).ranks is None


def other_numbers(text: str) -> str:
    """Thousands separated, decimals lengthened."""
    return re.sub(r"(?<![\d.,])\d+(?![\d.,]*\d)", lambda m: f"{int(m[0]):,}" if len(m[0]) > 3 else f"{m[0]}.00", text)


@needs_gsm8k
def test_planted_test_questions_are_found(tmp_path: Path) -> None:
    tests = [json.loads(line)["question"] for line in (SHARED / "gsm8k" / "test.jsonl").read_text().splitlines()]
    rng = random.Random(0)
    planted = rng.sample(tests, 200)
    variants = [
        lambda text: text,
        lambda text: "  ".join(text.replace(". ", ".\n\n").split(" ")),
        other_numbers,
        lambda text: f"Solve this:   {text.upper().replace('?', ' ?')}  Think step by step.",
    ]
    data = rows(0, 9800) + [
        {"problem": variants[i % 4](text), "solution": f"planted{i}"} for i, text in enumerate(planted)
    ]
    rng.shuffle(data)
    mixture = chosen(DataConfig(dataset=write_lines(tmp_path / "a.jsonl", data), decontaminate=("gsm8k",)))
    assert mixture.reports[0].contaminated == {"gsm8k": 200}
    assert not [s for s in solutions(mixture) if s.startswith("planted")]
    assert len(mixture) == 9800


@needs_gsm8k
def test_little_of_gsm8k_s_training_set_is_removed() -> None:
    (report,) = chosen(DataConfig(dataset=str(SHARED / "gsm8k"))).reports
    assert report.contaminated["gsm8k"] < 0.001 * report.read
    assert report.read - report.left == sum(report.contaminated.values())


@needs_gsm8k
def test_bundled_hashes_are_those_of_the_benchmarks() -> None:
    for name, path, key in (("gsm8k", "gsm8k", "question"), ("math500", "math500", "problem")):
        lines = (SHARED / path / "test.jsonl").read_text().splitlines()
        made = fingerprint_benchmark(name, "", [json.loads(line)[key] for line in lines])
        bundled = open_benchmark(name)
        assert (bundled.texts == made.texts).all() and (bundled.ngrams == made.ngrams).all()


def test_a_source_that_is_the_benchmark_is_kept_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark = write_lines(tmp_path / "bench.jsonl", rows(0, 10))
    training = write_lines(tmp_path / "train.jsonl", rows(4, 8))
    mixture = chosen(DataConfig(dataset=training, decontaminate=benchmark))
    assert (mixture.reports[0].is_benchmark, len(mixture), mixture.reports[0].contaminated) == (benchmark, 8, {})
    assert "so they are kept" in capsys.readouterr().err
    mixture = chosen(DataConfig(dataset=write_lines(tmp_path / "train.jsonl", rows(4, 20)), decontaminate=benchmark))
    assert (mixture.reports[0].is_benchmark, len(mixture), mixture.reports[0].contaminated) == (
        None,
        14,
        {benchmark: 6},
    )
    assert len(chosen(DataConfig(dataset=training, decontaminate="none"))) == 20


def test_benchmarks_by_name_and_file(tmp_path: Path) -> None:
    benchmark = fingerprint_benchmark("b", "", [question(1), "What is 3 + 3?"])
    asked = normalise(
        [question(1), question(2), "What is  3+3", f"First: {question(1)[:90]} and so on", "What is 3 + 4?"]
    )
    assert benchmark.holds(asked).tolist() == [True, False, True, True, False]
    assert [open_benchmark(name).name for name in ("gsm8k", "MATH-500")] == ["gsm8k", "math500"]
    with pytest.raises(InputError, match="--decontaminate: no benchmark 'gms8k', but .*; did you mean 'gsm8k'"):
        open_benchmark("gms8k")
    with pytest.raises(InputError, match="--decontaminate .*: .*does not exist"):
        open_benchmark(str(tmp_path / "absent.jsonl"))


def test_every_setting_and_file_is_in_the_key(tmp_path: Path) -> None:
    path, benchmark = write_lines(tmp_path / "a.jsonl", rows(0, 5)), write_lines(tmp_path / "b.jsonl", rows(50, 5))
    changes: list[dict[str, Any]] = [
        {}, {"filters": "length > 1"}, {"balance": "solution"}, {"num_examples": 3}, {"mixture_seed": 1},
        {"deduplicate": "near"}, {"decontaminate": benchmark}, {"curriculum": "easy-to-hard"},
        {"sources": [{"dataset": path, "count": 3}]}, {"sources": [{"dataset": path, "weight": 3.0}]},
        {"sources": [{"dataset": path}, {"dataset": path}]},
        {"solution_column": "problem", "question_column": "solution"},
    ]  # fmt: skip
    keys = {json.dumps(Mixture(DataConfig(**{"dataset": path, **change})).key, sort_keys=True) for change in changes}
    assert len(keys) == len(changes)
    write_lines(tmp_path / "a.jsonl", rows(0, 6))
    assert json.dumps(Mixture(DataConfig(dataset=path)).key, sort_keys=True) not in keys


def test_a_filter_may_name_the_column_that_is_the_solution(tmp_path: Path) -> None:
    rows = [{"instruction": "1 + 1?", "response": "<think>so</think> 2"}, {"instruction": "2 + 2?", "response": "4"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = DataConfig(dataset=str(tmp_path / "rows.jsonl"), filters=("response contains </think>",))
    mixture = Mixture(config)
    mixture.choose()
    assert [problem.question for problem in mixture] == ["1 + 1?"]


PROBLEM = Problem(
    "0", "abc", "5", "<think>x</think>\n\ny", difficulty="Very Hard", subject="Algebra",
    meta={"input_quality": "Excellent", "correct": True, "level": "Level 3", "score": 0.5, "response": "a </think> b"},
)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("difficulty in easy, medium", False),
        ("difficulty in easy, very hard", True),
        ("difficulty not in easy", True),
        ("input_quality = excellent", True),
        ("input_quality != EXCELLENT", False),
        ("response contains </THINK>", True),
        ("response not contains </think>", False),
        (r"response matches </think>\s*\S", True),
        (r"solution matches </think>\s*$", False),
        ("length <= 22", True),
        ("length < 22", False),
        ("length >= 22", True),
        ("length > 22", False),
        ("correct = true", True),
        ("correct = false", False),
        ("level <= 3", True),
        ("level > 3", False),
        ("score = .5", True),
        ("answer = 5.0", True),
        ("subject in 'algebra', \"geometry\"", True),
        ("source = x", False),
        ("source != x", True),
        ("source > 1", False),
        ("source not contains x", True),
    ],
)
def test_conditions(text: str, expected: bool) -> None:
    assert parse_filter(text)(PROBLEM) is expected


@pytest.mark.parametrize("text", ["difficulty", "difficulty easy", "= 3", "", "level ~ 3"])
def test_no_condition(text: str) -> None:
    with pytest.raises(InputError, match="is no condition; write FIELD OPERATOR VALUE"):
        parse_filter(text)


def test_wrong_values() -> None:
    with pytest.raises(InputError, match="compares with 'three', which is not a number"):
        parse_filter("level <= three")
    with pytest.raises(InputError, match=r"'\(' is not a regular expression"):
        parse_filter("solution matches (")
    with pytest.raises(InputError, match="it has more than 2,000 characters"):
        parse_filter("solution matches " + "a" * 2001)


def test_a_regular_expression_that_takes_for_ever_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlxmath.runtime.foreign.LIMIT_S", 0.2)
    slow = parse_filter(r"question matches (a|aa|a\b|.a)+$")
    with pytest.raises(InputError, match=r"--filters: 'question matches .*it takes more than 0\.2 s for a text of 60"):
        slow(Problem("0", "a" * 59 + "!"))


def test_unknown_field_names_the_nearest() -> None:
    with pytest.raises(InputError, match="--filters: x has no field 'dificulty', but .*; did you mean 'difficulty'"):
        check_fields(["dificulty"], ["score"], "x")
    check_fields(["score", "length"], ["score"], "x")


LONG = "Natalia sold clips to 48 of her friends in April and then she sold half as many clips in May. How many in all?"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("She has 1,000 Apples!", ["she", "has", "1000", "apples"]),
        ("1{,}000 and 1\\,000 and 1,\\!000", ["1000", "and", "1000", "and", "1000"]),
        ("1 000 000 or 1\u2009000", ["1000000", "or", "1000"]),
        ("$5.50, 5.500 and 007", ["5.5", "5.5", "and", "7"]),
        ("1000.00 0.0 .5", ["1000", "0", "5"]),
        ("four boys, twenty girls", ["4", "boys", "20", "girls"]),
        ("x  =\n\n 3\\quad y", ["x", "3", "y"]),
        ("1,2,3 and (1,200,300)", ["1", "2", "3", "and", "1200300"]),
        ("ﬁve²", ["5", "2"]),
        ("", []),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected


def test_the_text_s_hash_ignores_spacing() -> None:
    a, b, c = normalise(["some thing 12", "Something,12", "something 13"]).texts
    assert a == b != c


def test_ngrams_stay_within_a_question() -> None:
    hashed = normalise(["a b c d", "e", "c d e f"])
    ngrams, owner = hashed.ngrams(3)
    assert owner.tolist() == [0, 0, 2, 2]
    assert len(set(ngrams.tolist())) == 4
    again, _ = normalise(["x a b c"]).ngrams(3)
    assert again[1] == ngrams[0], "the same words, the same hash"
    assert len(normalise(["a"]).ngrams(3)[0]) == 0


def test_hashes_do_not_depend_on_the_process() -> None:
    program = "from mlxmath.data.dedup import normalise as n; print(n(['Half of 1,000 é']).texts[0])"
    outputs = {
        subprocess.run([sys.executable, "-c", program], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True,
                       check=True, cwd=__file__.partition("/tests/")[0]).stdout
        for seed in ("0", "1")
    }  # fmt: skip
    assert outputs == {f"{normalise(['Half of 1,000 é']).texts[0]}\n"}


def test_near_duplicates() -> None:
    near = NearDuplicates()
    questions = [
        LONG,
        LONG.replace("friends", "good friends").upper(),  # one word more
        LONG.replace("48", "52"),  # another problem
        "What is 2 + 2?",
        "what is 2+2",
        "Something else altogether, about 48 apples and their price in a shop at the end of the road.",
    ]
    assert near.find(normalise(questions)).tolist() == [False, True, False, False, True, False]
    assert near.find(normalise([questions[2], ""])).tolist() == [True, False]


def test_signatures_estimate_the_jaccard_similarity() -> None:
    vocabulary = [f"w{chr(97 + i // 26)}{chr(97 + i % 26)}x" for i in range(400)]
    a, b = " ".join(vocabulary[:300]), " ".join(vocabulary[100:400])
    signatures = NearDuplicates().signatures(normalise([a, b]))
    exact = 198 / (298 + 298 - 198)
    assert abs(np.mean(signatures[0] == signatures[1]) - exact) < 3 * np.sqrt(exact * (1 - exact) / 64)
