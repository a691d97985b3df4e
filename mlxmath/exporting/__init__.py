from mlxmath.runtime.blas import preload

preload()
