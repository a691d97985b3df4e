"""What a model answered."""

from dataclasses import dataclass
from itertools import compress


@dataclass(frozen=True)
class Completion:
    """What a model answered. `finish_reason` is "stop" (an end token or a stop string) or "length"."""

    text: str
    """Without the stop string at which it is cut, and what came after it."""
    tokens: tuple[int, ...]
    """All that were drawn but an end token."""
    finish_reason: str
    num_prompt_tokens: int
    drawn: tuple[int, ...] = ()
    """With `logprobs`: `tokens` and the end of sequence if it was drawn."""
    logprobs: tuple[float, ...] = ()
    """Of each of `drawn`, under the distribution that it was drawn from; of a tool's tokens they mean nothing."""
    by_tool: tuple[bool, ...] = ()
    """Of each of `tokens`: whether a tool wrote it (empty: there was none to call)."""

    @property
    def drawn_by_tool(self) -> tuple[bool, ...]:
        """The same of each of `drawn`; empty if it wrote none."""
        return (*self.by_tool, *[False] * (len(self.drawn) - len(self.tokens))) if any(self.by_tool) else ()

    @property
    def own_logprobs(self) -> tuple[float, ...]:
        """Those of `logprobs` that are of tokens that the model drew."""
        given = self.drawn_by_tool
        return tuple(compress(self.logprobs, (not one for one in given))) if given else self.logprobs
