"""A process of its own, in which a BLAS is chosen anew."""

import subprocess
import sys
from pathlib import Path

from mlxmath.runtime.blas_trials import VARIABLE
from tests.helpers import ENVIRONMENT


def in_a_process(code: str, cache: Path, **environment: str) -> str:
    kept = {name: value for name, value in ENVIRONMENT.items() if name != VARIABLE}
    done = subprocess.run(
        [sys.executable, "-c", "from mlxmath.runtime import blas, blas_trials\n" + code], capture_output=True,
        env=kept | {"XDG_CACHE_HOME": str(cache)} | environment, text=True, check=True,
    )  # fmt: skip
    return done.stdout
