"""`--to hf`: the merged model as transformers loads it: dense tensors under the names of Hugging Face."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlxmath.exporting.check import Answers, ModelAnswers
from mlxmath.exporting.files import one_tensor, write_companions, write_tensors
from mlxmath.exporting.longrope import with_long_factors
from mlxmath.exporting.merge import merged_tensors
from mlxmath.exporting.original import Job, Original, refuse_flags, refuse_remade
from mlxmath.generation.model import open_model
from mlxmath.runtime.files import atomic_json, read_json
from mlxmath.weights.dtypes import prevailing
from mlxmath.weights.layout import check_built

_QUANTIZATION = ("quantization", "quantization_config")


def write(job: Job) -> list[str]:
    """Write the merged model; see `Target`."""
    refuse_flags(job.settings, "dequantize", "requantize", "adapter_only", "gguf_type")
    original = job.original
    loaded = original.load()
    refuse_remade(job)
    outputs = [one_tensor(each, job.settings.export_dtype) for each in merged_tensors(loaded, original.model)]
    declared = [tensor for output in outputs for tensor in output.tensors]
    dtype = prevailing((output.tensors[0][1], output.num_bytes) for output in outputs)
    config = _unpacked_config(original)
    check_built(config, declared, original.model, asked=False)
    write_tensors(job.folder, outputs, form="pt")
    config, of_config = with_long_factors(config)
    config.pop("torch_dtype", None)
    write_companions(job.folder, original, config | {"dtype": dtype})
    notes = [f"{len(declared)} tensors in {dtype}", *of_config]
    if any(read_json(original.model / "config.json").get(key) for key in _QUANTIZATION):
        notes.append("the base is quantized: its weights are the dequantized ones, not those that it was made from")
    return notes


def reopened(job: Job) -> Answers:
    """The merged model in MLX, which reads the same files but for config.json: mlx_lm's LongRoPE is another one."""
    with tempfile.TemporaryDirectory(prefix="mlxmath-") as name:
        folder = Path(name)
        for path in job.folder.absolute().iterdir():
            if path.name != "config.json":
                (folder / path.name).symlink_to(path)
        atomic_json(folder / "config.json", _unpacked_config(job.original))
        opened = open_model(folder, job.original.dtype, None, job.original.template)
    return ModelAnswers(replace(opened, folder=job.folder))


def _unpacked_config(original: Original) -> dict[str, Any]:
    """config.json of the converted model, for weights that are not quantized."""
    config = read_json(original.model / "config.json")
    return {key: value for key, value in config.items() if key not in _QUANTIZATION}
