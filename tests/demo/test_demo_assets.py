"""The bundled demo: its data sets, its generator, its tokenizer and the files of its model."""

import json
import os
import re
import subprocess
import sys
import zipfile
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from tools.make_demo.corpus import documents
from tools.make_demo.story import LARGEST_NUMBER, SMALLEST_NUMBER
from tools.make_demo.word_problems import (
    CORPUS_SHARES,
    KINDS,
    LEARNED_KINDS,
    is_held_out,
    make_problem_sets,
    normalise_question,
    problem_stream,
)

DEMO = Path(__file__).parents[2] / "mlxmath" / "demo"
MODEL = DEMO / "model"
SIZES = {"train": 3000, "validation": 200, "test": 200}
TUTOR_PROMPT = (
    "You are a helpful math tutor. Solve the problem step by step and give the final answer at the end.\n\n"
    "### Problem:\n{problem}\n\n### Solution:\n"
)


def rows(name: str) -> list[dict[str, str]]:
    lines = (DEMO / "problems" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def read_json(name: str) -> dict[str, Any]:
    return json.loads((MODEL / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(MODEL / "tokenizer.json"))


@pytest.mark.parametrize("name", SIZES)
def test_set_has_its_size_and_only_different_problems(name: str) -> None:
    problems = rows(name)
    assert len(problems) == SIZES[name]
    assert len({normalise_question(row["problem"]) for row in problems}) == SIZES[name]
    assert all(set(row) == {"problem", "solution", "answer", "kind"} for row in problems)


def test_no_problem_is_in_two_sets() -> None:
    questions = {name: {normalise_question(row["problem"]) for row in rows(name)} for name in SIZES}
    assert not questions["train"] & questions["validation"]
    assert not questions["train"] & questions["test"]
    assert not questions["validation"] & questions["test"]


def test_sets_are_what_the_generator_makes() -> None:
    sets = make_problem_sets()
    for name, made in (("train", sets.train), ("validation", sets.validation), ("test", sets.test)):
        assert rows(name) == [problem.record() for problem in made], name


def test_base_reads_no_problem_that_is_held_out() -> None:
    read = {normalise_question(p.problem) for p in islice(problem_stream(8, CORPUS_SHARES, held_out=False), 3000)}
    held_out = {normalise_question(p.problem) for p in islice(problem_stream(8, CORPUS_SHARES, held_out=True), 500)}
    met = {normalise_question(p.problem) for p in islice(problem_stream(9, CORPUS_SHARES, held_out=True), 500)}
    assert not read & held_out and held_out & met, "streams do meet, and only where both are held out"
    assert all(is_held_out(p) for problems in vars(make_problem_sets(3, 40, 20, 20)).values() for p in problems)


@pytest.mark.parametrize("name", SIZES)
def test_answers_follow_from_the_equations(name: str) -> None:
    for row in rows(name):
        *steps, last = row["solution"].split("\n")
        assert last == f"#### {row['answer']}"
        assert 1 <= len(steps) <= 3
        result = ""
        for step in steps:
            (a, operator, b, result), *others = re.findall(r"(\d+) ([-+*/]) (\d+) = (\d+)", step)
            assert not others, row
            left, right, claimed = int(a), int(b), int(result)
            exact = {"+": left + right, "-": left - right, "*": left * right}.get(operator)
            assert claimed == exact if operator != "/" else claimed * right == left, row
        assert result == row["answer"]


@pytest.mark.parametrize("name", SIZES)
def test_numbers_stay_small_and_operands_are_known(name: str) -> None:
    for row in rows(name):
        numbers = [int(number) for number in re.findall(r"\d+", row["problem"] + " " + row["solution"])]
        assert all(SMALLEST_NUMBER <= number <= LARGEST_NUMBER for number in numbers)
        known = re.findall(r"\d+", row["problem"])
        for a, b, result in re.findall(r"(\d+) [-+*/] (\d+) = (\d+)", row["solution"]):
            assert a in known and b in known, row
            known.append(result)


@pytest.mark.parametrize("name", SIZES)
def test_every_kind_is_there_and_most_problems_are_new_to_the_base(name: str) -> None:
    kinds = Counter(row["kind"] for row in rows(name))
    assert set(kinds) == set(KINDS)
    assert all(count >= 0.05 * SIZES[name] for count in kinds.values())
    assert sum(kinds[kind] for kind in LEARNED_KINDS) <= 0.3 * SIZES[name]
    steps = {kind: {row["solution"].count("\n") for row in rows(name) if row["kind"] == kind} for kind in kinds}
    assert [steps[kind] for kind in ("one step", "two steps", "three steps", "backwards")] == [{1}, {2}, {3}, {2}]


def test_base_sees_only_the_kinds_that_it_learns_worked() -> None:
    new = re.compile(r"at first\?|(?<!points do )they have together\?|How many more ")
    equation, num_answered, num_new = re.compile(r"\d+ [-+*/] \d+ = \d+"), 0, 0
    for document in islice(documents(3), 1500):
        if not equation.search(document):
            num_new += bool(new.search(document))
            assert "Answer:" not in document or not new.search(document), document
            continue
        assert not new.search(document), document
        for part in document.split("\n\n"):
            drill = re.fullmatch(rf"(?:{equation.pattern}(?:, |\. |\n|$))+", part)
            assert drill or len(equation.findall(part)) <= 2, part
        num_answered += "?" in document
    assert num_answered > 500 and num_new > 20


def test_generator_does_not_depend_on_the_hash_seed() -> None:
    program = (
        "import hashlib; from tools.make_demo.word_problems import make_problem_sets as m; s = m(3, 40, 20, 20);"
        "print(hashlib.sha256(repr([p.record() for p in (*s.train, *s.validation, *s.test)]).encode()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed}, cwd=DEMO.parents[1], capture_output=True, text=True, check=True,
        ).stdout
        for seed in ("0", "1", "12345")
    }  # fmt: skip
    assert len(digests) == 1


def test_seeds_differ() -> None:
    assert make_problem_sets(1, 20, 5, 5) == make_problem_sets(1, 20, 5, 5)
    assert make_problem_sets(1, 20, 5, 5).test != make_problem_sets(2, 20, 5, 5).test


def test_every_digit_is_one_token(tokenizer: Tokenizer) -> None:
    for text in ("4071", "12 + 7 = 19", "has 38 pens", "#### 99", "a5b", "007"):
        tokens = tokenizer.encode(text, add_special_tokens=True).tokens
        assert [token for token in tokens if re.search(r"\d", token)] == re.findall(r"\d", text)
    vocabulary = tokenizer.get_vocab()
    assert all(str(digit) in vocabulary for digit in range(10))
    assert [token for token in vocabulary if re.search(r"\d", token) and len(token) > 1] == []


def test_tokenizer_gives_texts_back(tokenizer: Tokenizer) -> None:
    texts = [row["problem"] + "\n" + row["solution"] for row in rows("test")]
    texts += ["×, − and α: ½ of £3 \t 😀", " two  spaces ", "línea\r\n", ""]
    for text in texts:
        ids = tokenizer.encode(text).ids
        assert all(0 <= token < read_json("config.json")["vocab_size"] for token in ids)
        assert tokenizer.decode(ids) == text


def test_prompts_and_solutions_are_short(tokenizer: Tokenizer) -> None:
    overhead = len(tokenizer.encode(TUTOR_PROMPT.format(problem="")).ids)
    solutions = [len(tokenizer.encode(row["solution"]).ids) + 1 for row in rows("train")]
    assert overhead <= 35
    assert sum(solutions) / len(solutions) <= 40
    assert max(solutions) <= 100


def test_special_tokens_and_lengths(tokenizer: Tokenizer) -> None:
    config, settings = read_json("config.json"), read_json("tokenizer_config.json")
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert settings["eos_token"] == "</s>"
    assert settings["model_max_length"] == config["max_position_embeddings"] == 1024
    for key in ("bos", "eos", "pad"):
        assert tokenizer.token_to_id(settings[f"{key}_token"]) == config[f"{key}_token_id"]
    assert config["eos_token_id"] == read_json("generation_config.json")["eos_token_id"]
    assert config["eos_token_id"] not in tokenizer.encode("What is 1 + 2?").ids
    assert tokenizer.get_vocab_size() == config["vocab_size"]


def test_chat_template_is_the_tutor_prompt() -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    problem = "What's 12 + 7? {{ 'x' }}\nTwo lines."
    prompt = TUTOR_PROMPT.replace("{problem}", problem)
    messages = [{"role": "user", "content": problem}]
    for add_generation_prompt in (False, True):
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
        assert text == prompt
    turns = [
        {"role": "user", "content": "What is 3 * 4?"},
        {"role": "assistant", "content": "3 * 4 = 12.\n#### 12"},
        {"role": "user", "content": problem},
    ]
    earlier = TUTOR_PROMPT.format(problem="What is 3 * 4?") + "3 * 4 = 12.\n#### 12</s>"
    assert tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) == earlier + prompt
    assert tokenizer(prompt)["input_ids"] == Tokenizer.from_file(str(MODEL / "tokenizer.json")).encode(prompt).ids


def test_shards_and_index_agree() -> None:
    index = read_json("pytorch_model.bin.index.json")
    files = sorted(set(index["weight_map"].values()))
    assert files == ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
    assert sorted(path.name for path in MODEL.glob("*.bin")) == files
    config = read_json("config.json")
    assert config["model_type"] == "llama"
    assert config["tie_word_embeddings"] is True
    hidden, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    parameters = config["vocab_size"] * hidden + layers * (4 * hidden**2 + 3 * hidden * inner + 2 * hidden) + hidden
    assert 1e6 <= parameters <= 3e6
    assert index["metadata"]["total_size"] == 2 * parameters  # float16, as config.json says
    assert config["torch_dtype"] == "float16"
    assert len(index["weight_map"]) == 2 + 9 * layers
    for file in files:
        with zipfile.ZipFile(MODEL / file) as archive:
            assert archive.testzip() is None
            assert any(name.endswith("/data.pkl") for name in archive.namelist())


def test_demo_is_small() -> None:
    total = sum(path.stat().st_size for path in DEMO.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    assert total <= 6_000_000
