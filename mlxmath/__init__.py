"""Fine-tune language models for mathematics with MLX: on Apple Silicon, CUDA or the CPU.

    import mlxmath

    result = mlxmath.sft([{"problem": "What is 3 + 4?", "answer": "7"}, ...], model="demo", num_epochs=2)
    found = mlxmath.evaluate("demo", adapters=result.folder)
    print(found.accuracy, mlxmath.grade("The answer is 7.", "7").correct)

See `mlxmath.api`. Importing this imports nothing else: a function brings what it needs when it is called.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from mlxmath.api import (
        convert,
        distill,
        dpo,
        evaluate,
        export,
        generate,
        gkd,
        grpo,
        load,
        plan,
        reward_model,
        sft,
    )
    from mlxmath.errors import InputError, MlxmathError
    from mlxmath.grading import grade

_FUNCTIONS = ("convert", "distill", "dpo", "evaluate", "export", "generate", "gkd", "grpo", "load", "plan",
              "reward_model", "sft")  # fmt: skip
_FROM = {
    **dict.fromkeys(_FUNCTIONS, "mlxmath.api"),
    "grade": "mlxmath.grading",
    "InputError": "mlxmath.errors",
    "MlxmathError": "mlxmath.errors",
}
__all__ = [
    "InputError", "MlxmathError", "convert", "distill", "dpo", "evaluate", "export", "generate", "gkd", "grade", "grpo",
    "load", "plan", "reward_model", "sft",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _FROM:
        raise AttributeError(f"module 'mlxmath' has no attribute {name!r}")
    return getattr(importlib.import_module(_FROM[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
