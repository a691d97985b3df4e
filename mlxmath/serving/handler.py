"""mlx_lm.server's HTTP handler, with what comes in checked before it is looked at.

Refused are what has no meaning here and would be ignored or fetched: tools, images, paths of adapters and drafts.
"""

import io
import json
import math
from collections.abc import Mapping
from threading import BoundedSemaphore
from typing import Any, ClassVar
from urllib.parse import unquote

from mlx_lm import server as mlx_lm_server

from mlxmath.data.problem import Message
from mlxmath.errors import MlxmathError
from mlxmath.generation.model import LanguageModel
from mlxmath.models.load import check_ids, num_embeddings
from mlxmath.runtime.console import printable, say
from mlxmath.serving.engine import Engine
from mlxmath.serving.names import DEFAULT

PROMPT = "/v1/chat/prompt"
"""Not OpenAI's: messages as the model is given them."""
MOST_BYTES = 4 << 20
"""Of a request; a context of a million tokens is not much longer."""
MOST_MESSAGES = 512
_MOST_AT_ONCE = 128
_MOST_STOPS = 16
_DRAINED = 64 << 20
_TOO_MUCH = {bool: 2, int: 1 << 31, float: 3e38}
"""What MLX computes with: beyond, the thread that computes for all would raise, or a logit be no number."""
_LEAST_TEMPERATURE = 1e-6
"""Below, float32 has no room for what logits become."""
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_FINGERPRINT = mlx_lm_server.get_system_fingerprint()


