"""Downloads, against a small stand-in for the hub on this machine."""

import errno
import hashlib
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

from mlxmath.config.schema import ModelConfig
from mlxmath.errors import InputError, MlxmathError
from mlxmath.weights.convert import ensure_model
from mlxmath.weights.download import needed_files
from mlxmath.weights.hub import fetch, is_source
from tests.weights.gguf_models import llama_gguf
from tests.weights.handmade import llama_folder

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_secretsecretsecretsecretsecret"
REPO = "owner/tiny"


class Hub:
    """One repository; `status` answers every request with an error, `asked` holds the files that were sent."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.status, self.code = folder, 200, ""
        self.asked: list[str] = []
        self.first_bytes: list[int] = []
        self.cut_after: int | None = None

    def files(self) -> list[Path]:
        return sorted(path for path in self.folder.rglob("*") if path.is_file())

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(request.path).path)
        if self.status != 200:
            return self.send(request, self.status, b"{}", {"X-Error-Code": self.code} if self.code else {})
        if f"/api/models/{REPO}" in path and ("/revision/" in path or path.endswith(REPO)):
            if path.rsplit("/", 1)[1] not in ("main", COMMIT, "tiny", "v1"):
                return self.send(request, 404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            names = [
                {"rfilename": file.relative_to(self.folder).as_posix(), "size": file.stat().st_size}
                for file in self.files()
            ]
            body = {"id": REPO, "sha": COMMIT, "siblings": names, "private": False, "downloads": 0, "tags": []}
            return self.send(request, 200, json.dumps(body).encode())
        if f"/api/models/{REPO}/tree/" in path:
            entries = [self.entry(file) for file in self.files()]
            return self.send(request, 200, json.dumps(entries).encode())
        prefix = f"/{REPO}/resolve/"
        if path.startswith(prefix):
            name = path.removeprefix(prefix).split("/", 1)[1]
            data = (self.folder / name).read_bytes()
            if request.command == "GET":
                self.asked.append(name)
            headers = {"ETag": f'"{self.etag(data, name)}"', "X-Repo-Commit": COMMIT}
            return self.send(request, 200, data, headers)
        return self.send(request, 404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def etag(self, data: bytes, name: str) -> str:
        if name.endswith((".bin", ".safetensors")):
            return hashlib.sha256(data).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()

    def entry(self, file: Path) -> dict[str, object]:
        data, name = file.read_bytes(), file.relative_to(self.folder).as_posix()
        found: dict[str, object] = {"type": "file", "path": name, "size": len(data), "oid": self.etag(data, "x")}
        if name.endswith((".bin", ".safetensors")):
            found["lfs"] = {"oid": self.etag(data, name), "size": len(data), "pointerSize": 130}
        return found

    def send(
        self, request: BaseHTTPRequestHandler, status: int, data: bytes, headers: dict[str, str] | None = None
    ) -> None:
        start = 0
        wanted = request.headers.get("Range", "")
        if status == 200 and wanted.startswith("bytes="):
            start = int(wanted.removeprefix("bytes=").split("-")[0])
        if request.command == "GET" and status == 200:
            self.first_bytes.append(start)
        request.send_response(206 if start else status)
        for key, value in (headers or {}).items():
            request.send_header(key, value)
        request.send_header("Content-Length", str(len(data) - start))
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        request.end_headers()
        if request.command == "GET":
            body = data[start:]
            if self.cut_after is not None and len(body) > self.cut_after:
                body = body[: self.cut_after]
                request.close_connection = True
            request.wfile.write(body)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.utils._http._DEFAULT_RETRY_ON_STATUS_CODES", (), raising=False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return tmp_path / "cache"


@pytest.fixture
def server(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    folder = llama_folder(tmp_path / "repository", shards=2)
    (folder / "modeling.py").write_text("raise SystemExit")
    (folder / "README.md").write_text("x")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "config.json").write_text("{}")
    found = Hub(folder)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            found.handle(self)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, args=(0.02,))
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{http.server_port}")
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE",
                        constants.ENDPOINT + "/{repo_id}/resolve/{revision}/{filename}")  # fmt: skip
    yield found
    http.shutdown()
    thread.join()
    http.server_close()


@pytest.fixture
def unplug(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def cut() -> None:
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")

    return cut


NEEDED = {
    "config.json",
    "tokenizer.json",
    "pytorch_model.bin.index.json",
    "pytorch_model-00001-of-00002.bin",
    "pytorch_model-00002-of-00002.bin",
}


def test_download_of_what_is_needed(server: Hub, cache: Path) -> None:
    source = fetch(REPO)
    assert (source.name, source.revision) == (REPO, COMMIT)
    assert {p.name for p in source.folder.iterdir()} == NEEDED == set(server.asked)


def test_code_is_downloaded_only_when_trusted(server: Hub) -> None:
    assert (fetch(REPO, trust_remote_code=True).folder / "modeling.py").exists()


def test_convert_and_use_again_without_the_network(
    server: Hub, tmp_path: Path, unplug: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    config = ModelConfig(model=REPO, mlx_path=str(tmp_path / "mlx_model"))
    first = ensure_model(config)
    assert (first.source, first.revision) == (REPO, COMMIT)
    unplug()
    assert ensure_model(config) == first
    assert ensure_model(config.model_copy(update={"revision": COMMIT})) == first
    assert ensure_model(config.model_copy(update={"revision": "main"})) == first
    with pytest.raises(InputError, match="--revision v1 was asked for"):
        ensure_model(config.model_copy(update={"revision": "v1"}))
    assert TOKEN not in capsys.readouterr().err


def test_the_cache_serves_offline(server: Hub, unplug: Callable[[], None]) -> None:
    folder = fetch(REPO).folder
    unplug()
    assert fetch(REPO).folder == folder
    assert fetch(REPO, COMMIT).folder == folder


def test_an_incomplete_cache_does_not(server: Hub, unplug: Callable[[], None]) -> None:
    (fetch(REPO).folder / "pytorch_model-00002-of-00002.bin").unlink()
    unplug()
    with pytest.raises(MlxmathError, match="cannot download owner/tiny .* does not hold all of it"):
        fetch(REPO)


def test_an_interrupted_download_is_continued(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file goes on where it was, in another run."""
    monkeypatch.setattr("mlxmath.weights.download.MIN_BYTES", 10_000)
    monkeypatch.setattr("mlxmath.weights.resume.ATTEMPTS", 0)
    server.cut_after = 50_000
    with pytest.raises(MlxmathError, match="cannot download .*a partial download is continued") as caught:
        fetch(REPO)
    assert TOKEN not in str(caught.value)
    server.cut_after = None
    server.first_bytes.clear()
    manifest = ensure_model(ModelConfig(model=REPO, mlx_path=str(tmp_path / "mlx_model")))
    local = ensure_model(ModelConfig(model=str(server.folder), mlx_path=str(tmp_path / "local")))
    assert manifest.fingerprint == local.fingerprint
    assert max(server.first_bytes) == 50_000


