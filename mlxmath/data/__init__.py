from mlxmath.backends.blas import preload

preload()
