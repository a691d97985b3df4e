"""`--report-to`: a process for each tracker, which follows the run's events.jsonl; see `mlxmath.runtime.tracker`.

Nothing here waits for a tracker while the run goes on. A tracker that fails is named in one warning.
"""

import contextlib
import importlib.util
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlxmath
from mlxmath.config.load import Resolved
from mlxmath.errors import InputError
from mlxmath.runtime.console import say, warn
from mlxmath.runtime.secrets import hidden, without_secrets
from mlxmath.runtime.tracker import Kept
from mlxmath.runtime.tracker_services import BOARD, FOLDER, Task

PATIENCE_S = 60.0
"""How long a run that has ended waits for a tracker to send the rest."""
_FAILED_PATIENCE_S = 10.0
_SILENT_S = 3.0
_WITHOUT = "the run goes on without it"


def check_installed(names: Sequence[str]) -> None:
    """Refuse trackers whose package is not there.

    Raises:
        InputError: one is missing; all that are missing are named.
    """
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"--report-to {','.join(names)}: {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not "
            f"installed; pip install 'mlxmath[{','.join(missing)}]', or leave it out."
        )


class Trackers:
    """The trackers of a run, on rank 0; what they need to go on with it is kept in its folder.

    Args:
        names: which.
        folder: the run's.
        method: what trains it.
        settings: the run's.
        sections: those of its settings that it uses.
        facts: what else is told of it, as a section's settings.
        events: events.jsonl, which is there.
        images: what may be drawn at the end.
    """

    def __init__(
        self, names: Sequence[str], folder: Path, method: str, settings: Resolved, sections: Sequence[str],
        facts: Mapping[str, Any], events: Path, images: Sequence[Path],
    ) -> None:  # fmt: skip
        config = {name: getattr(settings.config, name).model_dump(mode="json") for name in sections}
        config = without_secrets(config | {"run": dict(facts)})
        folder = folder.resolve()
        self._running: dict[str, subprocess.Popen[str]] = {}
        self._threads: dict[str, threading.Thread] = {}
        self._told: set[str] = set()
        for name in dict.fromkeys(names):
            try:
                task = Task(
                    name, str(folder), folder.name, method, _id(folder / FOLDER / f"{name}.json"), config,
                    str(events.resolve()), tuple(str(image.resolve()) for image in images),
                )  # fmt: skip
                self._start(name, json.dumps(asdict(task)))
            except OSError as error:
                self._lost(name, f"{error.strerror or error}; {_WITHOUT}")
        if "tensorboard" in self._running:
            say(f"tensorboard: `tensorboard --logdir {folder / BOARD}`")

    def _start(self, name: str, task: str) -> None:
        path = os.pathsep.join(filter(None, [str(Path(mlxmath.__file__).parents[1]), os.environ.get("PYTHONPATH")]))
        started = subprocess.Popen(
            [sys.executable, "-P", "-m", "mlxmath.runtime.tracker"], env=os.environ | {"PYTHONPATH": path},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            start_new_session=True,
        )  # fmt: skip
        assert started.stdin
        self._running[name] = started
        started.stdin.write(task + "\n")  # less than a pipe holds
        started.stdin.flush()
        self._threads[name] = threading.Thread(target=self._listen, args=(name, started), daemon=True)
        self._threads[name].start()

    def _listen(self, name: str, started: "subprocess.Popen[str]") -> None:
        """Say what a tracker says, until it ends."""
        assert started.stdout
        with started.stdout:
            for line in started.stdout:
                with contextlib.suppress(ValueError):
                    for kind, text in json.loads(line).items():
                        if kind == "say":
                            say(text)
                        else:
                            self._lost(name, f"{hidden(text)}; {_WITHOUT}")

    def _lost(self, name: str, reason: str) -> None:
        if name not in self._told:
            self._told.add(name)
            warn(f"--report-to {name}: {reason}")

    def close(self, *, failed: bool = False) -> None:
        """The run has ended: wait a little for what is still to be sent. A second call does nothing."""
        patience_s = _FAILED_PATIENCE_S if failed else PATIENCE_S
        running, self._running = self._running, {}
        for started in running.values():
            assert started.stdin
            with contextlib.suppress(OSError):
                started.stdin.close()
        for name, started in running.items():
            try:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    started.wait(min(_SILENT_S, patience_s))
                if started.poll() is None:
                    say(f"waiting for {name}, {patience_s:g} s at most")
                code = started.wait(patience_s)
            except subprocess.TimeoutExpired:
                self._lost(name, f"it did not end within {patience_s:g} s of the run; its last events may be missing")
                code = 0
            finally:
                if started.poll() is None:
                    os.killpg(started.pid, signal.SIGKILL)  # and what it has started itself
                    started.wait()
            self._threads[name].join(1.0)  # until it has read all that the tracker said
            if code:
                self._lost(name, f"its process ended with exit code {code}; {_WITHOUT}")


def _id(path: Path) -> str:
    """Of the run at a tracker: the one that its folder keeps, or a new one, which is kept."""
    kept = Kept.read(path)
    if kept is None:
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = Kept(secrets.token_hex(4))
        kept.write(path)
    return kept.id