def test_a_connection_that_is_cut_again_and_again(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on as long as something comes; the file is what the repository has, or refused."""
    monkeypatch.setattr("mlxmath.weights.download.MIN_BYTES", 60_000)
    server.cut_after = 20_000
    name = "pytorch_model-00001-of-00002.bin"
    monkeypatch.setattr("mlxmath.weights.download.needed_files", lambda *_, **__: [name])
    assert (fetch(REPO).folder / name).read_bytes() == (server.folder / name).read_bytes()
    assert [start for start in server.first_bytes if start] == [20_000, 40_000, 60_000, 80_000, 100_000]
    assert not list((fetch(REPO).folder.parent.parent / "blobs").glob("*.part"))


def test_what_is_not_the_file_is_refused(server: Hub, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setattr("mlxmath.weights.download.MIN_BYTES", 60_000)
    blobs = cache / "models--owner--tiny" / "blobs"
    blobs.mkdir(parents=True)
    data = (server.folder / "pytorch_model-00001-of-00002.bin").read_bytes()
    part = blobs / f"{hashlib.sha256(data).hexdigest()}.part"
    part.write_bytes(b"x" * 1000)
    with pytest.raises(MlxmathError, match="did not come as it is in the repository"):
        fetch(REPO)
    assert not part.exists()
    fetch(REPO)


def test_unreachable(cache: Path, unplug: Callable[[], None]) -> None:
    unplug()
    with pytest.raises(MlxmathError, match="cannot download owner/tiny") as caught:
        fetch(REPO)
    assert "\n" not in str(caught.value)
    assert TOKEN not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "code", "kind", "message"),
    [
        (404, "RepoNotFound", InputError, "no such repository"),
        (401, "RepoNotFound", InputError, "no such repository"),
        (403, "GatedRepo", MlxmathError, "is gated: accept its terms"),
        (401, "GatedRepo", MlxmathError, "is gated: accept its terms"),
        (418, "", MlxmathError, "HTTP status 418"),
    ],
)
def test_refusals(server: Hub, status: int, code: str, kind: type[MlxmathError], message: str) -> None:
    server.status, server.code = status, code
    with pytest.raises(kind, match=message) as caught:
        fetch(REPO)
    assert REPO in str(caught.value)
    assert TOKEN not in str(caught.value)
    assert caught.value.__suppress_context__


def test_unknown_revision(server: Hub) -> None:
    with pytest.raises(InputError, match="--revision nope: owner/tiny has no such"):
        fetch(REPO, "nope")


def test_full_disk(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("huggingface_hub.snapshot_download", full)
    with pytest.raises(MlxmathError, match="no space left for owner/tiny"):
        fetch(REPO)


@pytest.mark.parametrize(
    "name", ["./absent", "/absent/model", "~/absent-model", "a/b/c", "absent\\model", "absent.gguf"]
)
def test_a_path_that_does_not_exist(name: str, unplug: Callable[[], None]) -> None:
    unplug()
    with pytest.raises(InputError, match="does not exist; expected a model folder"):
        fetch(name)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(MlxmathError, match=r"expected a folder with .* or with a \.gguf file"):
        ensure_model(ModelConfig(model=str(tmp_path), mlx_path=str(tmp_path / "out")))


def test_names_that_cannot_be(tmp_path: Path, server: Hub) -> None:
    with pytest.raises(InputError, match="neither an existing folder nor a repository name"):
        fetch("what is this?")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file"):
        fetch(str(tmp_path / "file"))
    with pytest.raises(InputError, match="has no revisions"):
        fetch(str(tmp_path), "main")


def test_needed_files() -> None:
    names = ["config.json", "model.safetensors", "pytorch_model.bin", "tokenizer.model", "a.py", "x/config.json",
             "chat_template.jinja", "additional_chat_templates/a.jinja", "LICENSE", "training_args.bin"]  # fmt: skip
    assert set(needed_files(names)) == {
        "config.json", "model.safetensors", "tokenizer.model", "chat_template.jinja",
        "additional_chat_templates/a.jinja", "LICENSE",
    }  # fmt: skip
    assert "a.py" in needed_files(names, trust_remote_code=True)
    assert "pytorch_model.bin" in needed_files([n for n in names if n != "model.safetensors"])


def test_is_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "model").mkdir(parents=True)
    assert is_source("owner/model", str(tmp_path / "owner" / "model"))
    assert not is_source("owner/model", "owner/model")  # a folder of that name goes first
    assert is_source("owner/other", "owner/other")
    assert is_source("owner/gone", str(tmp_path / "owner" / "gone"))
    assert is_source("demo", "demo")
    assert not is_source("demo", str(tmp_path / "demo"))


@pytest.fixture
def gguf_files(server: Hub) -> Hub:
    """The repository holds two GGUF files instead."""
    for path in server.files():
        if path.suffix in (".bin", ".json"):
            path.unlink()
    llama_gguf(server.folder / "tiny-F32.gguf")
    llama_gguf(server.folder / "tiny-Q8_0.gguf", seed=1)
    return server


def test_a_repository_of_gguf_files(
    gguf_files: Hub, tmp_path: Path, unplug: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(InputError, match=f"{REPO} holds 2 models .* There are: F32, Q8_0"):
        fetch(REPO)
    config = ModelConfig(model=f"{REPO}:Q8_0", mlx_path=str(tmp_path / "m"))
    manifest = ensure_model(config)
    assert (manifest.source, manifest.revision, gguf_files.asked) == (config.model, COMMIT, ["tiny-Q8_0.gguf"])
    local = ensure_model(ModelConfig(model=str(gguf_files.folder / "tiny-Q8_0.gguf"), mlx_path=str(tmp_path / "l")))
    assert local.fingerprint == manifest.fingerprint
    unplug()
    assert fetch(config.model).gguf is not None
    with pytest.raises(MlxmathError, match="does not hold all of it"):
        fetch(f"{REPO}:F32")


def test_of_a_repository_without_config_no_weights_are_downloaded_for_a_plan(
    gguf_files: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    model = f"{REPO}:Q8_0"
    for name in (model, REPO):
        with pytest.raises(MlxmathError, match=rf"no config.json.*`mlxmath convert --model {name}`"):
            fetch(name, config_only=True)
    assert gguf_files.asked == []
    there = fetch(model)
    assert fetch(model, config_only=True) == there and gguf_files.asked == ["tiny-Q8_0.gguf"]


def test_room_is_checked_before_a_download(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr("mlxmath.weights.download.shutil.disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(MlxmathError, match=r"owner/tiny: \d.* are to be downloaded, and 1.00 kB are free"):
        fetch(REPO)
    assert server.asked == []
