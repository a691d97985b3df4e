"""A model folder quantized on the job's device by mlx_lm, as all contestants on quantized weights read it.

A job holds `model`, `target`, `bits`, `group_size` and `backend`.
"""

import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.peers.worker import Job, Result, main, select_mlx_device


def run(job: Job) -> Result:
    """Write the folder."""
    from mlx_lm.utils import load_model, quantize_model, save_config, save_model

    select_mlx_device(job)
    source, target = Path(job["model"]), Path(job["target"])
    model, config = load_model(source, lazy=True)
    model, config = quantize_model(model, config, job["group_size"], job["bits"])
    target.mkdir(parents=True, exist_ok=True)
    save_model(target, model, donate_model=True)
    save_config(config, target / "config.json")
    for file in source.glob("*token*"):
        shutil.copy(file, target)
    weights_bytes = sum(file.stat().st_size for file in target.glob("*.safetensors"))
    return {"weights_bytes": weights_bytes, "bits": job["bits"], "group_size": job["group_size"]}


if __name__ == "__main__":
    main(run, ("mlx", "mlx-lm"))
