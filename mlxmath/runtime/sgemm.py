"""How fast a BLAS multiplies: `python sgemm.py LIBRARY` prints it, in a process of its own.

Imports nothing but the lightest parts of the standard library, so that this takes some 50 ms in all.
"""

import ctypes
import sys
import time

M, N, K = 192, 512, 384
"""Of the product, whose second factor is transposed as the weight of a linear layer is: 75 million FLOPs."""
_ROW_MAJOR, _NO_TRANSPOSE, _TRANSPOSE = 101, 111, 112
_LIMIT_S = 0.015


def prefix(library: ctypes.CDLL) -> str:
    """Of the library's names: the package scipy-openblas32 puts "scipy_" before the usual ones."""
    return "scipy_" if hasattr(library, "scipy_cblas_sgemm") else ""


def kernels(library: ctypes.CDLL) -> str | None:
    """The processor whose kernels OpenBLAS uses; None for another BLAS, which does not say."""
    function = getattr(library, prefix(library) + "openblas_get_corename", None)
    if function is None:
        return None
    function.restype = ctypes.c_char_p
    return str(function().decode())


def flops_per_s(library: ctypes.CDLL) -> float:
    """That of the middle one of several, by the time that this thread has a core, however much else runs here.

    Not the best: now and then that clock counts too little (under a busy hypervisor), and tells a speed that no
    processor has.
    """
    a, b, c = ((ctypes.c_float * size)() for size in (M * K, N * K, M * N))
    sgemm = getattr(library, prefix(library) + "cblas_sgemm")
    m, n, k, one = ctypes.c_int(M), ctypes.c_int(N), ctypes.c_int(K), ctypes.c_float(1)
    begin, took = 0.0, list[float]()
    while not begin or time.thread_time() - begin < _LIMIT_S:
        start = time.thread_time()
        sgemm(_ROW_MAJOR, _NO_TRANSPOSE, _TRANSPOSE, m, n, k, one, a, k, b, k, one, c, n)
        end = time.thread_time()
        if begin:
            took.append(end - start)
        begin = begin or end  # the first one only warms up
    return 2 * M * N * K / sorted(took)[len(took) // 2]


if __name__ == "__main__":
    _library = ctypes.CDLL(sys.argv[1])
    print(flops_per_s(_library), kernels(_library) or "")
