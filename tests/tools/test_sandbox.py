"""Programs that a model wrote: right ones give what Python gives, a thousand attempts to leave are contained."""

import contextlib
import importlib
import re
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import sympy

from mlxmath.errors import InputError
from mlxmath.runtime.bounded import OverrunError, Pool
from mlxmath.tools import run as running
from mlxmath.tools.interpreter import MOST_OUTPUT
from mlxmath.tools.names import SYMPY
from mlxmath.tools.run import check, run
from tests.tools.probes import RAW, Probe, probes
from tests.tools.programs import BEFORE, LINES, WHOLE

CASES = [tuple(line.split(" → ")) for line in LINES.strip().splitlines()]
REFUSED = ("introspection", "functions", "unicode", "imports", "files", "network", "processes", "text for SymPy")
"""Kinds of which no attempt may have a value."""


def one_process(limit_s: float) -> Iterator[None]:
    """Programs run in one process, with so much processor time each."""
    with pytest.MonkeyPatch.context() as patch:
        pool = Pool("mlxmath.tools.worker", 1, limit_s, 1 << 30)
        if reason := pool.reply(["1"]).get("open"):
            pytest.skip(f"programs cannot be confined here: {reason}")
        patch.setattr(running, "own", lambda _: pool)
        yield
        pool.close()


@pytest.fixture(scope="module")
def patient() -> Iterator[None]:
    """More time than a right program takes on a machine that is busy."""
    yield from one_process(5.0)


@pytest.fixture
def quick() -> Iterator[None]:
    """Half a second, which is enough to see that a program has no end."""
    yield from one_process(0.5)


@pytest.fixture(scope="module")
def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.mark.usefixtures("patient")
def test_what_sympy_gives() -> None:
    wrong = {line: (found, text) for line, text in CASES if (found := run("python", [BEFORE, line])) != text}
    assert not wrong
    named = set(re.findall(r"\w+", LINES))
    assert not [name for name in SYMPY - named if name not in BEFORE and hasattr(sympy, name)]  # none without its case


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("name", WHOLE)
def test_whole_programs(name: str) -> None:
    program, output = WHOLE[name]
    assert run("python", [program]) == output.strip("\n")


@pytest.mark.usefixtures("patient")
def test_names_stay_from_one_call_of_an_answer_to_the_next_and_no_further() -> None:
    assert run("python", ["a = 6\nprint('not seen')", "print(a * 7)"]) == "42"
    assert run("python", ["print(a * 7)"]) == "NameError: name 'a' is not defined"


@pytest.mark.usefixtures("quick")
def test_a_thousand_probes_are_contained(tmp_path: Path, closed_port: int) -> None:
    marker = tmp_path / "escaped"
    table = list(probes(str(marker), closed_port))
    kinds = Counter(probe.kind for probe in table)
    assert len(table) + sum(len(lines(kind)) for kind in RAW) >= 1000 and min(kinds.values()) >= 3
    children = set(psutil.Process().children(recursive=True))
    start = time.monotonic()
    wrong = [probe for probe in table if not contained(probe, marker)]
    assert not wrong and not list(tmp_path.iterdir())
    assert time.monotonic() - start < 60
    assert run("python", ["print(6 * 7)"]) == "42"  # the last one has harmed nobody
    assert len(set(psutil.Process().children(recursive=True)) - children) <= 1


def contained(probe: Probe, marker: Path) -> bool:
    """Whether what comes back is harmless, and an error where it must be."""
    found = run("python", ["from sympy import *\nimport math, sympy, itertools\nx = Symbol('x')", probe.program]) or ""
    is_error = "not allowed" in found or "Error" in found or "nested" in found or "called, by their" in found
    return (
        len(found) <= MOST_OUTPUT + 250
        and all(c.isprintable() or c in "\n\t" for c in found)
        and "```" not in found
        and not marker.exists()
        and (is_error or probe.kind not in REFUSED or not found)
    )


def lines(kind: str) -> list[str]:
    return [line.strip() for line in RAW[kind].strip().splitlines()]


@pytest.fixture(scope="module")
def raw() -> Iterator[Pool]:
    if sys.platform != "linux":
        pytest.skip("seccomp is Linux's")
    pool = Pool("tests.tools.raw_worker", 1, 0.5, 512 << 20)
    if (said := pool.reply("found = 1")) != "done 1":
        pytest.skip(f"programs cannot be confined here: {said}")
    yield pool
    pool.close()


@pytest.mark.parametrize("kind", RAW)
def test_what_gets_past_the_tree_is_held_by_the_system(raw: Pool, kind: str, tmp_path: Path, closed_port: int) -> None:
    marker = tmp_path / "escaped"
    for line in lines(kind):
        program = f"MARKER, PORT = {str(marker)!r}, {closed_port}\n{line}"
        try:
            found = raw.reply(program)
        except OverrunError:
            found = "OverrunError"
        assert "Error" in found and "NameError" not in found, (line, found)
        assert not list(tmp_path.iterdir()), line


@pytest.mark.parametrize("line", ["while True: pass", "import time; time.sleep(60)", "import os; os._exit(3)",
                                  "import os; os.abort()"])  # fmt: skip
def test_what_does_not_come_back_is_ended_and_replaced(raw: Pool, line: str) -> None:
    start = time.monotonic()
    with contextlib.suppress(OverrunError):
        assert "Error" in raw.reply(line)
    assert time.monotonic() - start < 30
    assert raw.reply("found = 1") == "done 1"


def test_where_nothing_confines_a_process_no_program_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    confining, worker = (importlib.import_module(f"mlxmath.tools.{name}") for name in ("confine", "worker"))

    def cannot() -> None:
        raise confining.NotConfined("seccomp: Invalid argument")

    monkeypatch.setattr(worker, "confine", cannot)
    monkeypatch.setattr(worker, "_state", {})

    class Here:
        def reply(self, request: list[str]) -> dict[str, str]:
            worker.work([])
            return worker.work(request)

    monkeypatch.setattr(running, "own", lambda _: Here())
    with pytest.raises(InputError, match="seccomp: Invalid argument.*Use calculator"):
        check("python")
    check("calculator")
    check(None)
