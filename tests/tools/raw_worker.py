"""A confined process that runs any Python at all: what holds when everything before it has failed."""

from mlxmath.runtime.bounded import serve
from mlxmath.tools.confine import NotConfined, confine

_state = {}


def work(request: str) -> str:
    if not _state:
        import ctypes  # noqa: F401
        import mmap  # noqa: F401
        import shutil  # noqa: F401
        import socket  # noqa: F401
        import subprocess  # noqa: F401
        import threading  # noqa: F401
        import urllib.request  # noqa: F401

        try:
            confine()
            _state["open"] = ""
        except NotConfined as reason:
            _state["open"] = str(reason)
    if _state["open"] or not request:
        return _state["open"]
    try:
        names = {}
        exec(request, names)  # noqa: S102
        return f"done {names.get('found', '')}"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    serve(work, "")
