"""What a worker process runs: math_verify on one pair of answers. Only `workers` starts it; see there."""

import contextlib
import json
import os
import re
import signal
import sys
from typing import IO

from mlxmath.grading.quantity import read_unit

_MEMORY_BYTES = 4 << 30

# math_verify takes a letter or two at the end for a unit and drops them: it reads `2ab` as 2.
_LAST_LETTERS = re.compile(r"(?<=[\d}\s])(?<![\\A-Za-z])([A-Za-z]{1,3})$")


def equivalent(answer: str, gold: str) -> bool:
    """Whether math_verify takes `answer` for `gold`; bare LaTeX gets the delimiters that its parser needs."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    targets = (LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig())
    golds, answers = (parse(wrapped(text), targets, parsing_timeout=0) for text in (gold, answer))
    return bool(golds and answers) and verify(golds, answers, allow_set_relation_comp=True, timeout_seconds=0)


def wrapped(text: str) -> str:
    """An answer as one formula between dollar signs, unless it has delimiters of its own."""
    if "$" in text or "\\(" in text or "\\[" in text:
        return text
    return "$" + _LAST_LETTERS.sub(_as_variables, " ".join(text.split())) + "$"


def _as_variables(letters: re.Match[str]) -> str:
    is_unit = len(letters[1]) > 1 and read_unit(letters[1])
    return letters[1] if is_unit else "".join(x if x in "ie" else f"{{{x}}}" for x in letters[1])


def serve(requests: IO[str], replies: IO[str], limit_s: float) -> None:
    """Answer JSON lines {"answer", "gold"} with true, false, or null after an error, until the input ends."""
    for line in requests:
        request = json.loads(line)
        _alarm(limit_s)
        verdict: bool | None
        try:
            verdict = equivalent(request["answer"], request["gold"])
        except Exception:  # sympy raises of all kinds; the pair is then not shown to be equal
            verdict = False
        except RecursionError:
            verdict = None
        _alarm(0)
        replies.write(json.dumps(verdict) + "\n")
        replies.flush()


def _alarm(seconds: float) -> None:
    """End this process after so much processor time, whatever it is doing; 0 takes that back."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, seconds)


def main() -> None:
    """Serve standard input; nothing but replies reaches the original standard output."""
    limit_s = float(sys.argv[1])
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
    import logging

    logging.disable()
    with contextlib.suppress(Exception):
        equivalent("x+1", "1+x")
    replies.write("ready\n")
    replies.flush()
    serve(sys.stdin, replies, limit_s)


if __name__ == "__main__":
    main()
