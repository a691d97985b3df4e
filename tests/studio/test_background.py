"""Questions to a process beside: the newest first, answers kept, and what fails asked again later."""

import threading
from typing import Any

import pytest

from mlxmath.runtime.bounded import OverrunError
from mlxmath.studio import background
from mlxmath.studio.background import Asker


class Slow:
    """A process that answers when it is let."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.begun, self.let = threading.Semaphore(0), threading.Semaphore(0)

    def reply(self, request: Any) -> Any:
        self.asked.append(request["n"])
        self.begun.release()
        assert self.let.acquire(timeout=10)
        return {"n": request["n"]}


def test_what_is_asked_anew_takes_the_place_of_what_waits() -> None:
    process = Slow()
    asker = Asker(lambda: process)  # type: ignore[arg-type,return-value]
    assert asker.ask({"n": 1}, 0) is None and process.begun.acquire(timeout=10)
    for n in (2, 3, 4):
        assert asker.ask({"n": n}, 0) is None
    process.let.release(2)
    assert asker.ask({"n": 4}, 10) == {"n": 4} and process.asked == [1, 4]
    assert asker.ask({"n": 1}, 0) == {"n": 1} and process.asked == [1, 4]
    process.let.release()
    assert asker.ask({"n": 2}, 10) == {"n": 2}


@pytest.mark.parametrize("failure", [OverrunError, OSError])
def test_a_process_that_fails_is_told_and_asked_again_later(
    monkeypatch: pytest.MonkeyPatch, failure: type[Exception]
) -> None:
    process = Slow()
    process.let.release(3)

    def fails(_: Any) -> Any:
        process.asked.append("failed")
        raise failure

    monkeypatch.setattr(process, "reply", fails)
    asker = Asker(lambda: process)  # type: ignore[arg-type,return-value]
    first = asker.ask({"n": 0}, 10)
    assert first is not None and "could not be looked at" in first["error"]
    assert asker.ask({"n": 0}, 0) == first and process.asked == ["failed"]
    monkeypatch.undo()
    monkeypatch.setitem(background._LASTING_S, "error", 0.0)
    assert asker.ask({"n": 0}, 10) == {"n": 0}
