"""Many questions at once: pace, retries, giving up; every question has exactly one outcome."""

import asyncio
import json
import shutil
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlxmath.config.methods import DistillationConfig
from mlxmath.config.schema import RuntimeConfig
from mlxmath.distillation.endpoint import Endpoint
from mlxmath.distillation.questions import Question, Task
from mlxmath.distillation.teacher import Answer, LocalTeacher
from mlxmath.errors import MlxmathError
from tests.distillation.scripted import Script, completion, scripted, solution, sum_of
from tests.helpers import REPOSITORY


def tasks(count: int) -> list[Task]:
    return [Task(Question(f"{i:04}", str(i), f"What is {i} + 1?", str(i + 1)), 0) for i in range(count)]


def ask(
    server: Script, count: int, found: dict[int, Answer | str] | None = None, **changes: Any
) -> dict[int, Answer | str]:
    """What became of each question."""
    found = {} if found is None else found
    given = {"teacher_url": server.url, "teacher_model": "m", "backoff_s": 0.02, "concurrency": 4}

    def note(task: Task, outcome: Answer | str) -> None:
        assert int(task.question.id) not in found
        found[int(task.question.id)] = outcome

    Endpoint(DistillationConfig(**given | changes)).ask(tasks(count), note)
    return found


def answer(request: Any, body: dict[str, Any], _: int) -> None:
    request.reply(completion(solution(*sum_of(body))))


def run_that_fails(
    act: Any, count: int, said: str, found: dict[int, Answer | str] | None = None, **changes: Any
) -> Script:
    """The endpoint, after it has ended a run with an error."""
    with scripted(act) as server, pytest.raises(MlxmathError, match=said):
        ask(server, count, found, **changes)
    return server


def test_each_question_is_asked_once_and_no_more_than_asked_for_at_once() -> None:
    pairs = threading.Barrier(2, timeout=60)

    def in_pairs(*arguments: Any) -> None:
        pairs.wait()
        answer(*arguments)

    with scripted(in_pairs) as server:
        found = ask(server, 30)
        assert set(server.seen.values()) == {1} and 2 <= server.most_at_once <= 4
    assert sorted(found) == list(range(30))
    assert all(isinstance(one, Answer) and one.attempts == 1 and f"{i + 1}}}" in one.text for i, one in found.items())


def test_failures_are_asked_again_so_often_and_then_reported() -> None:
    def act(request: Any, body: dict[str, Any], attempt: int) -> None:
        a, _ = sum_of(body)
        errors = {3: ({"error": "full"}, 500), 5: ({"error": "unsuitable"}, 400)}
        if failure := errors.get(a, ({}, 503) if a % 2 and attempt < 3 else None):
            request.reply(*failure)
        else:
            answer(request, body, attempt)

    with scripted(act) as server:
        found = ask(server, 10, retries=2)
        asked = Counter(sum_of(json.loads(body))[0] for body in server.seen.elements())
    assert asked == {i: 3 if i % 2 and i != 5 else 1 for i in range(10)}
    assert {i: one for i, one in found.items() if isinstance(one, str)} == {
        3: "HTTP 500: full",
        5: "HTTP 400: unsuitable",
    }
    assert {i: one.attempts for i, one in found.items() if isinstance(one, Answer)} == {
        i: n for i, n in asked.items() if i not in (3, 5)
    }


def test_retry_after_holds_everyone() -> None:
    """One question is told to wait while another is under way; the third waits too."""
    held = threading.Event()

    def act(request: Any, body: dict[str, Any], attempt: int) -> None:
        number = sum_of(body)[0]
        if number == 0 and attempt == 1:
            request.reply({}, 429, Retry_After="0.5")
            held.set()
        elif number == 1:
            held.wait(60)
            time.sleep(0.1)
        if number or attempt > 1:
            answer(request, body, attempt)

    with scripted(act) as server:
        assert len(ask(server, 3, concurrency=2)) == 3
        first, _, *later = sorted(server.times)
        assert len(later) == 2 and min(later) - first >= 0.5


def test_a_wait_of_hours_ends_the_run() -> None:
    run_that_fails(lambda request, body, n: request.reply({}, 429, Retry_After="90000"), 3, "it asks to wait 90,000 s")


def test_requests_a_minute_are_spaced_evenly() -> None:
    with scripted(answer) as server:
        start = time.monotonic()
        ask(server, 7, requests_per_minute=1200)
        times = [at - start for at in server.times]
    assert all(at >= 0.05 * i for i, at in enumerate(times)) and times[0] < 0.25


def test_a_wrong_key_ends_the_run_at_once_and_a_dead_endpoint_soon() -> None:
    server = run_that_fails(lambda request, body, n: request.reply({"error": "who?"}, 401), 100,
                     r"HTTP 401: who\?; name the environment variable")  # fmt: skip
    assert server.seen.total() <= 4
    dead = run_that_fails(
        lambda request, body, n: request.reply({}, 500), 100, "10 questions in a row got no", retries=0
    )
    assert dead.seen.total() < 30


