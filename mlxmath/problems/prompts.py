"""How a problem and its solution become text, and the same as a chat template for servers."""

import difflib
import json
from dataclasses import dataclass

from mlxmath.errors import InputError
from mlxmath.problems.problem import Problem

_PROBLEM, _SOLUTION = "{problem}", "{solution}"


@dataclass(frozen=True)
class Template:
    """A text with a place for the problem and, at its end, one for the solution.

    The solution is followed by the tokenizer's end-of-text token, which is no part of the text.
    """

    name: str
    text: str

    def __post_init__(self) -> None:
        assert self.text.count(_PROBLEM) == 1 and self.text.endswith(_SOLUTION), self.name

    @property
    def _around(self) -> tuple[str, str]:
        """What stands before the problem, and between it and the solution."""
        before, between = self.text.removesuffix(_SOLUTION).split(_PROBLEM)
        return before, between

    def prompt(self, question: str) -> str:
        """The text up to the place where the solution begins; `question` goes in as it is, braces and all."""
        before, between = self._around
        return f"{before}{question}{between}"

    def render(self, problem: Problem) -> tuple[str, str]:
        """(prompt, completion) of a problem that has a solution."""
        assert problem.solution is not None, problem.id
        return self.prompt(problem.question), problem.solution

    def chat_template(self, *, bos: bool) -> str:
        """A Jinja chat template that gives this text.

        The last user message becomes exactly `prompt(content)`; earlier turns become earlier problems with their
        solutions, each solution closed by the end-of-text token; an assistant message at the end gives the training
        text. System messages are left out: the model was tuned on one fixed instruction, which is part of the prompt.

        Args:
            bos: begin with the tokenizer's `bos_token`; give `mlxmath.data.render.adds_bos(tokenizer)`. (Tokenizers add
                none to a text that comes from a chat template.)
        """
        before, between = (json.dumps(part, ensure_ascii=False) for part in self._around)
        content = (
            "(m['content'] if m['content'] is string else "
            "(m['content'] or []) | selectattr('type', 'equalto', 'text') | map(attribute='text') | join)"
        )
        return (
            ("{{ bos_token }}" if bos else "")
            + "{% for m in messages %}"
            + f"{{% if m['role'] == 'user' %}}{{{{ {before} + {content} + {between} }}}}"
            + f"{{% elif m['role'] == 'assistant' %}}{{{{ {content} + eos_token }}}}{{% endif %}}"
            + "{% endfor %}"
        )


_TUTOR = """\
You are a helpful math tutor. Solve the problem step by step and give the final answer at the end.

### Problem:
{problem}

### Solution:
{solution}"""

TEMPLATES = {
    template.name: template for template in (Template("tutor", _TUTOR), Template("plain", "{problem}\n{solution}"))
}


def get_template(name: str) -> Template:
    """The template of that name.

    Raises:
        InputError: there is none; the nearest name is given.
    """
    if name not in TEMPLATES:
        near = difflib.get_close_matches(name, TEMPLATES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InputError(f"--template: no template {name!r}; there are {', '.join(TEMPLATES)}{hint}")
    return TEMPLATES[name]
