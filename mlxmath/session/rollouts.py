"""The course of a GRPO run: windows of completions that are drawn, scored and compared as it goes on."""

from collections.abc import Callable, Iterator, Sequence

from mlxmath.data.batching import Window
from mlxmath.generation.slots import choose_slots
from mlxmath.models.memory import Batching
from mlxmath.objectives.rewards import Rewards
from mlxmath.runtime.console import say
from mlxmath.session.course import CourseOf, planned_steps
from mlxmath.session.opening import Session
from mlxmath.session.prompts import PromptMaterial
from mlxmath.training.checkpoint import Stateful
from mlxmath.training.deadline import Deadline, StopRequest
from mlxmath.training.drawing import Drawing, right_answers
from mlxmath.training.events import EVENTS, EventLog
from mlxmath.training.fit import Ending, Hook, Position
from mlxmath.training.live import terminal
from mlxmath.training.reference import Reference
from mlxmath.training.rollouts import RolloutSource
from mlxmath.training.validation import ACCURACY, Found, HeldOut, seeded_order
from mlxmath.training.watching import RolloutWatch, Watch
from mlxmath.training.workers import Workers


class RolloutCourse:
    """Over the completions of a session's prompts; see `mlxmath.session.course.Course`.

    Args:
        session: its prompts, and how they are batched.
        workers: hold the model that draws and learns.
        deadline: a rollout that does not fit into the time left is not begun, or is abandoned.
        stop: likewise.
        rewards: score completions.
        reference: computes log-probabilities of the model at the start (None: beta is 0).
    """

    def __init__(
        self,
        session: Session[PromptMaterial],
        workers: Workers,
        deadline: Deadline,
        stop: StopRequest,
        rewards: Rewards,
        reference: Reference | None,
    ) -> None:
        training, settings = session.config.training, session.config.grpo
        material, size = session.material, settings.num_generations
        prompts_per_step = training.batch_size * training.grad_accumulation_steps // size
        self.steps_per_epoch = -(-len(material.prompts) // prompts_per_step) * settings.num_iterations
        self.total_steps = planned_steps(training, self.steps_per_epoch)
        slots, reason = choose_slots(
            session.model_config, session.device, held_bytes=session.backend.memory().active_bytes,
            longest=material.longest, prompt=material.longest - settings.max_completion_length, group_size=size,
            needed_bytes=session.planned_bytes, asked=settings.concurrency,
        )  # fmt: skip
        say(
            f"{len(material.prompts):,} problems; at most {self.total_steps:,} steps of {prompts_per_step} problems x "
            f"{size} completions, drawn {slots} at a time ({reason}); {workers.how}"
        )
        drawing = Drawing(
            workers, material.tokenizer, settings, rewards, seed=training.seed, concurrency=slots, deadline=deadline,
            stop=stop,
        )  # fmt: skip
        self._source = RolloutSource(
            workers, drawing, material.prompts, settings, training, Batching(workers.num_in_all, session.max_tokens),
            session.shape, reference=reference, deadline=deadline, stop=stop,
            num_epochs=max(training.num_epochs, -(-self.total_steps // self.steps_per_epoch)),
        )  # fmt: skip
        self.hooks: Sequence[Hook] = [self._source.on_step]
        self.parts: Sequence[Stateful] = [self._source]
        self.held_out: HeldOut | None = None
        if material.held_out:
            in_order = [material.held_out[i] for i in seeded_order(len(material.held_out), training.seed)]

            def measure(count: int, stopped: Callable[[], bool]) -> Found | None:
                length = settings.max_completion_length
                return right_answers(workers, material.tokenizer, in_order[:count], length, slots, stopped)

            completions = prompts_per_step * size
            self.held_out = HeldOut(
                len(in_order), "problems", measure, step_items=completions / 2, metric=ACCURACY,
                at_once=slots * workers.ranks.size,
            )  # fmt: skip
        self._log = session.folder / EVENTS

    @property
    def ending(self) -> Ending | None:
        """See `Course`."""
        return self._source.ending

    @property
    def reason(self) -> str:
        """See `Course`."""
        return self._source.reason

    def windows(self, position: Position) -> Iterator[Window]:
        """See `Course`."""
        return self._source.windows(position.step)

    def watch(self, position: Position, deadline: Deadline) -> Watch:
        """See `Course`."""
        events = EventLog(self._log, from_step=position.step)
        watch = RolloutWatch(events, self.total_steps, position.step, deadline, terminal())
        self._source.listener = watch.on_rollout
        return watch


def over_prompts(session: Session[PromptMaterial], rewards: Rewards, reference: Reference | None) -> CourseOf:
    """Makes the course over the session's prompts; see `RolloutCourse`."""
    return lambda workers, deadline, stop: RolloutCourse(session, workers, deadline, stop, rewards, reference)
