"""responses.jsonl: what is written stays, half lines are no answers, other settings do not mix."""

import json
import multiprocessing
from collections import Counter
from pathlib import Path

import pytest

from mlxmath.config.schema import DataConfig
from mlxmath.distillation.dataset import answered
from mlxmath.distillation.questions import Question, Task, load_questions, question_key, sample_seed
from mlxmath.distillation.responses import RESPONSES, Response, claim, identify, open_responses
from mlxmath.errors import InputError, MlxmathError


def response(sample: int, fingerprint: str = "f", key: str = "k") -> Response:
    text = f"line\n\u2028 é \U0001f40d {sample}"
    return Response(fingerprint, key, sample, "1", "1 + 1?", "2", text, "stop", 3, 5, 0.1, 1)


def write(folder: Path, *responses: Response, fingerprint: str = "f") -> None:
    with open_responses(folder, fingerprint) as found:
        for one in responses:
            found.append(one)


def test_what_was_written_is_read_back_also_beside_half_and_foreign_lines(tmp_path: Path) -> None:
    write(tmp_path, response(0), response(1), response(0, "other"))
    path = tmp_path / RESPONSES
    whole = path.read_bytes()
    for half in (b'{"fingerprint": "f", "key"', b"\xff\xfe\x00", whole[: len(whole) // 3 - 1]):
        path.write_bytes(whole + half)
        write(tmp_path, response(2))
        with open_responses(tmp_path, "f") as found:
            assert {sample for sample in range(4) if ("k", sample) in found} >= {0, 1, 2}
            assert [found.get(("k", i)) for i in range(3)] == [response(i) for i in range(3)]
            assert found.get(("k", 9)) is None and found.left_out >= 1
        assert path.read_bytes().startswith(whole)


def test_a_whole_last_line_without_its_end_counts_and_the_next_one_is_apart(tmp_path: Path) -> None:
    write(tmp_path, response(0))
    path = tmp_path / RESPONSES
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    write(tmp_path, response(1))
    with open_responses(tmp_path, "f") as found:
        assert len(found) == 2 and found.left_out == 0
        assert (found.prompt_tokens, found.completion_tokens) == (6, 10)


def test_the_first_of_two_answers_to_a_task_counts(tmp_path: Path) -> None:
    write(tmp_path, response(0))
    twice = (tmp_path / RESPONSES).read_text()
    (tmp_path / RESPONSES).write_text(twice + twice.replace("0.1", "9.9"))
    with open_responses(tmp_path, "f") as found:
        assert len(found) == 1 and found.get(("k", 0)) == response(0) and found.completion_tokens == 5


def _open(folder: Path, said: "multiprocessing.SimpleQueue[str]") -> None:
    try:
        with open_responses(folder, "f"):
            said.put("open")
    except InputError as error:
        said.put(str(error))


def test_two_processes_do_not_write_into_one_folder(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    said = context.SimpleQueue()
    with open_responses(tmp_path, "f"):
        process = context.Process(target=_open, args=(tmp_path, said))
        process.start()
        process.join()
    assert "another process is distilling into it" in said.get()


def test_a_folder_belongs_to_its_settings(tmp_path: Path) -> None:
    first = {"model": "a", "temperature": 0.7}
    claim(tmp_path, first, resume=False, overwrite=False)
    write(tmp_path, response(0))
    with pytest.raises(InputError, match=r"holds answers already; use them with --resume"):
        claim(tmp_path, first, resume=False, overwrite=False)
    claim(tmp_path, first, resume=True, overwrite=False)
    with pytest.raises(InputError, match=r"other settings \(temperature: '0.7' there, '0.8' here\)"):
        claim(tmp_path, first | {"temperature": 0.8}, resume=True, overwrite=False)
    assert (tmp_path / RESPONSES).exists()
    claim(tmp_path, first | {"temperature": 0.8}, resume=False, overwrite=True)
    assert not (tmp_path / RESPONSES).exists()
    (tmp_path / "settings.json").write_text("[]")
    with pytest.raises(MlxmathError, match="is damaged"):
        claim(tmp_path, first, resume=True, overwrite=False)
    assert identify(first) == identify(dict(reversed(first.items()))) != identify(first | {"model": "b"})


def test_questions_need_a_gold_answer_and_come_once(tmp_path: Path) -> None:
    rows = [
        {"question": "1 + 1?", "answer": "1 + 1 = <<1+1=2>>2\n#### 2"},
        {"question": "2 + 2?", "answer": "4"},
        {"question": "Which one?", "answer": ""},
        {"question": "1 + 1?", "answer": "It is two.\n#### 2"},
        {"question": "", "answer": "4"},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = load_questions(DataConfig(dataset=str(path), decontaminate=()))
    assert [(q.text, q.gold, q.key) for q in found.items] == [
        ("1 + 1?", "2", question_key("1 + 1?")), ("2 + 2?", "4", question_key("2 + 2?")),
    ]  # fmt: skip
    assert found.left_out == Counter({"without a gold answer": 1, "repeated": 1, "empty problem": 1})
    assert [(task.question.text, task.sample) for task in found.tasks(2)] == [
        ("1 + 1?", 0), ("2 + 2?", 0), ("1 + 1?", 1), ("2 + 2?", 1),
    ]  # fmt: skip
    path.write_text('{"question": "Why?", "answer": "He had 3 of them. Then came 4 days."}\n')
    with pytest.raises(MlxmathError, match=r"no problem with a gold answer \(1 without a gold answer\)"):
        load_questions(DataConfig(dataset=str(path), decontaminate=()))


def test_answers_are_grouped_by_problem_in_the_datasets_order(tmp_path: Path) -> None:
    questions = [Question(key, key, "1 + 1?", "2") for key in ("b", "a", "c")]
    tasks = [Task(question, sample) for sample in range(2) for question in questions]
    write(tmp_path, response(1, key="a"), response(0, key="b"), response(1, key="b"))
    with open_responses(tmp_path, "f") as found:
        groups = [[(one.key, one.sample) for one in group] for group in answered(tasks, found)]
    assert groups == [[("b", 0), ("b", 1)], [("a", 1)], []]
    seeds = {sample_seed(seed, task) for seed in (0, 1) for task in tasks}
    assert len(seeds) == 12 and all(0 <= seed < 2**31 for seed in seeds)
