"""Who is refused: without the token, under another name, from another page, with a path that leads out."""

from collections.abc import Callable

import pytest
from starlette.testclient import TestClient

from mlxmath.studio.place import Studio


def test_the_token_lets_in_and_leaves_the_address(studio: Studio, clients: Callable[..., TestClient]) -> None:
    client = clients(studio, let_in=False)
    assert client.get("/runs").status_code == 403
    assert client.get("/runs?token=another").status_code == 403
    welcome = client.get("/runs?token=the-token&sort=name")
    assert welcome.status_code == 200 and 'url=/runs?sort=name"' in welcome.text and "the-token" not in welcome.text
    cookie = welcome.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie
    page = client.get("/runs")
    assert page.status_code == 200 and "default-src 'none'" in page.headers["content-security-policy"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example:8765"}, 421), ({"Host": "127.0.0.1:80"}, 421), ({"Host": "127.0.0.1"}, 421),
        ({"Host": "127.0.0.1.nip.example:8765"}, 421), ({"Host": ""}, 421), ({"Host": "10.0.0.1:8765"}, 421),
        ({"Origin": "http://evil.example"}, 403), ({"Origin": "null"}, 403),
        ({"Origin": "https://127.0.0.1:8765"}, 403),
        ({"Origin": "http://127.0.0.1:8766"}, 403), ({"Origin": "http://localhost:8765"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403), ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Cookie": "mlxmath_studio_8765=wrong"}, 403), ({"Cookie": "mlxmath_studio_8766=the-token"}, 403),
    ],
)  # fmt: skip
def test_what_does_not_come_from_its_own_pages_is_refused(
    studio: Studio, clients: Callable[..., TestClient], headers: dict[str, str], status: int
) -> None:
    client = clients(studio, let_in="Cookie" not in headers)
    for method in ("GET", "POST"):
        assert client.request(method, "/runs", headers=headers).status_code == status


def test_what_changes_something_needs_an_origin_and_is_no_more_than_is_needed(
    studio: Studio, clients: Callable[..., TestClient]
) -> None:
    client = clients(studio)
    del client.headers["origin"]
    assert client.get("/runs").status_code == 200
    assert client.post("/runs").status_code == 403
    client = clients(studio)
    assert client.post("/runs", content=b"x" * 4_000_001).status_code == 413
    assert client.post("/runs", content=iter([b"x"])).status_code == 413


def test_read_only_changes_nothing(studio: Studio, clients: Callable[..., TestClient]) -> None:
    client = clients(Studio(studio.folder, read_only=True))
    assert client.get("/runs").status_code == 200
    for method in ("POST", "PUT", "DELETE"):
        assert client.request(method, "/runs").status_code == 403


@pytest.mark.parametrize("path", ["//evil.example", "/\\evil.example", "/%5Cevil.example", '/runs">x'])
def test_the_welcome_leads_to_this_server(studio: Studio, clients: Callable[..., TestClient], path: str) -> None:
    text = clients(studio, let_in=False).get(f"http://127.0.0.1:8765{path}?token=the-token").text
    target = text.partition("url=")[2]
    assert target.startswith("/") and target[1] not in "/\\" and target.count('"') == 1
