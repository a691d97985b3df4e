"""What the server refuses, asked byte by byte, so that nothing on the way puts a request straight; and what a folder of
others can do to the pages.
"""

import json
import re
import socket
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

import pytest
from starlette.routing import Route

from mlxmath.evaluation.samples import save_samples
from mlxmath.runtime.sealed import sealed_json
from mlxmath.studio.app import create_app
from mlxmath.studio.jobs import Job
from mlxmath.studio.place import Studio
from mlxmath.studio.ratings import ratings_of
from tests.evaluation.make import sample, settings
from tests.studio.answers import rating
from tests.studio.browser import Served
from tests.studio.make import HOSTILE, make_run, rollout, step, write_events

SECRET = "stands outside"


class Place(NamedTuple):
    """Two studios on a folder, the second of which is only to be looked at; beside it lies what nobody may read."""

    folder: Path
    served: Served
    other: Served

    def files(self) -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in self.folder.parent.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("refused") / "work"
    outside = make_run(folder.parent, "outside", "stopped", settings=f"# {SECRET}\n", trouble=SECRET)
    (outside / "config.json").write_text(json.dumps({"model_type": SECRET}))
    (outside / "mlxmath.json").write_text(json.dumps({"source": SECRET}))
    (outside / "rows.jsonl").write_text(json.dumps({"question": SECRET, "answer": "1"}) + "\n")
    sealed_json(outside / "settings.json", settings("base", "tuned"))
    save_samples(outside / "samples.jsonl", [sample(label, response=SECRET) for label in ("base", "tuned")])
    (outside / "report.html").write_text(SECRET)
    linked = make_run(folder, "linked", "stopped")
    (linked / "run.toml").unlink()
    (linked / "run.toml").symlink_to(outside / "run.toml")
    (folder / "link").symlink_to(outside)
    (folder / "link.jsonl").symlink_to(outside / "rows.jsonl")
    served, other = Served(folder), Served(folder, "--read-only")
    yield Place(folder, served, other)
    served.end()
    other.end()


