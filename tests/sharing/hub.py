"""A hub on this machine, as huggingface_hub speaks to it: repositories, LFS objects, commits."""

import base64
import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_" + "Zx9" * 11
OWNER = "somebody"


@dataclass
class Repository:
    """One model repository."""

    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    num_commits: int = 0
    card: dict[str, Any] = field(default_factory=dict)


@dataclass
class Hub:
    """What it holds, what it was asked, and what is to go wrong."""

    models: dict[str, Repository] = field(default_factory=dict)
    datasets: dict[str, dict[str, Any]] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str, bytes, str]] = field(default_factory=list)
    """Method, path, body, the header Authorization."""
    cuts: int = 0
    """Uploads from now on whose connection ends half-way."""
    uploads: list[str] = field(default_factory=list)
    """Objects in the order in which they arrived whole."""
    wrong_yaml: str = ""
    refuses: int = 0
    """A status for whatever is to be written."""

    def start(self) -> str:
        """Its address."""
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self.url

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, value: Any, status: int = 200, **headers: str) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, text in headers.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        self.wfile.write(data)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            data = b""
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.hub.requests.append((self.command, self.path, data, self.headers.get("Authorization", "")))
        return data

    @property
    def _knows(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def do_GET(self) -> None:
        self._body()
        path = self.path.partition("?")[0]
        if path == "/api/whoami-v2":
            self._answer({"name": OWNER} if self._knows else {"error": "who?"}, 200 if self._knows else 401)
        elif path.startswith("/api/datasets/") and (card := self.hub.datasets.get(path.removeprefix("/api/datasets/"))):
            self._answer({"id": path.removeprefix("/api/datasets/"), "cardData": card, "siblings": []})
        elif found := self.hub.models.get(path.removeprefix("/api/models/").removesuffix("/revision/main")):
            if found.private and not self._knows:
                self._answer({"error": "no such repository"}, 401, X_Error_Code="RepoNotFound")
                return
            name = path.removeprefix("/api/models/").removesuffix("/revision/main")
            self._answer({"id": name, "private": found.private, "sha": f"{found.num_commits:040x}", "siblings": [],
                          "cardData": found.card, "tags": [], "downloads": 0, "likes": 0})  # fmt: skip
        else:
            self._answer({"error": "no such repository"}, 404, X_Error_Code="RepoNotFound")

    def do_PUT(self) -> None:
        oid = self.path.rpartition("/")[2]
        if self.hub.cuts > 0:
            self.hub.cuts -= 1
            self.rfile.read(min(1000, int(self.headers["Content-Length"])))
            self.close_connection = True
            self.connection.close()
            return
        data = self._body()
        if hashlib.sha256(data).hexdigest() != oid:
            self._answer({"error": "damaged"}, 400)
            return
        self.hub.objects[oid] = data
        self.hub.uploads.append(oid)
        self._answer({})

    def do_POST(self) -> None:
        body = self._body()
        path = self.path.partition("?")[0]
        if path == "/api/validate-yaml":
            wrong = self.hub.wrong_yaml
            self._answer({"errors": [{"message": wrong}] if wrong else [], "warnings": []}, 400 if wrong else 200)
            return
        if not self._knows or self.hub.refuses:
            self._answer({"error": "not yours"}, self.hub.refuses or 401)
            return
        if path == "/api/repos/create":
            self._create(json.loads(body))
        elif path.endswith("/preupload/main"):
            found = self.hub.models[path.removeprefix("/api/models/").removesuffix("/preupload/main")]
            self._answer({"files": [_mode(one["path"], found) for one in json.loads(body)["files"]]})
        elif path.endswith("/info/lfs/objects/batch"):
            request = json.loads(body)
            assert request["operation"] == "upload" and request["hash_algo"] == "sha256"
            self._answer({"objects": [self._action(one) for one in request["objects"]]})
        elif path == "/verify":
            one = json.loads(body)
            there = len(self.hub.objects.get(one["oid"], b"")) == one["size"]
            self._answer({}, 200 if there else 404)
        elif path.endswith("/commit/main"):
            self._commit(path.removeprefix("/api/models/").removesuffix("/commit/main"), body)
        else:
            self._answer({"error": f"no {path}"}, 404)

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked.get('organization') or OWNER}/{asked['name']}"
        url = f"{self.hub.url}/{name}"
        if name in self.hub.models:
            self._answer({"error": "You already created this model repo", "url": url}, 409)
            return
        private = asked.get("private") is True or asked.get("visibility") == "private"
        self.hub.models[name] = Repository(private)
        self._answer({"url": url, "name": name, "id": "0"})

    def _action(self, one: dict[str, Any]) -> dict[str, Any]:
        if one["oid"] in self.hub.objects:
            return one
        there = {"href": f"{self.hub.url}/lfs/{one['oid']}"}
        return {**one, "actions": {"upload": there, "verify": {"href": f"{self.hub.url}/verify"}}}

    def _commit(self, name: str, body: bytes) -> None:
        repository = self.hub.models[name]
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                assert value["encoding"] == "base64"
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                data = self.hub.objects[value["oid"]]
                assert len(data) == value["size"]
                repository.files[value["path"]] = data
        repository.num_commits += 1
        oid = f"{repository.num_commits:040x}"
        self._answer({"success": True, "commitOid": oid, "commitUrl": f"{self.hub.url}/{name}/commit/{oid}"})


def _mode(path: str, repository: Repository) -> dict[str, Any]:
    """How a file is to be sent, and what is there under its name."""
    is_large = path.endswith((".safetensors", ".gguf", ".png"))
    data, oid = repository.files.get(path), None
    if data is not None:
        of_git = hashlib.sha1(b"blob %d\0" % len(data) + data)
        oid = (hashlib.sha256(data) if is_large else of_git).hexdigest()
    return {"path": path, "shouldIgnore": False, "oid": oid, "uploadMode": "lfs" if is_large else "regular"}
