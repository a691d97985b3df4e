"""Which tensors mlx_lm makes of Hugging Face's on loading: stored as that, they are another model's to transformers."""

import re
from collections.abc import Collection

from mlxmath.weights.architecture import Built

_EXPERTS = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}
"""Of a `block_sparse_moe` (Mixtral and its like)."""


def expert_name(path: str, expert: int) -> str:
    """Hugging Face's name of the weight of an expert in mlx_lm's stack at `path`, of a `switch_…`."""
    home, _, stack = path.partition(".switch_")
    last = stack.rpartition(".")[2]
    if home.endswith("block_sparse_moe"):
        last = _EXPERTS.get(last, last)
    return f"{home}.experts.{expert}.{last}.weight"


def numberless(name: str) -> str:
    """A tensor's name for all blocks: # for numbers."""
    return re.sub(r"\d+", "#", name)


def remade(built: Built, tensors: Collection[str], packed: Collection[str]) -> tuple[str, ...]:
    """The model's tensors that are no stored ones under their names: renamed, rearranged or computed.

    Experts that are stacked one after the other and packed do not count, nor does what is packed anew layer by layer
    (AWQ, GPTQ): exports take both apart.

    Args:
        built: the model.
        tensors: names of the stored ones.
        packed: names of the model's weights that are quantized.

    Returns:
        `numberless` names, each once.
    """
    found = []
    for name, array in built.arrays.items():
        path = name.rpartition(".")[0]
        is_stack = ".switch_" in path and name in packed
        if built.origins.get(name) == name or f"{path}.qweight" in tensors:
            continue
        if not is_stack or any(expert_name(path, expert) not in tensors for expert in range(array.shape[0])):
            found.append(numberless(name))
    return tuple(dict.fromkeys(found))
