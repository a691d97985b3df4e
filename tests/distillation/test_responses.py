"""responses.jsonl: what is written stays, half lines are no answers, other settings do not mix."""

import json
import multiprocessing
import os
import resource
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mlxmath.config.schema import DataConfig
from mlxmath.distillation.questions import Question, Task, load_questions, question_key, sample_seed
from mlxmath.distillation.responses import RESPONSES, Response, identify, open_responses
from mlxmath.errors import InputError, MlxmathError

OURS = {"model": "a", "temperature": 0.7}


def response(sample: int, fingerprint: str = identify(OURS), key: str = "k") -> Response:
    text = f"line\n\u2028 é \U0001f40d {sample}"
    return Response(fingerprint, key, sample, "1", "1 + 1?", "2", text, "stop", 3, 5, 0.1, 1)


def write(folder: Path, *responses: Response, **how: Any) -> None:
    with open_responses(folder, OURS, **{"resume": True} | how) as found:
        for one in responses:
            found.append(one)


def test_what_was_written_is_read_back_also_beside_half_and_foreign_lines(tmp_path: Path) -> None:
    write(tmp_path, response(0), response(1), response(7, "other"))
    path = tmp_path / RESPONSES
    whole = path.read_bytes()
    for half in (b'{"fingerprint": "f", "key"', b"\xff\xfe\x00", whole[: len(whole) // 3 - 1]):
        path.write_bytes(whole + half)
        write(tmp_path, response(2))
        with open_responses(tmp_path, OURS, resume=True) as found:
            assert {sample for sample in range(4) if ("k", sample) in found} >= {0, 1, 2}
            assert [found.get(("k", i)) for i in range(3)] == [response(i) for i in range(3)]
            assert found.get(("k", 7)) is None and ("k", 7) not in found and found.left_out >= 2
        assert path.read_bytes().startswith(whole)


def test_a_whole_last_line_without_its_end_counts_and_the_next_one_is_apart(tmp_path: Path) -> None:
    write(tmp_path, response(0))
    path = tmp_path / RESPONSES
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    write(tmp_path, response(1))
    with open_responses(tmp_path, OURS, resume=True) as found:
        assert len(found) == 2 and found.left_out == 0
        assert (found.prompt_tokens, found.completion_tokens) == (6, 10)


def test_the_first_of_two_answers_to_a_task_counts(tmp_path: Path) -> None:
    write(tmp_path, response(0))
    twice = (tmp_path / RESPONSES).read_text()
    (tmp_path / RESPONSES).write_text(twice + twice.replace("0.1", "9.9"))
    with open_responses(tmp_path, OURS, resume=True) as found:
        assert len(found) == 1 and found.get(("k", 0)) == response(0) and found.completion_tokens == 5


def _open(folder: Path, overwrite: bool, said: "multiprocessing.SimpleQueue[str]") -> None:
    try:
        with open_responses(folder, {"model": "b"} if overwrite else OURS, resume=True, overwrite=overwrite):
            said.put("open")
    except InputError as error:
        said.put(str(error))


@pytest.mark.parametrize("overwrite", [False, True])
def test_two_processes_do_not_write_into_one_folder(overwrite: bool, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    said = context.SimpleQueue()
    with open_responses(tmp_path, OURS) as found:
        found.append(response(0))
        assert (tmp_path / RESPONSES).read_bytes().count(b"\n") == 1  # the system has it, whatever becomes of us
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        process = context.Process(target=_open, args=(tmp_path, overwrite, said))
        process.start()
        process.join()
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert f"{tmp_path} is in use by `mlxmath distill`, process {os.getpid()} on " in said.get()


def test_a_folder_belongs_to_its_settings(tmp_path: Path) -> None:
    others = OURS | {"temperature": 0.8}
    write(tmp_path, response(0), resume=False)
    held = (tmp_path / RESPONSES).read_bytes()
    with pytest.raises(InputError, match=r"holds answers already; use them with --resume"):
        write(tmp_path, resume=False)
    with (
        pytest.raises(InputError, match=r"other settings \(temperature: '0.7' there, '0.8' here\)"),
        open_responses(tmp_path, others, resume=True),
    ):
        pass
    assert (tmp_path / RESPONSES).read_bytes() == held
    with open_responses(tmp_path, others, overwrite=True) as found:
        assert len(found) == 0 and (tmp_path / RESPONSES).read_bytes() == b""
        found.append(response(0, identify(others)))
    held = (tmp_path / RESPONSES).read_bytes()
    (tmp_path / "settings.json").write_text("[]")
    for _ in range(2):
        for resume in (True, False):  # all that is there is of the others
            with pytest.raises(MlxmathError, match="is damaged"):
                write(tmp_path, resume=resume)
        assert (tmp_path / RESPONSES).read_bytes() == held
        with open_responses(tmp_path, others, resume=True) as found:
            assert len(found) == 1
        (tmp_path / "settings.json").unlink()
    assert identify(OURS) == identify(dict(reversed(OURS.items()))) != identify(OURS | {"model": "b"})


def test_a_full_disk_is_one_clear_error_and_what_was_written_stays(tmp_path: Path) -> None:
    write(tmp_path, response(0))
    room = (tmp_path / RESPONSES).stat().st_size * 3 // 2
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))  # stands for a disk that is full
    try:
        with pytest.raises(MlxmathError, match=rf"cannot write {tmp_path / RESPONSES}: File too large"):
            write(tmp_path, response(1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / RESPONSES).stat().st_size == room
    write(tmp_path, response(2))
    with open_responses(tmp_path, OURS, resume=True) as found:
        assert [found.get(("k", i)) for i in range(3)] == [response(0), None, response(2)]
    (tmp_path / "file").touch()
    with pytest.raises(MlxmathError, match="cannot write"):
        write(tmp_path / "file" / "folder")


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


def test_each_sample_of_each_question_has_a_seed_of_its_own() -> None:
    tasks = [Task(Question(key, key, "1 + 1?", "2"), sample) for sample in range(2) for key in ("b", "a", "c")]
    seeds = {sample_seed(seed, task) for seed in (0, 1) for task in tasks}
    assert len(seeds) == 12 and all(0 <= seed < 2**31 for seed in seeds)