def test_answers_under_way_are_kept_when_the_run_ends() -> None:
    """One question ends the run while two others are being answered: these still come."""
    under_way, refused = threading.Barrier(3, timeout=60), threading.Event()

    def act(request: Any, body: dict[str, Any], attempt: int) -> None:
        under_way.wait()
        if sum_of(body)[0] == 0:
            request.reply({}, 401)
            refused.set()
        else:
            refused.wait(60)
            time.sleep(0.2)
            answer(request, body, attempt)

    found: dict[int, Answer | str] = {}
    assert run_that_fails(act, 50, "401", found, concurrency=3).answered.total() == len(found) == 2


def test_the_end_of_a_run_waits_for_no_pause() -> None:
    """One question is to be asked again in a minute when another ends the run."""

    def act(request: Any, body: dict[str, Any], attempt: int) -> None:
        if sum_of(body)[0] == 0:
            request.reply({}, 429, Retry_After="60")
        else:
            time.sleep(0.3)
            request.reply({}, 401)

    start = time.monotonic()
    run_that_fails(act, 2, "401", concurrency=2)
    assert time.monotonic() - start < 30


def test_an_error_in_what_takes_the_answers_ends_the_run() -> None:
    class Full(dict):  # type: ignore[type-arg]
        def __setitem__(self, *_: object) -> None:
            raise MlxmathError("the disk is full")

    assert run_that_fails(answer, 50, "the disk is full", Full(), concurrency=2).seen.total() <= 4


def test_a_notebook_which_runs_a_loop_of_its_own_can_ask() -> None:
    async def cell() -> int:
        with scripted(answer) as server:
            return len(ask(server, 5))

    assert asyncio.run(cell()) == 5


def test_a_signal_is_heard_whichever_thread_it_reaches() -> None:
    """The loop waits without an end when two come; what was there to handle signals is there again afterwards."""
    over, usual = threading.Event(), signal.getsignal(signal.SIGINT)

    def interrupt_twice(server: Script) -> None:
        while not server.at_once:
            time.sleep(0.01)
        for _ in range(2):
            time.sleep(0.3)
            signal.pthread_kill(threading.get_ident(), signal.SIGINT)

    with scripted(lambda request, body, n: over.wait(30)) as server:
        threading.Thread(target=interrupt_twice, args=(server,), daemon=True).start()
        start = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            ask(server, 3, timeout_s=30)
        assert time.monotonic() - start < 20
        over.set()
    assert signal.getsignal(signal.SIGINT) is usual


@pytest.mark.parametrize(("template", "sent"), [("plain", ""), ("chat", "Be brief.")])
def test_an_instruction_that_is_not_sent_is_said_and_no_part_of_the_teacher(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], template: str, sent: str
) -> None:
    for path in (REPOSITORY / "mlxmath" / "demo" / "model").glob("*token*.json"):
        shutil.copy(path, tmp_path)
    (tmp_path / "config.json").write_text("{}")
    turns = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    (tmp_path / "chat_template.jinja").write_text(turns + "{% if add_generation_prompt %}assistant: {% endif %}")
    asked = DistillationConfig(teacher=str(tmp_path), teacher_template=template)
    assert LocalTeacher(asked, RuntimeConfig()).identity["instruction"] == (sent and asked.instruction)
    assert "--instruction" not in capsys.readouterr().err
    asked = asked.model_copy(update={"instruction": "Be brief."})
    assert LocalTeacher(asked, RuntimeConfig()).identity["instruction"] == sent
    assert ("--instruction is not sent: the teacher is asked in plain" in capsys.readouterr().err) == (not sent)


def test_an_answer_that_ended_is_one_whether_or_not_it_closes_what_the_template_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlxmath.generation import engine
    from mlxmath.models import load

    for path in (REPOSITORY / "mlxmath" / "demo" / "model").glob("*token*.json"):
        shutil.copy(path, tmp_path)
    (tmp_path / "config.json").write_text("{}")
    turns = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    (tmp_path / "chat_template.jinja").write_text(
        turns + "{% if add_generation_prompt %}assistant: <think>\n{% endif %}"
    )
    written = [("It is 7.\n#### 7", "stop"), ("3 + 4</think>\n#### 7", "stop"), ("3 + 4 is", "length")]

    def drawn(*_: Any, on_done: Any, **__: Any) -> None:
        for index, (text, reason) in enumerate(written):
            on_done(index, engine.Completion(text, (1, 2), reason, 3))

    monkeypatch.setattr(load, "load_model", lambda *_: SimpleNamespace(model=None, config={}))
    monkeypatch.setattr(engine, "generate_batch", drawn)
    asked = DistillationConfig(teacher=str(tmp_path), teacher_template="chat", concurrency=1)
    found: list[str] = []
    LocalTeacher(asked, RuntimeConfig()).ask(tasks(3), lambda _, answer: found.append(answer.text))  # type: ignore[union-attr]
    assert found == ["It is 7.\n#### 7", "<think>\n3 + 4</think>\n#### 7", "<think>\n3 + 4 is"]
