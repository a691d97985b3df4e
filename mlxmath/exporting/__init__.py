"""The tuned model for other programs: `export` writes and checks, one module a target writes its files."""

from mlxmath.runtime.blas import preload

preload()
