"""Planning and reading data, in a process beside the server: `python -m mlxmath.studio.worker`, see `Pool`.

MLX, tokenizers and datasets are loaded here, not where pages are made. Requests and replies are JSON; a user's error is
the reply {"error": the line}.
"""

import os
from collections.abc import Mapping
from typing import Any

import psutil

from mlxmath.config.schema import RunConfig
from mlxmath.config.section import validate
from mlxmath.errors import MlxmathError
from mlxmath.runtime.bounded import Pool, own, serve
from mlxmath.studio.rows import page

_LIMIT_S = {"plan": 120.0, "rows": 240.0}
_MEMORY_BYTES = 1 << 46  # what a device maps counts too, and that is as much as there is


def plans() -> Pool:
    """The process that plans."""
    return own(_planning)


def readers() -> Pool:
    """The process that reads data."""
    return own(_reading)


def _planning() -> Pool:
    return _pool("plan")


def _reading() -> Pool:
    return _pool("rows")


def _pool(what: str) -> Pool:
    """A file of a few bytes may unpack to more than there is memory, which whoever trains here needs too."""
    most = psutil.virtual_memory().total // 2
    return Pool("mlxmath.studio.worker", 1, _LIMIT_S[what], _MEMORY_BYTES, most)


def answer(request: Mapping[str, Any]) -> dict[str, Any]:
    """Answer a request; see `_plan` and `page`."""
    if request["what"] == "ready":
        import mlxmath.training.plan

        assert mlxmath.training.plan
        return {}
    try:
        os.chdir(request["folder"])
        config = validate(RunConfig, request["config"])
        return (_plan if request["what"] == "plan" else page)(config, request)
    except MlxmathError as error:
        return {"error": str(error)}
    except OSError as error:
        return {"error": f"{error.filename or request['folder']}: {error.strerror or error}"}


def _plan(config: RunConfig, request: Mapping[str, Any]) -> dict[str, Any]:
    """As `mlxmath plan --for method`."""
    from mlxmath.training.plan import parts, plan_run, table

    found = plan_run(config, request["method"])
    memory = found.memory
    idle = ("drawing",) if memory.learning >= memory.drawing else ("activations", "block")
    return {
        "model": found.model, "total": memory.total, "device": found.device_bytes, "fits": found.fits,
        "parts": [[name, number, name.startswith(idle)] for name, number in parts(memory).items()],
        "lines": [line.strip() for line in found.lines if line not in table(memory)],
        "remedies": [[change, total, total <= found.device_bytes] for change, total in found.remedies],
    }  # fmt: skip


if __name__ == "__main__":
    serve(answer, {"what": "ready"})
