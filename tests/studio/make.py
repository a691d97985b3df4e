"""Folders of runs as training leaves them, without any."""

import time
from pathlib import Path
from typing import Any

from mlxmath.runtime.sealed import sealed_json, sealed_line

MADE = 1_750_000_000.0
HOSTILE = (
    "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">\u202e\u2066\x1b[2J"
)
"""Text that does something where it is not shown as text."""


def step(number: int, **figures: Any) -> dict[str, Any]:
    """An event of fine-tuning."""
    return {
        "event": "step", "time": MADE + number, "step": number, "epoch": 0, "loss": 2 / number,
        "smoothed_loss": 2 / number, "grad_norm": 0.5, "learning_rate": 1e-3, "tokens": 100, "targets": 60,
        "seconds": 0.5, "applied": True, **figures,
    }  # fmt: skip


def rollout(number: int, **example: Any) -> dict[str, Any]:
    """An event of reinforcement learning."""
    shown = {"question": "What is $1 + 1$?", "gold": "2", "completion": "\\boxed{2}", "reward": 1.0, "correct": True,
             "extracted": "2", **example}  # fmt: skip
    return {"event": "rollout", "step": number, "rollout": number - 1, "reward": 0.25, "mean_length": 9.0,
            "seconds": 1.0, "rewards": {"correctness": 0.25}, "truncated": 0.0, "example": shown}  # fmt: skip


def write_events(path: Path, *events: dict[str, Any]) -> None:
    """Append to a log."""
    with path.open("ab") as file:
        file.write(b"".join(map(sealed_line, events)))


def make_run(
    folder: Path, name: str, status: str = "finished", *, steps: int = 5, total: int = 5, method: str = "train",
    training: dict[str, Any] | None = None, settings: str = '[model]\nmodel = "demo"\n', **facts: Any,
) -> Path:  # fmt: skip
    """A run of a name; `facts` go into its run.json."""
    place = folder / name
    place.mkdir(parents=True)
    config = {"model": {"model": "demo"}, "data": {"dataset": "demo"}, "training": {"adapter_path": name, "seed": 0}}
    config["training"] |= training or {}
    started = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(MADE))
    sealed_json(
        place / "run.json",
        {"started": started, "method": method, "config": config, "status": status, "planned_steps": total, **facts},
    )
    (place / "run.toml").write_text(settings)
    begun = {"event": "start", "time": MADE, "step": 0, "total_steps": total}
    write_events(place / "events.jsonl", begun, *(step(n) for n in range(1, steps + 1)))
    return place
