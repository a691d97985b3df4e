"""`--to hf`: the merged model as transformers loads it: dense tensors under the names of Hugging Face."""

from mlxmath.exporting.check import Answers, ModelAnswers
from mlxmath.exporting.files import one_tensor, write_companions, write_tensors
from mlxmath.exporting.merge import merged_tensors
from mlxmath.exporting.original import Job, refuse_flags, refuse_remade
from mlxmath.generation.model import open_model
from mlxmath.runtime.files import read_json
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
    config = read_json(original.model / "config.json")
    quantized = any(config.get(key) for key in _QUANTIZATION)
    config = {key: value for key, value in config.items() if key not in _QUANTIZATION} | {"dtype": dtype}
    config.pop("torch_dtype", None)
    check_built(config, declared, original.model, asked=False)
    write_tensors(job.folder, outputs, form="pt")
    write_companions(job.folder, original, config)
    notes = [f"{len(declared)} tensors in {dtype}"]
    if quantized:
        notes.append("the base is quantized: its weights are the dequantized ones, not those that it was made from")
    return notes


def reopened(job: Job) -> Answers:
    """The merged model in MLX, which reads the same files."""
    return ModelAnswers(open_model(job.folder, job.original.dtype, None, job.original.template))
