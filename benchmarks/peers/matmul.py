"""The machine's ceiling: matrix products alone, of the model's own shapes, forward and back, by MLX and its BLAS.

A job holds `linears` ([[how many, outputs, inputs]]), `tokens`, `dtype`, `backend` and `seconds` for each product.
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.peers.worker import Job, Result, main, select_mlx_device


def run(job: Job) -> Result:
    """FLOP/s of each product, and of all together, weighted by how often the model has them."""
    import mlx.core as mx

    select_mlx_device(job)
    dtype = mx.float32 if job["backend"] == "cpu" else getattr(mx, job["dtype"])
    products, flops_all, seconds_all = [], 0.0, 0.0
    for count, outputs, inputs in job["linears"]:
        weight = (mx.random.normal((outputs, inputs)) * 0.02).astype(dtype)
        x, gradient = (mx.random.normal((job["tokens"], n)).astype(dtype) for n in (inputs, outputs))
        mx.eval(weight, x, gradient)
        flops = 2.0 * job["tokens"] * outputs * inputs
        for left, right, name in ((x, weight.T, "forward"), (gradient, weight, "back")):
            mx.eval(left @ right)
            repeats, best, started = 0, float("inf"), time.perf_counter()
            while repeats < 3 or time.perf_counter() - started < job["seconds"]:
                begin = time.perf_counter()
                mx.eval(left @ right)
                mx.synchronize()
                best = min(best, time.perf_counter() - begin)
                repeats += 1
            products.append(
                {"outputs": outputs, "inputs": inputs, "pass": name, "gflops": round(flops / best / 1e9, 1)}
            )
            flops_all += count * flops
            seconds_all += count * best
    return {"flops_per_s": flops_all / seconds_all, "products": products, "tokens": job["tokens"]}


if __name__ == "__main__":
    main(run, ("mlx",))
