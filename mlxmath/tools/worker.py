"""What a worker process runs: programs that a model wrote, confined. Only `run` starts it; see there."""

import os
from functools import cache
from typing import Any

from mlxmath.runtime.bounded import serve
from mlxmath.tools.confine import NotConfined, confine
from mlxmath.tools.functions import modules
from mlxmath.tools.interpreter import Interpreter
from mlxmath.tools.tree import Refused, parsed

_state: dict[str, str] = {}


@cache
def _modules() -> dict[str, Any]:
    return modules()


def _open() -> None:
    """Import all that SymPy imports when it is first called, then confine this process."""
    import importlib

    from mlxmath.tools.lazy import MODULES

    for name in MODULES:
        importlib.import_module(name)
    interpreter = Interpreter(_modules())
    interpreter.run(parsed("x = symbols('x')\nprint(solve(x**2 - 2, x), integrate(sin(x), x), N(sqrt(2)))"))
    try:
        confine()
        _state["open"] = ""
    except NotConfined as reason:
        _state["open"] = str(reason)


def work(request: list[str]) -> dict[str, str]:
    """The output of the last of some programs; those before it run first, and their output is nobody's."""
    if not _state:
        _open()
        return _state
    if _state["open"]:
        return _state
    interpreter, text = Interpreter(_modules()), ""
    for program in request:
        try:
            text = interpreter.run(parsed(program))
        except Refused as refused:
            text = str(refused)
        except MemoryError:
            os._exit(1)  # what has filled it stays there: the next program gets another process
    return {"text": text}


if __name__ == "__main__":
    serve(work, [])
