"""Runs calls: arithmetic here, programs in a confined process of their own."""

import os
from collections.abc import Sequence

from mlxmath.errors import InputError
from mlxmath.runtime.bounded import OverrunError, Pool, own
from mlxmath.runtime.console import harmless
from mlxmath.tools.calculator import calculate
from mlxmath.tools.forms import Tool

LIMIT_S = 2.0
"""Processor time for a call, the answer's earlier programs included."""
_MEMORY_BYTES = 1 << 30
_TIMED_OUT = f"TimeoutError: more than {LIMIT_S:g} s or {_MEMORY_BYTES >> 20:,} MB"


def run(tool: Tool, calls: Sequence[str]) -> str | None:
    """What the last of an answer's calls gives, as printable text; None: nothing, the answer goes on as it is.

    Args:
        tool: that is called.
        calls: expressions or programs. A program knows the names of those before it.
    """
    if tool == "calculator":
        return calculate(calls[-1])
    try:
        found = own(_make).reply(list(calls))
    except OverrunError:
        return _TIMED_OUT
    return harmless(found.get("text", "")).strip("\n").replace("```", "'''")


def check(tool: Tool | None) -> None:
    """See that a tool can be had, before anything is asked.

    Raises:
        InputError: programs cannot be confined here.
    """
    if tool != "python":
        return
    try:
        reason = own(_make).reply(["1"]).get("open")
    except OverrunError:
        reason = "its process does not start"
    if reason:
        raise InputError(f"--tools python: {reason}; programs are run only where they can be confined. Use calculator.")


def _make() -> Pool:
    return Pool("mlxmath.tools.worker", min(4, os.cpu_count() or 1), LIMIT_S, _MEMORY_BYTES)
