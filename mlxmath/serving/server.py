"""What `mlxmath serve` answers, and how long."""

import atexit
import json
import os
from collections.abc import Mapping, Sequence
from functools import partial

from mlxmath.errors import MlxmathError
from mlxmath.generation.engine import Sampling
from mlxmath.generation.model import LanguageModel
from mlxmath.runtime.console import put, say
from mlxmath.runtime.listening import IdleError, Listener
from mlxmath.runtime.trouble import trouble

OPEN_TO_ALL = (
    "everybody who can reach this machine over the network can use the model. There is no password and no encryption; "
    "put a reverse proxy before it where that matters."
)


def serve(
    models: Mapping[str, LanguageModel], listener: Listener, sampling: Sampling, origins: Sequence[str],
    cache_bytes: int, idle_minutes: float | None = None,
) -> None:  # fmt: skip
    """Answer requests until Ctrl-C. It is the last thing that a process does.

    A line of JSON on standard output tells programs where it listens, once it does.

    Args:
        models: by name; the first one answers requests that name none.
        listener: see `bound`.
        sampling: of requests that do not say otherwise.
        origins: web pages that may ask.
        cache_bytes: most memory for keys and values of earlier requests.
        idle_minutes: end after so many without a request, too.

    Raises:
        MlxmathError: the device failed, or ran out of memory.
    """
    from mlxmath.serving.engine import Engine, Models
    from mlxmath.serving.handler import Handler

    failures: list[Exception] = []

    def end(error: Exception) -> None:
        failures.append(error)
        listener.shutdown()

    engine = Engine(Models(models, sampling, origins, cache_bytes), end)
    try:
        listener.RequestHandlerClass = partial(Handler, engine)
        first, *_ = models
        templates = (
            f"{name} (template {one.template.name if one.template else 'none'})" for name, one in models.items()
        )
        say(f"serving at {listener.url}: {', '.join(templates)}; requests that name no model get {first}. Ctrl-C ends.")
        put(json.dumps({"url": listener.url, "models": list(models)}))
        if idle_minutes is not None:
            listener.end_when_idle(60 * idle_minutes)
        listener.serve_forever(poll_interval=0.2)
    except KeyboardInterrupt:
        say("stopped")
    except IdleError:
        say(f"ended after {idle_minutes:g} minutes without a request")
    finally:
        engine.stop_and_join()
        # One of MLX's threads may still free what it has computed, and ends the process if Python is gone then.
        atexit.register(os._exit, 1 if failures else 0)
    if failures:
        found = trouble(failures[0])
        what = (
            f"{found.what} ({failures[0]}). {found.remedy}" if found else f"{type(failures[0]).__name__}: {failures[0]}"
        )
        raise MlxmathError(f"the server ends, since the model does not answer any more: {what}")
