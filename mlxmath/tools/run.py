"""Runs calls: arithmetic here, programs in a confined process of their own."""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_args

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


def run_all(tool: Tool, answers: Sequence[Sequence[str]]) -> list[str | None]:
    """`run` of several answers' calls, programs side by side."""
    if tool == "calculator" or len(answers) < 2:
        return [run(tool, calls) for calls in answers]
    with ThreadPoolExecutor(min(_num_processes(), len(answers))) as threads:
        return list(threads.map(lambda calls: run(tool, calls), answers))


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
    return Pool("mlxmath.tools.worker", _num_processes(), LIMIT_S, _MEMORY_BYTES)


def _num_processes() -> int:
    return min(4, os.cpu_count() or 1)


def recorded_tool(record: Mapping[str, Any], where: Path) -> Tool | None:
    """The tool that an adapter was trained with, out of its adapter_config.json; None: with none.

    Raises:
        InputError: it names another one.
    """
    found = record.get("tools")
    if found is not None and found not in get_args(Tool):
        raise InputError(
            f"{where}: tools: expected {' or '.join(get_args(Tool))}, found {str(found)[:40]!r}; correct it."
        )
    return found
