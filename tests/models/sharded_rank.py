"""One of several processes: loads its part of each model, and rank 0 writes the logits down.

python sharded_rank.py FOLDER: FOLDER/cases.json holds [{"model", "adapter", "sharding"}].
"""

import json
import sys
from pathlib import Path

from mlxmath.runtime.blas import preload

preload()

import mlx.core as mx  # noqa: E402
from mlx_lm.models.cache import make_prompt_cache  # noqa: E402

from mlxmath.errors import InputError  # noqa: E402
from mlxmath.models.lora.sharding import load_sharded  # noqa: E402

TOKENS = [[3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1, 8, 2, 8, 1, 8]]


def main() -> None:
    folder = Path(sys.argv[1])
    group = mx.distributed.init(strict=True, backend="ring")
    found: dict[str, mx.array] = {}
    errors: dict[str, str] = {}
    for number, case in enumerate(json.loads((folder / "cases.json").read_text())):
        adapter = Path(case["adapter"]) if case["adapter"] else None
        try:
            loaded, _ = load_sharded(Path(case["model"]), "float32", case["sharding"], group, adapter)
        except InputError as error:
            errors[str(number)] = str(error)
            continue
        cache = make_prompt_cache(loaded.model)
        first = loaded.model(mx.array(TOKENS)[:, :5], cache=cache)
        rest = loaded.model(mx.array(TOKENS)[:, 5:], cache=cache)
        found[str(number)] = mx.concatenate([first, rest], axis=1)
        mx.eval(found)
        held = sum(array.nbytes for _, array in _flat(loaded.model))
        found[f"{number} held"] = mx.array(held)
    if group.rank() == 0:
        mx.savez(str(folder / "found.npz"), **found)
        (folder / "errors.json").write_text(json.dumps(errors))


def _flat(model: object) -> list[tuple[str, mx.array]]:
    from mlx.utils import tree_flatten

    return tree_flatten(model.parameters())  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
