"""A studio without a network: requests go straight to the application, as a browser that was let in sends them."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="starlette is not installed (mlxmath[studio])")
from starlette.testclient import TestClient

from mlxmath.studio.app import create_app
from mlxmath.studio.guard import TOKEN, Guard
from mlxmath.studio.place import Studio
from tests.helpers import ENVIRONMENT
from tests.studio.browser import WIDE, Served, opened

ORIGIN = "http://127.0.0.1:8765"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "work"
    made.mkdir()
    return made


@pytest.fixture
def studio(folder: Path) -> Studio:
    return Studio(folder)


@pytest.fixture
def clients() -> Callable[..., TestClient]:
    """Makes a client of a studio; without `let_in` it has no cookie."""

    def make(studio: Studio, *, let_in: bool = True) -> TestClient:
        guarded = Guard(create_app(studio), "the-token", "127.0.0.1", 8765, read_only=studio.read_only)
        client = TestClient(guarded, base_url=ORIGIN, headers={"Origin": ORIGIN}, follow_redirects=False)
        if let_in:
            assert client.get(f"/runs?{TOKEN}=the-token").status_code == 200
        return client

    return make


@pytest.fixture
def client(studio: Studio, clients: Callable[..., TestClient]) -> TestClient:
    return clients(studio)


HELD = """
import sys, time
from pathlib import Path
from mlxmath.runtime.locks import locked
with locked(Path(sys.argv[1]), "--adapter-path", sys.argv[2]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holding() -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Starts a process that works on a run's folder, as far as others can tell."""
    started = []

    def start(folder: Path, command: str = "mlxmath train") -> "subprocess.Popen[str]":
        started.append(subprocess.Popen(
            [sys.executable, "-c", HELD, str(folder), command], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
        ))  # fmt: skip
        assert started[-1].stdout is not None and started[-1].stdout.readline() == "held\n"
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def serving(folder: Path) -> Iterator[Callable[..., Served]]:
    """Starts `mlxmath studio` on the folder, with further options."""
    started: list[Served] = []

    def start(*options: str) -> Served:
        started.append(Served(folder, *options))
        return started[-1]

    yield start
    for served in started:
        served.end()


@pytest.fixture
def visit(chromium: Any, serving: Callable[..., Served]) -> Iterator[Callable[..., Any]]:
    """Opens a page of the studio on `folder` in a tab of its own; at the end nothing may have gone wrong in any.

    `visit("/runs")`, with `size=PHONE`, `is_dark=True`, or `served=` for one that the test has started itself. What a
    test expects to go wrong it takes out of `visit.troubles`.
    """
    own: list[Served] = []
    troubles: list[list[str]] = []

    def visited(path: str, size: tuple[int, int] = WIDE, *, is_dark: bool = False, served: Served | None = None) -> Any:
        if served is None:
            if not own:
                own.append(serving())
            served = own[0]
        tab, found = opened(chromium, served, path, size, is_dark=is_dark)
        troubles.append(found)
        return tab

    visited.troubles = troubles  # type: ignore[attr-defined]
    yield visited
    for context in chromium.contexts:
        context.close()
    assert [each for found in troubles for each in found] == []
