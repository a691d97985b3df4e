"""Many questions at once: pace, retries, giving up; every question has exactly one outcome."""

import threading
import time
from typing import Any

import pytest

from mlxmath.config.answering import DistillationConfig
from mlxmath.distillation.endpoint import Endpoint
from mlxmath.distillation.pace import Pace
from mlxmath.distillation.questions import Question, Task
from mlxmath.distillation.teacher import Outcome, ask_endpoint
from mlxmath.errors import MlxmathError
from tests.distillation.scripted import Script, completion, scripted, solution, sum_of


def tasks(count: int) -> list[Task]:
    return [Task(Question(f"{i:04}", str(i), f"What is {i} + 1?", str(i + 1)), 0) for i in range(count)]


def ask(server: Script, count: int, **changes: Any) -> list[Outcome]:
    settings = DistillationConfig(**{"backoff_s": 0.02, "concurrency": 4} | changes)
    found: list[Outcome] = []
    teacher = Endpoint(server.url, "m", {}, settings.timeout_s)
    ask_endpoint(teacher, tasks(count), settings, lambda task: None, found.append)
    return found


def answer(request: Any, body: dict[str, Any], _: int) -> None:
    request.reply(completion(solution(*sum_of(body))))


def test_each_question_is_asked_once_and_no_more_than_asked_for_at_once() -> None:
    pairs = threading.Barrier(2, timeout=60)

    def in_pairs(*arguments: Any) -> None:
        pairs.wait()
        answer(*arguments)

    with scripted(in_pairs) as server:
        found = ask(server, 30)
        assert set(server.seen.values()) == {1} and 2 <= server.most_at_once <= 4
    assert sorted(int(one.task.question.id) for one in found) == list(range(30))
    for one in found:
        assert one.answer is not None and one.attempts == 1
        assert f"{one.task.question.gold}}}" in one.answer.text


def test_failures_are_asked_again_so_often_and_then_reported() -> None:
    def act(request: Any, body: dict[str, Any], attempt: int) -> None:
        a, _ = sum_of(body)
        if a == 3:
            request.reply({"error": "full"}, 500)
        elif a == 5:
            request.reply({"error": "unsuitable"}, 400)
        elif a % 2 and attempt < 3:
            request.reply({}, 503)
        else:
            answer(request, body, attempt)

    with scripted(act) as server:
        found = {int(one.task.question.id): one for one in ask(server, 10, retries=2)}
    assert len(found) == 10
    assert {i: one.attempts for i, one in found.items()} == {i: 3 if i % 2 and i != 5 else 1 for i in range(10)}
    failed = {i: one.failure for i, one in found.items() if one.answer is None}
    assert failed == {3: "HTTP 500: full", 5: "HTTP 400: unsuitable"}


def test_retry_after_holds_everyone() -> None:
    def act(request: Any, body: dict[str, Any], attempt: int) -> None:
        if attempt == 1 and sum_of(body)[0] == 0:
            request.reply({}, 429, Retry_After="0.5")
        else:
            answer(request, body, attempt)

    with scripted(act) as server:
        assert len(ask(server, 3, concurrency=1)) == 3
        first, *later = server.times
        assert later[0] - first >= 0.5


def test_a_wait_of_hours_ends_the_run() -> None:
    with (
        scripted(lambda request, body, n: request.reply({}, 429, Retry_After="90000")) as server,
        pytest.raises(MlxmathError, match="it asks to wait 90,000 s"),
    ):
        ask(server, 3)


def test_requests_a_minute_are_spaced_evenly() -> None:
    class Clock(threading.Event):
        """An event that nobody sets, and whose waits pass at once on a clock of its own."""

        now = 100.0

        def wait(self, timeout: float | None = None) -> bool:
            self.now += timeout or 0.0
            return False

    clock = Clock()
    pace, turns = Pace(1200, lambda: clock.now), []
    for _ in range(7):
        assert pace.wait(clock)
        turns.append(clock.now)
    assert turns == pytest.approx([100 + 0.05 * i for i in range(7)])
    with scripted(answer) as server:
        start = time.monotonic()
        ask(server, 7, requests_per_minute=1200)
        assert server.times[-1] - start >= 6 * 0.05


def test_a_wrong_key_ends_the_run_at_once_and_a_dead_endpoint_soon() -> None:
    with scripted(lambda request, body, n: request.reply({"error": "who?"}, 401)) as server:
        with pytest.raises(MlxmathError, match="HTTP 401: who\\?; name the environment variable"):
            ask(server, 100)
        assert server.seen.total() <= 4
    with scripted(lambda request, body, n: request.reply({}, 500)) as server:
        with pytest.raises(MlxmathError, match="10 questions in a row got no answer"):
            ask(server, 100, retries=0)
        assert server.seen.total() < 30


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

    found: list[Outcome] = []
    with scripted(act) as server, pytest.raises(MlxmathError, match="401"):
        teacher = Endpoint(server.url, "m", {}, 5.0)
        ask_endpoint(teacher, tasks(50), DistillationConfig(concurrency=3), lambda task: 1, found.append)
    assert len(found) == server.answered.total() == 2


def test_a_stopped_pace_waits_no_longer() -> None:
    pace, stop = Pace(), threading.Event()
    assert pace.wait(stop)
    pace.hold(60)
    threading.Timer(0.05, stop.set).start()
    start = time.monotonic()
    assert not pace.wait(stop) and time.monotonic() - start < 5
