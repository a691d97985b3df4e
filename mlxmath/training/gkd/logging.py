"""What an on-policy distillation tells people and programs."""

from pathlib import Path

from mlxmath.training.event_file import EVENTS, number, read_events
from mlxmath.training.events import StepReport
from mlxmath.training.grpo.logging import Figures, RolloutLogger
from mlxmath.training.logging import CURVES_PLOT, Curves, draw


class DistillationLogger(RolloutLogger):
    """Tells of what the student drew, and how far it is from the teacher."""

    def figures(self, step: StepReport) -> Figures:
        """See `RolloutLogger`."""
        (entropy,) = step.metrics
        return {
            "divergence": (step.loss, f"{step.loss:.4f} nats a token"),
            "entropy": (entropy, f"{entropy:.3f}"),
        }

    def plot(self) -> None:
        """See `RunLogger`."""
        plot_distillation(self.folder / EVENTS, self.folder / CURVES_PLOT)


def plot_distillation(events: Path, path: Path) -> None:
    """Draw the divergence from the teacher, the share of right answers, lengths and entropy over the steps."""
    curves: Curves = {}
    shown_as = {"reward": "drawn and right", "accuracy": "held-out accuracy"}
    names = {
        "step": ("divergence", "entropy"), "rollout": ("reward", "truncated", "mean_length"),
        "validation": ("accuracy",),
    }  # fmt: skip
    for event in read_events(events):
        for name in names.get(event["event"], ()):
            value, step = number(event.get(name)), event.get("step")
            if value is not None and step is not None:
                curves.setdefault(shown_as.get(name, name), []).append((step, value))
    panels = (
        ("nats a token", ["divergence"]), ("share", ["drawn and right", "held-out accuracy", "truncated"]),
        ("tokens", ["mean_length"]), ("nats a token", ["entropy"]),
    )  # fmt: skip
    draw(curves, panels, path)
