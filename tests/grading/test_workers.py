"""Worker processes: started when needed, killed when they hang, replaced, ended with the parent."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlxmath.grading import cluster, grade, grade_many
from mlxmath.grading.symbolic import wrapped
from mlxmath.grading.workers import Pool

REPOSITORY = Path(__file__).parents[2]
# Short, so it is not refused, but it costs sympy many seconds.
SLOW = r"x^{2} = (10^{7})!"


def run_python(code: str, **options: object) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **options,
    )  # type: ignore[call-overload]


@pytest.fixture
def pool() -> Iterator[Pool]:
    created = Pool(1, limit_s=1.0)
    yield created
    created.close()


def test_a_hung_worker_is_killed_and_replaced(pool: Pool) -> None:
    assert pool.ask("2(x+1)", "2x+2") is True
    start = time.perf_counter()
    assert pool.ask(SLOW, "x^2 = 1") is None
    assert time.perf_counter() - start < 20
    assert pool.ask("2(x+1)", "2x+3") is False
    assert pool.num_started == 2


def test_a_dead_worker_is_replaced(pool: Pool) -> None:
    assert pool.ask("x+y", "y+x") is True
    worker = pool._slots.get()
    assert worker
    worker._process.kill()
    worker._process.wait()
    pool._slots.put(worker)
    assert pool.ask("x+z", "z+x") is None
    assert pool.ask("x+z", "z+x") is True


def test_repeated_questions_are_asked_once(pool: Pool) -> None:
    assert pool.ask("a(b+c)", "ab+ac") is True
    pool.close()
    assert pool.ask("a(b+c)", "ab+ac") is True
    assert pool.num_started == 1


def test_timed_out_is_told() -> None:
    verdict = grade("\\boxed{" + SLOW + "}", "x^2 = 1")
    assert (verdict.correct, verdict.timed_out) == (False, True)


def test_many_from_threads() -> None:
    pairs = [(f"\\boxed{{{n}(x+1)}}", f"{n}x+{n}") for n in range(2, 22)] + [("\\boxed{y}", "z"), ("#### 5", "5")]
    expected = [True] * 20 + [False, True]
    assert [verdict.correct for verdict in grade_many(pairs)] == expected
    verdicts: list[bool] = []
    threads = [threading.Thread(target=lambda p=pair: verdicts.append(grade(*p).correct)) for pair in pairs[:6]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verdicts == [True] * 6
    assert [v.truncated for v in grade_many([("5", "5")] * 2, truncated=[True, False])] == [True, False]


def test_no_worker_without_algebra_and_no_mlx() -> None:
    code = (
        "import sys; from mlxmath.grading import grade, faithfulness, doubt, workers\n"
        "assert grade('\\\\boxed{\\\\frac12}', '0.5').correct; faithfulness('2+2=4', 'two'); doubt('Wait.')\n"
        "heavy = ('mlx', 'sympy', 'numpy', 'multiprocessing')\n"
        "print(workers.pool().num_started, [m for m in sys.modules if m.split('.')[0] in heavy])"
    )
    result = run_python(code)
    assert result.stdout.strip() == "0 []", result.stderr


def test_workers_end_with_the_process_and_scripts_need_no_main_guard() -> None:
    code = (
        "from mlxmath.grading import grade, workers\n"
        "assert grade('\\\\boxed{2(x+1)}', '2x+2').correct\n"
        "print(workers.pool()._slots.get()._process.pid)"
    )
    result = run_python(code)
    assert result.returncode == 0 and not result.stderr, result.stderr
    pid = int(result.stdout)
    for _ in range(50):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("the worker lives on")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_has_its_own_workers() -> None:
    code = (
        "import os; from mlxmath.grading import equal\n"
        "assert equal('2(x+1)', '2x+2')\n"
        "child = os.fork()\n"
        "if child == 0: os._exit(0 if equal('3(x+1)', '3x+3') else 9)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0\n"
        "assert equal('4(x+1)', '4x+4')"
    )
    result = run_python(code)
    assert result.returncode == 0, result.stderr


def test_wrapped() -> None:
    assert wrapped(r"\frac{1}{2}") == r"$\frac{1}{2}$"
    assert wrapped("$x$ and $y$") == "$x$ and $y$"
    assert wrapped("x +\n 1") == "$x + 1$"


def test_cluster() -> None:
    assert cluster(["0.5", None, "7", r"\frac12", "7.0", "x+1", "1+x"]) == [0, None, 2, 0, 2, 5, 5]
