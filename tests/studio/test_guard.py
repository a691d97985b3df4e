"""The token, and the names that a studio has; `test_refused.py` has all who are refused."""

from collections.abc import Callable
from socket import gethostname

import pytest
from starlette.testclient import TestClient

from mlxmath.studio.app import create_app
from mlxmath.studio.guard import TOKEN, Guard
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
    ("host", "is_own"),
    [("10.0.0.1:8765", True), ("[fe80::1]:8765", True), ("localhost:8765", True), (f"{gethostname()}:8765", True),
     ("10.0.0.1:80", False), ("evil.example:8765", False), ("10.0.0.1.nip.example:8765", False)],
)  # fmt: skip
def test_open_to_the_network_it_has_addresses_and_this_machine_s_name(studio: Studio, host: str, is_own: bool) -> None:
    client = TestClient(Guard(create_app(studio), "the-token", "0.0.0.0", 8765), base_url=f"http://{host}")
    assert client.get(f"/runs?{TOKEN}=the-token").status_code == (200 if is_own else 421)


@pytest.mark.parametrize("path", ["//evil.example", "/\\evil.example", "/%5Cevil.example", '/runs">x'])
def test_the_welcome_leads_to_this_server(studio: Studio, clients: Callable[..., TestClient], path: str) -> None:
    text = clients(studio, let_in=False).get(f"http://127.0.0.1:8765{path}?token=the-token").text
    target = text.partition("url=")[2]
    assert target.startswith("/") and target[1] not in "/\\" and target.count('"') == 1
