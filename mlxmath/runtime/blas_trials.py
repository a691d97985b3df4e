"""Which BLAS libraries this machine has, and how fast each is, measured once and remembered.

OpenBLAS chooses its kernels by a list of processors: on one newer than itself it takes its oldest, in silence, and is
several times slower than with those that `OPENBLAS_CORETYPE` can name. So each set of kernels is tried too.
"""

import contextlib
import fcntl
import functools
import hashlib
import importlib.util
import json
import math
import os
import platform
import re
import site
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from mlxmath import __version__
from mlxmath.errors import MlxmathError
from mlxmath.runtime import sgemm
from mlxmath.runtime.files import fits, user_cache
from mlxmath.runtime.sealed import sealed_json, unsealed_json

VARIABLE = "OPENBLAS_CORETYPE"
KERNELS = {
    "SkylakeX": {"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"},
    "Haswell": {"avx2", "fma"},
}
"""OpenBLAS's sets of kernels for x86-64 that differ in float32, with the processor's flags that they need."""
_NAMES = tuple(map(re.compile, (r"libopenblasp\.so\.0", r"libopenblas\.so\.0", r"libmkl_rt\.so(\.\d+)?")))
"""Of libraries, best first; where there is one with "p", as on Fedora, that without has a single thread."""
_TRIAL_LIMIT_S = 10.0
_TRIALS = "trials"


@dataclass(frozen=True)
class Blas:
    """A library with a set of kernels."""

    library: str
    """Its path."""
    asked: str | None
    """OPENBLAS_CORETYPE for it; None: as the environment has it."""
    kernels: str | None
    """The processor whose kernels OpenBLAS says that it uses; None for another library."""
    flops_per_s: float
    """Of one core, in float32; 0: not measured."""

    def __str__(self) -> str:
        return Path(self.library).name + (f", {self.kernels} kernels" if self.kernels else "")

    @property
    def identity(self) -> dict[str, str | None]:
        """What the bits of its results depend on."""
        return {"library": self.library, "kernels": self.kernels}


_FIELDS = {field.name for field in fields(Blas)}


@functools.cache
def trials() -> tuple[Blas, ...]:
    """All that there is, in order of preference; a single one is not measured."""
    paths, (model, flags) = libraries(), processor()
    others = [name for name, needed in KERNELS.items() if needed <= flags]
    if not paths:
        return ()
    untried = (Blas(paths[0], None, None, 0.0),)
    if len(paths) == 1 and not others:
        return untried
    files = [(path, (stat := Path(path).stat()).st_size, stat.st_mtime_ns) for path in paths]
    variables = [os.environ.get(name) for name in (VARIABLE, "MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR")]
    facts = json.dumps([__version__, model, sorted(flags), files, variables])
    name = f"blas-{hashlib.sha256(facts.encode()).hexdigest()[:16]}.json"
    found = remembered(name, lambda: measured(paths, others))
    return tuple(one for one in found if one.library in paths and one.asked in (None, *others)) or untried


def libraries() -> list[str]:
    """Paths of the BLAS libraries here, without links, so that most say their version: the package's, the system's."""
    folders = [*os.environ.get("LD_LIBRARY_PATH", "").split(":"), f"{sys.prefix}/lib", f"{site.getuserbase()}/lib"]
    found = [str(path) for folder in filter(None, folders) for path in sorted(Path(folder).glob("lib*.so*"))]
    with contextlib.suppress(OSError):
        found += [os.fsdecode(path) for path in re.findall(rb"/[^\0]+", Path("/etc/ld.so.cache").read_bytes())]
    paths = [path for kind in _NAMES for path in found if kind.fullmatch(path.rpartition("/")[2])]
    if package := importlib.util.find_spec("scipy_openblas32"):
        paths[:0] = [f"{folder}/lib/libscipy_openblas.so" for folder in package.submodule_search_locations or ()]
    return list(dict.fromkeys(map(os.path.realpath, filter(os.path.exists, paths))))


def processor() -> tuple[str, set[str]]:
    """This machine's model, and its flags on x86-64."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    lines = dict(re.findall(r"^(model name|flags)\s*: (.*)$", text, re.MULTILINE))
    return lines.get("model name", platform.machine()), set(lines.get("flags", "").split())


def measured(paths: Sequence[str], others: Sequence[str]) -> tuple[Blas, ...]:
    """Each library as it is, and OpenBLAS with the kernels `others` too. What fails or has not got them is left out."""
    found = []
    for path in paths:
        own = trial(path, None)
        names = [name for name in others if own and own.kernels and name != own.kernels]
        found += [own, *(one for name in names if (one := trial(path, name)) and one.kernels == name)]
    return tuple(one for one in found if one)


def trial(library: str, asked: str | None) -> Blas | None:
    """Measure one in a process of its own; None if it is not for this machine."""
    one_thread = dict.fromkeys(("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"), "1")
    environment = os.environ | one_thread | ({VARIABLE: asked} if asked else {})
    command = [sys.executable, "-I", "-S", sgemm.__file__, library]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_TRIAL_LIMIT_S)
        rate, _, kernels = done.stdout.strip().partition(" ")
        return Blas(library, asked, kernels or None, float(rate))
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def remembered(name: str, measure: Callable[[], tuple[Blas, ...]]) -> tuple[Blas, ...]:
    """What file `name` of the user's cache holds; where there is none that is whole, what is measured now, and kept.

    Of processes that come at once the first one measures, and the others wait for it.
    """
    try:
        folder = user_cache()
        folder.mkdir(parents=True, exist_ok=True)
        if found := _read(folder / name):
            return found
        with (folder / "blas.lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (found := _read(folder / name)) and (found := measure()):
                with contextlib.suppress(MlxmathError):  # a full disk: measured again the next time
                    sealed_json(folder / name, {_TRIALS: [asdict(one) for one in found]})
            return found
    except (OSError, RuntimeError):  # no home, or not to be written to
        return measure()


def _read(path: Path) -> tuple[Blas, ...]:
    try:
        rows = unsealed_json(path, ()).get(_TRIALS)
    except MlxmathError:
        return ()
    if not isinstance(rows, list) or not all(fits(row, Blas) and row.keys() == _FIELDS for row in rows):
        return ()
    return tuple(one for row in rows if 0 <= (one := Blas(**row)).flops_per_s < math.inf)
