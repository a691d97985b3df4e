"""A studio without a network: requests go straight to the application, as a browser that was let in sends them."""

from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="starlette is not installed (mlxmath[studio])")
from starlette.testclient import TestClient

from mlxmath.studio.app import create_app
from mlxmath.studio.guard import TOKEN, Guard
from mlxmath.studio.place import Studio

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