def answered(place: Place, line: str, *changes: str, served: Served | None = None) -> tuple[int, bytes]:
    """What is answered to a request: the status, and all of it.

    It is one that would be let in, but for the changes: "Name: value" in place of a header, "-Name" without one, and
    the body after a line feed. $TOKEN, $PORT and $OUTSIDE are filled in, $OTHER_TOKEN and $OTHER_PORT are those of the
    other server.
    """
    served = served or place.served
    other = place.other if served is place.served else place.served
    body = next((one[1:] for one in changes if one.startswith("\n")), "")
    own = {"Host": "127.0.0.1:$PORT", "Cookie": "mlxmath_studio_$PORT=$TOKEN", "Connection": "close"}
    if not line.startswith(("GET", "HEAD")):
        own |= {"Origin": "http://127.0.0.1:$PORT", "Content-Type": "application/x-www-form-urlencoded"}
        own |= {"Content-Length": str(len(body))}
    changed = [one for one in changes if not one.startswith("\n")]
    names = [one.removeprefix("-").partition(":")[0].strip().lower() for one in changed]
    lines = [line if " HTTP/" in line else f"{line} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in own.items() if name.lower() not in names]
    lines += [one for one in changed if not one.startswith("-")]
    text = "\r\n".join([*lines, "", body])
    port, other_port = urlsplit(served.url).port, urlsplit(other.url).port
    for name, value in {
        "$TOKEN": served.token, "$PORT": f"{port}", "$OTHER_TOKEN": other.token, "$OTHER_PORT": f"{other_port}",
        "$OUTSIDE": str(place.folder.parent / "outside"),
    }.items():  # fmt: skip
        text = text.replace(name, value)
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(text.encode("latin-1"))
        found = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    return int(found.split(None, 2)[1]), found


FORM = "start=recipe%3Ddemo&adapter_path="
EVALUATE = "benchmark=demo&limit=1&adapter=&model="

TRIES: list[tuple[Any, ...]] = [
    # without the token, or with another's
    ("no token", 403, "GET /runs", "-Cookie"),
    ("a wrong token", 403, "GET /runs?token=wrong", "-Cookie"),
    ("half of the token", 403, "GET /runs", "Cookie: mlxmath_studio_$PORT=" + "A" * 16),
    ("an empty token", 403, "GET /runs?token=", "Cookie: mlxmath_studio_$PORT="),
    ("the token of another server", 403, "GET /runs?token=$OTHER_TOKEN", "-Cookie"),
    ("another server's token as a cookie", 403, "GET /runs", "Cookie: mlxmath_studio_$PORT=$OTHER_TOKEN"),
    ("the cookie of another port", 403, "GET /runs", "Cookie: mlxmath_studio_$OTHER_PORT=$TOKEN"),
    ("the token of a POST's address", 403, "POST /rate/undo?token=$TOKEN", "-Cookie"),
    ("the token in another header", 403, "GET /runs", "-Cookie", "Authorization: Bearer $TOKEN"),
    ("a file of the pages without a token", 403, "GET /static/studio.css", "-Cookie"),
    # under another name
    ("a foreign Host", 421, "GET /runs", "Host: evil.example:$PORT"),
    ("a name that leads here", 421, "GET /runs", "Host: 127.0.0.1.nip.example:$PORT"),
    ("another address of this machine", 421, "GET /runs", "Host: 10.0.0.1:$PORT"),
    ("a Host without the port", 421, "GET /runs", "Host: 127.0.0.1"),
    ("a Host of another port", 421, "GET /runs", "Host: 127.0.0.1:$OTHER_PORT"),
    ("a Host with more behind it", 421, "GET /runs", "Host: 127.0.0.1:$PORT.evil.example"),
    ("a Host with a user", 421, "GET /runs", "Host: 127.0.0.1:$PORT@evil.example"),
    ("a Host with a dot", 421, "GET /runs", "Host: localhost.:$PORT"),
    ("an empty Host", 421, "GET /runs", "Host:"),
    ("no Host", 421, "GET /runs HTTP/1.0", "-Host"),
    ("no Host, of today", 400, "GET /runs", "-Host"),
    ("two Hosts", 400, "GET /runs", "Host: 127.0.0.1:$PORT", "Host: evil.example:$PORT"),
    ("two Hosts, the other first", 400, "GET /runs", "Host: evil.example", "Host: 127.0.0.1:$PORT"),
    ("a Host that a proxy names", 421, "GET /runs", "Host: evil.example", "X-Forwarded-Host: 127.0.0.1:$PORT"),
    ("a whole address as path", 404, "GET http://evil.example/runs"),
    ("a whole address, even ours", 404, "GET http://127.0.0.1:$PORT/runs"),
    # from another page
    ("a foreign Origin", 403, "GET /runs", "Origin: http://evil.example"),
    ("a foreign Origin that sends", 403, "POST /rate/undo", "Origin: http://evil.example"),
    ("a sandboxed page", 403, "POST /rate/undo", "Origin: null"),
    ("another port's page", 403, "POST /rate/undo", "Origin: http://127.0.0.1:$OTHER_PORT"),
    ("a page of https", 403, "POST /rate/undo", "Origin: https://127.0.0.1:$PORT"),
    ("our page under another name", 403, "POST /rate/undo", "Origin: http://localhost:$PORT"),
    ("two Origins", 403, "POST /rate/undo", "Origin: http://127.0.0.1:$PORT", "Origin: http://evil.example"),
    ("no Origin", 403, "POST /rate/undo", "-Origin"),
    ("another site's script", 403, "GET /runs", "Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: no-cors"),
    ("another host's script", 403, "GET /runs", "Sec-Fetch-Site: same-site"),
    ("a frame of another site", 403, "GET /runs", "Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate",
     "Sec-Fetch-Dest: iframe"),
    ("another site that sends", 403, "POST /rate/undo", "Sec-Fetch-Site: cross-site"),
    ("a form of another site", 403, "POST /rate/undo", "Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate",
     "Sec-Fetch-Dest: document"),
    ("another site that asks beforehand", 403, "OPTIONS /rate/undo", "Origin: http://evil.example",
     "Access-Control-Request-Method: POST"),
    ("a socket of another site", 403, "GET /runs", "Origin: http://evil.example", "Connection: close, Upgrade",
     "Upgrade: websocket", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", "Sec-WebSocket-Version: 13"),
    # paths that lead out
    ("dots", 422, "GET /runs/../outside"),
    ("coded dots", 422, "GET /runs/%2e%2e/outside/run.toml"),
    ("dots that are coded twice", 404, "GET /runs/%252e%252e/outside"),
    ("two slashes", 422, "GET /runs/$OUTSIDE"),
    ("an absolute path", 422, "GET /evaluations/%2Fetc"),
    ("backslashes", 404, "GET /runs/..\\outside"),
    ("coded backslashes", 404, "GET /runs/..%5Coutside/run.toml"),
    ("a zero byte", 422, "GET /runs/a%00b"),
    ("a name that is too long", 422, "GET /runs/" + "a" * 5000),
    ("a run beyond a link", 422, "GET /runs/link"),
    ("its settings", 422, "GET /runs/link/run.toml"),
    ("its curves", 422, "GET /runs/link/data?since="),
    ("settings that are a link", 404, "GET /runs/linked/run.toml"),
    ("runs over one another", 422, "GET /runs/over?run=linked&run=../outside"),
    ("a run to go on with", 422, "POST /runs/link/resume"),
    ("a run to stop", 422, "POST /runs/..%2Foutside/stop"),
    ("a command of elsewhere", 404, "POST /jobs/..%2F..%2Foutside/stop"),
    ("an evaluation beyond a link", 422, "GET /evaluations/link"),
    ("its report", 422, "GET /evaluation-report/link"),
    ("its problems", 422, "GET /evaluation-problems/..%2Foutside"),
    ("its answers to compare", 422, "GET /compare?evaluation=link&problem=b%2F0"),
    ("its answers to rate", 422, "GET /rate?source=link"),
    ("its pairs", 422, "GET /rate/next?source=link&rater=A&one=0&other=1"),
    ("problems of a file that is a link", 422, "GET /compare/problem?source=link.jsonl"),
    ("rows of a file that is a link", 422, "GET /new/rows?recipe=demo&dataset=link.jsonl"),
    ("rows with the tokenizer of a model elsewhere", 422, "GET /new/rows?recipe=demo&model=link"),
    ("a model that is a link", 422, "POST /evaluations-start", f"\n{EVALUATE}link"),
    ("a model elsewhere", 422, "POST /rate/start", f"\n{EVALUATE}..%2Foutside&rater=A"),
    ("a run that is written elsewhere", 422, "POST /new/start", f"\n{FORM}..%2Fx"),
    ("a run that is written through a link", 422, "POST /new/start", f"\n{FORM}link%2Fx"),
    ("pairs that are written elsewhere", 422, "POST /rate/export", "\nname=..%2Fx.jsonl"),
    ("pairs that are written through a link", 422, "POST /rate/export", "\nname=link%2Fx.jsonl"),
    ("pairs over what a link leads to", 422, "POST /rate/export", "\nname=link.jsonl&overwrite=on"),
    ("the code beside the pages' files", 404, "GET /static/../guard.py"),
    ("the same, coded", 404, "GET /static/vendor/%2e%2e/%2e%2e/guard.py"),
    ("the same with backslashes", 404, "GET /static/..%5Cguard.py"),
    ("an absolute path of theirs", 404, "GET /static//etc/hostname"),
    ("a zero byte of theirs", 404, "GET /static/%00"),
    # what is sent
    ("text for a form", 415, "POST /new/start", "Content-Type: text/plain", f"\n{FORM}x"),
    ("JSON for a form", 415, "POST /new/start", "Content-Type: application/json", '\n{"start": "recipe=demo"}'),
    ("a form that does not say so", 415, "POST /new/start", "-Content-Type", f"\n{FORM}x"),
    ("parts without a boundary", 400, "POST /new/start", "Content-Type: multipart/form-data", f"\n{FORM}x"),
    ("too much", 413, "POST /rate/export", "Content-Length: 4000001"),
    ("nobody knows how much", 413, "POST /rate/export", "-Content-Length", "Transfer-Encoding: chunked", "\n0\r\n\r\n"),
    ("two ways to tell how much", 413, "POST /rate/export", "Content-Length: 3", "Transfer-Encoding: chunked",
     "\n0\r\n\r\n"),
    ("two lengths", 400, "POST /rate/export", "Content-Length: 4", "Content-Length: 5", "\nname=a"),
    ("a length below 0", 400, "POST /rate/export", "Content-Length: -1", "\nname=a"),
    ("a length that is none", 400, "POST /rate/export", "Content-Length: 0x10", "\nname=a"),
    ("a length with a space before it", 400, "POST /rate/export", "-Content-Length", "Content-Length : 6", "\nname=a"),
    ("another coding", 400, "POST /rate/export", "-Content-Length", "Transfer-Encoding: xchunked", "\nname=a"),
    ("a request within another", 403, "POST /rate/export", "Origin: http://evil.example",
     "\nGET /runs HTTP/1.1\r\nHost: 127.0.0.1:$PORT\r\nCookie: mlxmath_studio_$PORT=$TOKEN\r\n\r\n"),
    ("a header with a zero byte", 400, "GET /runs", "X: a\0b"),
    ("no HTTP", 400, "hello there HTTP/x"),
    *((f"the method {one}", 405, f"{one} /runs") for one in ("PUT", "DELETE", "PATCH", "TRACE", "OPTIONS", "BREW")),
    ("the method PUT of a file", 405, "PUT /static/studio.css", "\nx"),
    ("a tunnel", 404, "CONNECT 127.0.0.1:22"),
]  # fmt: skip


@pytest.mark.parametrize(("status", "line", "changes"), [(*one[1:3], one[3:]) for one in TRIES], ids=[
    one[0] for one in TRIES
])  # fmt: skip
def test_it_is_refused(place: Place, status: int, line: str, changes: tuple[str, ...]) -> None:
    before = place.files()
    found, answer = answered(place, line, *changes)
    assert found == status, answer.decode(errors="replace")[:2000]
    assert answer.count(b"HTTP/1.1 ") == 1 and b"access-control" not in answer.lower()
    for hidden in (SECRET, place.served.token, place.other.token):
        assert hidden.encode() not in answer
    assert place.files() == before


ROUTES = [route for route in create_app(Studio(Path("/nowhere"))).routes if isinstance(route, Route)]
SENDS = [route.path for route in ROUTES if "POST" in (route.methods or ())]
CHANGE = "name=x.jsonl&source=link.jsonl&rater=A&verdict=left&ticket=x&adapter_path=x&job=x&who=&question=x"


def filled(path: str) -> str:
    return re.sub(r"\{name(:path)?\}", "linked", path).replace("{id}", "x")


def test_what_is_asked_for_changes_nothing_and_what_changes_something_is_sent(place: Place) -> None:
    before = place.files()
    assert len(SENDS) > 15 and all(route.methods in ({"POST"}, {"GET", "HEAD"}) for route in ROUTES)
    for method in ("GET", "HEAD"):
        for path in [route.path for route in ROUTES] if method == "GET" else SENDS:
            status, answer = answered(place, f"{method} {filled(path)}?{CHANGE}")
            assert status < 500, answer
            assert status in (404, 405) or path not in SENDS or path == "/new", answer  # which shows the form, too
    assert place.files() == before


@pytest.mark.parametrize("path", SENDS)
def test_a_studio_to_look_at_is_sent_nothing(place: Place, path: str) -> None:
    before = place.files()
    status, answer = answered(place, f"POST {filled(path)}", f"\n{CHANGE}", served=place.other)
    assert status == 403 and b"opened with --read-only" in answer and place.files() == before


def test_it_lets_in_whom_it_should(place: Place) -> None:
    """Else the table above says nothing."""
    for changes in ((), ("Host: LOCALHOST:$PORT",), ("Sec-Fetch-Site: same-origin", "Origin: http://127.0.0.1:$PORT")):
        status, answer = answered(place, "GET /runs", *changes)
        assert status == 200 and b"linked" in answer
    assert answered(place, "POST /compare/end")[0] == 204
    assert answered(place, "GET /runs?token=$TOKEN", "-Cookie")[0] == 200
    navigation = ("Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document")
    assert answered(place, "GET /runs", *navigation)[0] == 200  # somebody follows a link


NAME = "<img src=x onerror=alert(1)>'\"&\u202e\u2066\x1b[2Jjavascript:alert(1)"
DEEP = "<!--</script><script>document.title='owned'</script>"


@pytest.fixture
def hostile(folder: Path) -> Path:
    """A folder of which every name and text is hostile."""
    verdict = {"said": HOSTILE, "difference": 0.1, "low": 0.0, "high": 0.2, "p_value": 0.5, "benchmark": HOSTILE}
    validation = {"metric": HOSTILE, "best": {HOSTILE: 1.0, "step": 1}}
    for name in (NAME, DEEP):
        run = make_run(
            folder, name, "stopped", training={"judge": HOSTILE, HOSTILE: name}, method=HOSTILE, verdict=verdict,
            validation=validation, settings=f'[training]\njudge = """{HOSTILE.translate({27: None})}"""\n',
        )  # fmt: skip
        shown = dict.fromkeys(("question", "gold", "completion", "extracted"), HOSTILE)
        write_events(run / "events.jsonl", step(6, **{HOSTILE: 1.0}), rollout(6, **shown))
        (run / "best").mkdir()
        (run / "best" / "adapters.safetensors").write_bytes(b"x")
    (folder / f"{NAME}.jsonl").write_text(json.dumps({"question": HOSTILE, "answer": HOSTILE}) + "\n")
    (folder / f"{NAME}.gguf").write_bytes(b"")
    for name in (NAME, DEEP):
        job = Job(f"2026-{len(name)}", "train", ["train", f"--adapter-path={name}/x", HOSTILE], 4e9, 1, 0.0, 1)
        noted = folder / "studio" / "jobs" / job.id
        noted.mkdir(parents=True)
        (noted / "job.json").write_text(json.dumps(asdict(job)))
        (noted / "log").write_text(HOSTILE)
    evaluation = folder / "answers" / NAME
    evaluation.mkdir(parents=True)
    labels = (HOSTILE, f"{HOSTILE} tuned")
    sealed_json(evaluation / "settings.json", settings(*labels))
    changes = dict.fromkeys(("question", "solution", "gold", "subject", "level", "rule"), HOSTILE)
    save_samples(evaluation / "samples.jsonl", [
        sample(label, number, HOSTILE, id=f"{HOSTILE}/{number}", response=f"{HOSTILE}\n{label}", **changes)
        for label in labels for number in range(2)
    ])  # fmt: skip
    source = f"answers/{NAME}"
    ratings_of(Studio(folder)).add(rating(
        0, "left", HOSTILE.replace("\x1b", ""), source=source, comment=HOSTILE, question=HOSTILE, benchmark=HOSTILE,
        left_label=HOSTILE, left_text=HOSTILE, right_text=HOSTILE, right_wrong_step=1, right_wrong_text=HOSTILE,
    ))  # fmt: skip
    return folder


def test_a_hostile_folder_is_only_text(hostile: Path, visit: Callable[..., Any]) -> None:
    name, deep, answers, data = quote(NAME, ""), quote(DEEP), quote(f"answers/{NAME}"), quote(f"{NAME}.jsonl", "")
    problem = quote(f"{HOSTILE}/1", "")
    pages = {
        f"/runs?q=script&sort={quote(HOSTILE, '')}": "2 of 2 runs", f"/runs/{name}": "6 steps, read in",
        f"/runs/{deep}": "6 steps, read in", f"/runs/{name}/x": "Log",
        f"/runs/over?run={name}&run={deep}": "12 steps, read in", f"/new?from={name}": "Command line",
        f"/new?recipe=demo&dataset={data}&adapter_path={name}&judge={quote(HOSTILE, '')}": "Command line",
        f"/compare?evaluation={answers}&problem={problem}": "side by side", "/evaluations": "tuned",
        f"/evaluations/{answers}?problem={problem}&search=script": "ask these models again", "/rate": "tuned",
        f"/rate?source={answers}": "Begin",
        f"/rate/next?source={answers}&rater={quote('<b>Ann')}&one=0&other=1": "0 of 2 rated",
        "/rate/results": "Who has rated what",
    }  # fmt: skip
    tab = visit("/runs")
    origin = tab.url.removesuffix("/runs")
    for path, sign in pages.items():
        tab.goto(f"{origin}{path}")
        tab.get_by_text(sign).first.wait_for()
        for _ in range(2):  # what one holds may have to be asked for, and hold another
            tab.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
            tab.wait_for_load_state("networkidle")
        assert tab.title() != "owned", path
        odd = "img, iframe, object, embed, base, svg script, script:not([src]), [onerror], [onclick], [onload]"
        assert tab.locator(odd).count() == 0, path
        assert tab.locator("a[href^='javascript' i], form[action^='javascript' i]").count() == 0, path
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", tab.content()), path
