"""Samples for tests."""

from typing import Any

from mlxmath.evaluation.samples import Sample


def sample(
    contestant: str = "base", number: int = 0, answer: str | None = "1", gold: str = "1", **changes: Any
) -> Sample:
    """One graded answer to problem `number`."""
    fields = {
        "contestant": contestant, "fingerprint": f"f-{contestant}", "benchmark": "b", "id": f"b/{number}", "sample": 0,
        "level": None, "subject": None, "question": f"Question {number}", "gold": gold, "solution": None,
        "formulas": 0, "response": f"#### {answer}" if answer else "well", "extracted": answer,
        "rule": "####" if answer else None, "correct": answer == gold, "finish_reason": "stop", "truncated": False,
        "prompt_tokens": 5, "completion_tokens": 7, "seconds": 0.5,
    }  # fmt: skip
    return Sample(**(fields | changes))


def settings(*labels: str, **changes: Any) -> dict[str, Any]:
    """settings.json of a run of these contestants."""
    return {
        "format": 3,
        "contestants": [
            {"label": label, "model": "m", "adapter": None, "fingerprint": f"f-{label}",
             "against": labels[0] if i else None}
            for i, label in enumerate(labels)
        ],
        "benchmarks": [{"name": "b"}],
        "samples": 1, "shots": 0, "temperature": 0.0, "top_p": 1.0, "seed": 0, "template": "tutor", "retrieve": None,
        "vote": None, "weights": [], "voters": [], "mlxmath": "0", "device": {"name": "a device", "dtype": "float32"},
    } | changes  # fmt: skip
