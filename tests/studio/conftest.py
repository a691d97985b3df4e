"""A studio without a network: requests go straight to the application, as a browser that was let in sends them."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="starlette is not installed (mlxmath[studio])")
from starlette.testclient import TestClient

from mlxmath.studio.app import create_app
from mlxmath.studio.guard import TOKEN, Guard
from mlxmath.studio.place import Studio
from tests.studio.browser import CHROMIUM, FLAGS, WIDE, Served, opened

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


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A browser, which a test asks through `visit`."""
    if CHROMIUM is None:
        pytest.skip("no Chromium here (Debian: apt-get install chromium)")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (mlxmath[browser])")
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield launched
        launched.close()


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