class Handler(mlx_lm_server.APIHandler):
    """Answers a request.

    Args:
        engine: that computes.
        *args: of `BaseHTTPRequestHandler`.
    """

    timeout = 60.0
    """Seconds that a client may be silent while it sends, or not take what it is sent."""
    _free: ClassVar[BoundedSemaphore] = BoundedSemaphore(_MOST_AT_ONCE)

    rfile: Any
    max_tokens: int
    top_k: int
    temperature: float
    seed: int | None

    def __init__(self, engine: Engine, *args: Any) -> None:
        self._models: Mapping[str, LanguageModel] = engine.model_provider.models
        super().__init__(engine, *args, system_fingerprint=_FINGERPRINT)

    def log_message(self, format: str, *args: Any) -> None:
        """A line about a request."""
        say(printable(f"{self.client_address[0]} {format % args}"))

    def do_POST(self) -> None:  # noqa: N802
        """Check a request, then let mlx_lm answer it."""
        if not self._free.acquire(blocking=False):
            self._refuse(503, f"{_MOST_AT_ONCE} requests are being answered; ask again later", "overloaded")
            return
        try:
            if self._accepts():
                if self.path == PROMPT:
                    self._tell_prompt()
                else:
                    super().do_POST()
        finally:
            self._free.release()

    def _tell_prompt(self) -> None:
        """What the model is given for messages: the text of its template, and how many tokens that is."""
        try:
            messages = _messages(self._body.get("messages"))
            model = self._models[self._name]
            ids = model.encode_messages(messages)
        except (ValueError, MlxmathError) as error:
            self._refuse(400, str(error), "invalid_value")
            return
        self._set_completion_headers(200)
        self.end_headers()
        self.wfile.write(json.dumps({"prompt": model.tokenizer.decode(ids), "num_tokens": len(ids)}).encode())

    def _accepts(self) -> bool:
        """Whether mlx_lm is to see the request; if not, it is refused."""
        origin, allowed = self.headers.get("Origin"), self.response_generator.cli_args.allowed_origins
        if origin is not None and origin not in allowed and "*" not in allowed:
            return self._refuse(403, "web pages from there may not ask; see --allow-origin", "origin")
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            return self._refuse(411, "Content-Length: expected the number of bytes", "length_required")
        if int(length) > MOST_BYTES:
            left = min(int(length), _DRAINED)
            while left > 0 and (part := self.rfile.read(min(left, 1 << 16))):
                left -= len(part)
            return self._refuse(413, f"a request may have {MOST_BYTES:,} bytes, this one has {length}", "too_large")
        raw = self.rfile.read(int(length))
        try:
            body = json.loads(raw.decode(), parse_constant=_no_number)  # bytes might be UTF-16, which mlx_lm's cannot
        except (ValueError, RecursionError) as error:
            return self._refuse(400, f"the request is not JSON: {error}", "invalid_json")
        if not isinstance(body, dict):
            return self._refuse(400, "expected a JSON object", "invalid_json")
        self._name = body.get("model") or DEFAULT
        if self._name == DEFAULT:
            self._name = next(iter(self._models))
        if not isinstance(self._name, str) or self._name not in self._models:
            names = ", ".join(self._models)
            return self._refuse(
                404, f"there is no model {str(self._name)[:100]!r}; there are {names}", "model_not_found"
            )
        self.rfile, self._body = io.BytesIO(raw), body
        return True

    def _refuse(self, status: int, message: str, code: str) -> bool:
        """Answer with an error in OpenAI's form."""
        self._set_completion_headers(status)
        self.end_headers()
        error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
        self.wfile.write(json.dumps({"error": error}).encode())
        return False

    def validate_model_parameters(self) -> None:
        """See mlx_lm's; what it takes without looking at it is checked too.

        Raises:
            ValueError: what is wrong with the request.
        """
        self.requested_model, body = self._name, self.body
        for name, value in body.items():
            if name != "seed" and isinstance(value, int | float) and not abs(value) < _TOO_MUCH[type(value)]:
                raise ValueError(f"{name}: {str(value)[:20]} is more than there is a use for")
        if body.get("adapters") is not None or body.get("draft_model") is not None:
            raise ValueError("adapters, draft_model: not here; an adapter is chosen by its name in `model`")
        for name in ("tools", "functions", "chat_template_kwargs", "role_mapping"):
            if body.get(name):
                raise ValueError(f"{name}: not here; prompts are those of the training's template, which has none")
        if body.get("n") not in (None, 1):
            raise ValueError("n: one answer a request; send several")
        if not isinstance(body.get("stream_options"), dict | None):
            raise ValueError("stream_options: expected an object")
        stops = body.get("stop") or []
        stops = [stops] if isinstance(stops, str) else stops
        if not isinstance(stops, list) or len(stops) > _MOST_STOPS or not all(isinstance(s, str) and s for s in stops):
            raise ValueError(f"stop: expected a text or at most {_MOST_STOPS} texts")
        if type(self.seed) is int and not 0 <= self.seed < 1 << 64:
            raise ValueError("seed: expected a number from 0 to 2^64 - 1")
        for name in ("temperature", "top_p", "max_tokens"):  # null means the default, as in OpenAI's
            if getattr(self, name) is None:
                setattr(self, name, getattr(self.response_generator.cli_args, {"temperature": "temp"}.get(name, name)))
        rows = num_embeddings(self._models[self._name].model) or math.inf
        if type(self.top_k) is int and self.top_k >= rows:
            self.top_k = 0  # all tokens; mlx_lm's thread would raise, and answer nobody any more
        if isinstance(self.temperature, int | float) and 0 < self.temperature < _LEAST_TEMPERATURE:
            self.temperature = 0.0
        if self.temperature == 0:
            self.seed = None  # it decides nothing, and mlx_lm answers requests that have one by themselves
        biases = body.get("logit_bias")
        if isinstance(biases, dict) and not all(
            token.isdecimal() and int(token) < rows and isinstance(bias, int | float) and abs(bias) < _TOO_MUCH[float]
            for token, bias in biases.items()
        ):
            raise ValueError("logit_bias: expected numbers by token ids of this model")
        super().validate_model_parameters()

    def handle_chat_completions(self) -> Any:
        """The request with its prompt as token ids.

        Raises:
            ValueError, MlxmathError: the messages are none, or too long.
        """
        messages = _messages(self.body.get("messages"))
        request = super().handle_chat_completions()
        return self._asked(request, self._models[self._name].encode_messages(messages))

    def handle_text_completions(self) -> Any:
        """The same for a text that is completed as it is."""
        prompt = self.body.get("prompt")
        if not isinstance(prompt, str):
            raise ValueError("prompt: expected a text")
        return self._asked(super().handle_text_completions(), self._models[self._name].tokenizer.encode(prompt))

    def _asked(self, request: Any, ids: list[int]) -> Any:
        model = self._models[self._name]
        check_ids(model.model, max(ids, default=0), "the request")
        if not ids or (model.context is not None and len(ids) >= model.context):
            raise ValueError(
                f"the prompt has {len(ids):,} tokens; the model's context ends at {model.context or math.inf:,}"
            )
        if model.context is not None:
            self.max_tokens = min(self.max_tokens, model.context - len(ids))
        request.prompt, request.messages, request.tools, request.role_mapping = ids, [], None, None
        return request

    def handle_models_request(self) -> None:
        """The names that `model` may have, or one of them."""
        wanted = unquote(self.path.partition("?")[0]).removeprefix("/v1/models").strip("/")
        listed = [
            {"id": name, "object": "model", "created": self.created, "owned_by": "mlxmath"}
            for name in self._models
            if wanted in ("", name)
        ]
        if not listed:
            self._refuse(
                404, f"there is no model {wanted[:100]!r}; there are {', '.join(self._models)}", "model_not_found"
            )
            return
        self._set_completion_headers(200)
        self.end_headers()
        self.wfile.write(json.dumps(listed[0] if wanted else {"object": "list", "data": listed}).encode())


def _messages(given: Any) -> list[Message]:
    """The messages of a request.

    Raises:
        ValueError: what is wrong with them.
    """
    if not isinstance(given, list) or not 0 < len(given) <= MOST_MESSAGES:
        raise ValueError(f"messages: expected a list of 1 to {MOST_MESSAGES} messages")
    found = []
    for number, message in enumerate(given):
        role = _ROLES.get(str(message.get("role"))) if isinstance(message, dict) else None
        if role is None or message.get("tool_calls"):
            raise ValueError(f"messages[{number}]: expected the role {', '.join(_ROLES)}, and no tool calls")
        content = message.get("content")
        if isinstance(content, list) and all(isinstance(p, dict) and p.get("type") == "text" for p in content):
            content = "".join(str(part.get("text", "")) for part in content)
        if content is None and role == "assistant":
            content = ""
        if not isinstance(content, str):
            raise ValueError(f"messages[{number}]: content: expected a text, or parts of type text")
        found.append(Message(role, content))
    if found[-1].role != "user":
        raise ValueError("messages: the last one must be the user's")
    return found


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is not a number in JSON")
