"""The rule of RWKV-7 (Peng et al. 2025, arXiv:2503.14456) on Metal, where mlx_lm has a kernel for it without gradient.

It is called in training too.
"""

import functools
import sys
from typing import Any

import mlx.core as mx

_HOME, _KERNEL, _STEP = "mlx_lm.models.rwkv7", "wkv7_kernel", "_wkv7_step_ops"


def use_gradients() -> None:
    """Let the kernel have the gradient of the steps that mlx_lm takes on other devices, one for each token."""
    home = sys.modules.get(_HOME)  # imported by the models that need it
    original, step = (getattr(home, name, None) for name in (_KERNEL, _STEP))
    if original is None or step is None or hasattr(original, "has_gradient"):
        return

    def by_steps(*given: mx.array) -> tuple[mx.array, mx.array]:
        *inputs, state = given
        outputs = []
        for of_token in zip(*(mx.split(each, each.shape[1], axis=1) for each in inputs), strict=True):
            output, state = step(*(each.squeeze(1) for each in of_token), state)
            outputs.append(output)
        dtype = given[0].dtype
        return mx.stack(outputs, axis=1).reshape(given[0].shape).astype(dtype), state.astype(dtype)

    @mx.custom_function
    def rule(*given: mx.array) -> tuple[mx.array, ...]:
        return tuple(original(*given))

    @rule.vjp
    def rule_vjp(primals: Any, cotangents: Any, _: Any) -> tuple[mx.array, ...]:
        return tuple(mx.vjp(by_steps, list(primals), list(cotangents))[1])

    @functools.wraps(original)
    def kernel(*given: mx.array) -> tuple[mx.array, ...]:
        found: tuple[mx.array, ...] = rule(*given)
        return found

    kernel.has_gradient = True  # type: ignore[attr-defined]
    setattr(home, _KERNEL, kernel)
