"""What is told of rollouts: what was drawn, and why there may be nothing to learn from it."""

from collections.abc import Mapping
from dataclasses import dataclass

from mlxmath.config.methods import GrpoConfig

_NEARLY_ALL = 0.9


@dataclass(frozen=True)
class RolloutReport:
    """What was drawn for one optimizer step (or several, with `num_iterations`)."""

    rollout: int
    """Its number, from 0."""
    rewards: Mapping[str, float]
    """Mean of each function, before its weight."""
    reward: float
    """Mean of the weighted sums."""
    num_completions: int
    num_tokens: int
    zero_variance: float | None
    """Share of groups whose rewards are all the same; None where nothing is compared within groups."""
    truncated: float
    mean_length: float
    num_timed_out: int
    seconds: float
    example: tuple[str, str, str, float]
    """A question, its right answer, a completion and what it got."""
    example_truncated: bool


@dataclass(frozen=True)
class Silence:
    """Rollouts in a row from which nothing could be learned: the completions of each group all got the same reward."""

    rollouts: int = 0
    groups: int = 0
    completions: int = 0
    truncated: float = 0.0
    """Completions that were cut off."""
    right: float | None = 0.0
    """Sum of the reward `correctness`; None: it does not count in this run."""

    def after(self, groups: int, completions: int, truncated: float, right: float | None) -> "Silence":
        """With one rollout more, given the numbers (`right`: the sum) of its completions."""
        both = None if self.right is None or right is None else self.right + right
        return Silence(
            self.rollouts + 1, self.groups + groups, self.completions + completions, self.truncated + truncated, both
        )

    @property
    def all_right(self) -> bool:
        """Whether nearly all answers were right: what there is to learn here has been."""
        return self.right is not None and self.right >= _NEARLY_ALL * self.completions

    def reason(self, config: GrpoConfig) -> str:
        """Why there was nothing to learn, and what to change."""
        cut_off = self.truncated / max(1, self.completions)
        if cut_off >= _NEARLY_ALL:
            return (
                f"{cut_off:.0%} of the completions were cut off at {config.max_completion_length} tokens; raise "
                "--max-completion-length, or start from an adapter that answers in the template's form and stops "
                "(mlxmath train, then --init-adapter)"
            )
        if self.all_right:
            return "all answers are right already; take harder problems"
        if self.right is not None and self.right <= (1 - _NEARLY_ALL) * self.completions:
            wrong = 1 - self.right / max(1, self.completions)
            return (
                f"{wrong:.0%} of the answers are wrong ({cut_off:.0%} cut off); start from an adapter that is right "
                "now and then (mlxmath train, then --init-adapter), take easier problems, draw more completions of "
                "each (--num-generations), or add a reward that tells wrong answers apart (--reward format=0.2)"
            )
        if self.right is None:
            names = ", ".join(config.reward_weights)
            return (
                f"the rewards ({names}) do not tell the completions of a problem apart; take others, or raise "
                "--temperature"
            )
        return "of a problem's completions all were right or all wrong; raise --num-generations or --temperature"
