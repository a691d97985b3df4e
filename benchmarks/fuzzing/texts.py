"""Formats that come over the network or out of a model: answers, replies, manifests and templates of Ollama's."""

import asyncio
import contextlib
import hashlib
import json
from pathlib import Path
from random import Random
from typing import Any

import httpx2
import jinja2

from benchmarks.fuzzing.formats import Format
from benchmarks.fuzzing.mutations import TEXTS, damaged_json, damaged_text
from mlxmath.config.methods import DistillationConfig
from mlxmath.distillation.endpoint import Endpoint, retry_after
from mlxmath.distillation.teacher import Refused, TryAgain
from mlxmath.errors import MlxmathError
from mlxmath.evaluation.latex import to_html
from mlxmath.grading.doubt import doubt
from mlxmath.grading.faithfulness import faithfulness
from mlxmath.grading.grade import cluster, equal, form, grade
from mlxmath.runtime.console import say
from mlxmath.serving.readable import Readable
from mlxmath.weights.hub import fetch
from mlxmath.weights.ollama_template import CannotTranslateError, to_jinja
from tests.weights.gguf_models import llama_gguf

_ANSWERS = (
    "We add 3 + 4 = 7.\n#### 7", "Thus $x = \\frac{1}{2}$, so \\boxed{\\frac{1}{2}}.", "The answer is 3,000 dollars.",
    "<think>\n2 * 3 = 6\n</think>\n\nIt is 6 m/s.", "\\boxed{\\begin{pmatrix}1\\\\2\\end{pmatrix}}", "x \\in [1, 2)",
    "\\boxed{\\sqrt[3]{8} + 2^{10}}", "#### 12:30 PM", "Final answer: (B)", "\\boxed{5x^2 - 3\\pi}", "10^{10^{10}}",
    "\\boxed{1, 2, 3}", "50\\%", "#### -1/3", "\\boxed{\\text{Monday}}", "1e400", "0.333...", "x = 3 or x = -3",
)  # fmt: skip


def _answer(random: Random, _: bytes) -> bytes:
    text = random.choice(_ANSWERS)
    for _ in range(random.choice((1, 2, 3))):
        text = damaged_text(random, text)
    if random.random() < 0.3:
        text += random.choice(("\\boxed{", "\n#### ")) + damaged_text(random, random.choice(_ANSWERS))
    return json.dumps([text, random.choice((*_ANSWERS, "7", "1/2", damaged_text(random, "\\frac{1}{2}")))]).encode()


def _grade(folder: Path) -> None:
    text, gold = json.loads((folder / "answer.json").read_bytes())
    grade(text, gold)
    form(text)
    doubt(text)
    faithfulness(text, "q 3 4", gold)
    equal(text, gold)
    cluster([text, gold, None])
    to_html(text)
    shown = Readable(formulas=True)
    shown.feed(text)
    shown.finish()


_REPLY = {
    "id": "x", "choices": [{"index": 0, "finish_reason": "stop",
                            "message": {"role": "assistant", "content": [{"type": "text", "text": "It is 4."}],
                                        "reasoning_content": "2 + 2"}}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 5}, "error": {"message": "no"},
}  # fmt: skip
_EXCHANGE = {"status": 200, "headers": {"Retry-After": "3", "Content-Type": "application/json"}, "body": ""}


def _exchange(random: Random, _: bytes) -> bytes:
    status = random.choice((200, 200, 200, 201, 204, 301, 400, 401, 404, 429, 500, 503, 599))
    body = damaged_json(random, json.dumps(_REPLY).encode())
    if random.random() < 0.1:
        body = random.choice((b"data: {}", b"\x1b[2J" * 10, b"{" * 100_000, b"null", b"\xff\xfe", b"[]" * 9))
    headers = {"Retry-After": random.choice(("3", "-1", "nan", "1e400", "Fri, 99 Foo 2020", "", "x" * 999, "9" * 999))}
    if random.random() < 0.3:
        headers["Content-Encoding"] = random.choice(("gzip", "deflate", "br", "x", "identity"))
    return json.dumps({"status": status, "headers": headers, "body": body.decode("latin-1")}).encode()


def _ask(folder: Path) -> None:
    """As distill does, over a transport that answers with what is in the file."""
    found = json.loads((folder / "reply.json").read_bytes())

    def reply(_: httpx2.Request) -> httpx2.Response:
        content = found["body"].encode("latin-1")
        return httpx2.Response(found["status"], headers=found["headers"], stream=_Stream(content))

    endpoint = Endpoint(DistillationConfig(teacher_url="http://localhost:1/v1", teacher_model="m", timeout_s=5.0))

    async def ask() -> None:
        async with httpx2.AsyncClient(transport=httpx2.MockTransport(reply)) as client:
            answer = await endpoint.request(client, "2 + 2?", 0)
            say(answer.finish_reason[:100].encode("ascii", "backslashreplace").decode())

    retry_after(found["headers"].get("Retry-After"), 0.0)
    try:
        asyncio.run(ask())
    except (TryAgain, Refused) as error:
        raise MlxmathError(str(error)) from None


class _Stream(httpx2.AsyncByteStream):
    def __init__(self, content: bytes) -> None:
        self._content = content

    async def __aiter__(self) -> Any:
        for start in range(0, len(self._content), 1000):
            yield self._content[start : start + 1000]


def _ollama(folder: Path) -> None:
    """A pulled model, whose GGUF file is whole."""
    root = folder / "models"
    (root / "blobs").mkdir(parents=True)
    layers = []
    parts = {
        "model": llama_gguf(folder / "m.gguf").read_bytes(), "params": json.dumps({"stop": ["x"]}).encode(),
        "template": b"{{ .System }}{{ .Prompt }}", "license": b"free",
    }  # fmt: skip
    for kind, data in parts.items():
        digest = hashlib.sha256(data).hexdigest()
        (root / "blobs" / f"sha256-{digest}").write_bytes(data)
        media = f"application/vnd.ollama.image.{kind}"
        layers.append({"mediaType": media, "digest": f"sha256:{digest}", "size": len(data)})
    (folder / "m.gguf").unlink()
    path = root / "manifests" / "registry.ollama.ai" / "library" / "tiny" / "latest"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"schemaVersion": 2, "config": {}, "layers": layers}))


def _find(folder: Path) -> None:
    from unittest import mock

    with mock.patch.dict("os.environ", {"OLLAMA_MODELS": str(folder / "models")}):
        fetch("ollama:tiny")


_GO = (
    "{{- if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}"
    "{{ range .Messages }}<|im_start|>{{ .Role }}\n"
    "{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n{{ .Response }}"
)
_ACTIONS = (
    "{{ if .Prompt }}", "{{ end }}", "{{ range $i, $_ := .Messages }}", "{{ .X.Y }}", "{{-", "-}}",
    "{{ else }}", "{{ template \"x\" }}", "{{ define \"x\" }}", "{{ if eq .Role \"user\" }}", "{{",
    "{{ and (or 1 2) }}", "{{ \"a", "{{ `", "{{ (((((", "{{ $x := 1 }}", "{% x %}",
    "{{ index .Messages 0 }}", "{{/* */}}",
)  # fmt: skip


def _go(random: Random, _: bytes) -> bytes:
    text = _GO
    for _ in range(random.choice((1, 2, 4))):
        at = random.randrange(len(text) + 1)
        text = text[:at] + random.choice((*_ACTIONS, random.choice(TEXTS))) + text[at:] if random.random() < 0.7 else (
            damaged_text(random, text)
        )  # fmt: skip
    return text.encode("utf-8", "surrogatepass")


def _translate(folder: Path) -> None:
    """What comes out must be a template of Jinja's."""
    text = (folder / "template").read_bytes().decode("utf-8", "replace")
    with contextlib.suppress(CannotTranslateError):
        jinja2.Environment().parse(to_jinja(text))


FORMATS = (
    Format("answers", lambda f: (f / "answer.json").write_text(json.dumps([_ANSWERS[0], "7"])),
           {"answer.json": _answer}, _grade, share=3.0, carried=True),
    Format("replies of endpoints", lambda f: (f / "reply.json").write_text(
        json.dumps(_EXCHANGE | {"body": json.dumps(_REPLY)})), {"reply.json": _exchange}, _ask, (), 2.0, carried=True),
    Format("Ollama's manifest", _ollama,
           {"models/manifests/registry.ollama.ai/library/tiny/latest": damaged_json}, _find),
    Format("Ollama's template", lambda f: (f / "template").write_text(_GO), {"template": _go}, _translate,
           share=2.0, carried=True),
)  # fmt: skip
