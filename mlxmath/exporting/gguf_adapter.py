"""An adapter alone as a GGUF file, which llama.cpp puts on a file of the base (`--lora`)."""

from collections.abc import Iterator

import numpy as np
from gguf import GGUFWriter

from mlxmath.errors import InputError
from mlxmath.exporting.gguf_metadata import Described, describe, read_config
from mlxmath.exporting.merge import parts_of
from mlxmath.exporting.original import Job, Original
from mlxmath.models.lora.layers import DoRALinear, ExpertsLoRALinear, LoRALinear
from mlxmath.runtime.files import disk_errors
from mlxmath.weights.dtypes import Array

ADAPTER = "adapter.gguf"


def write_adapter(job: Job) -> list[str]:
    """Write the adapter alone, for llama.cpp's `--lora`."""
    if job.original.adapter is None:
        raise InputError("--adapter-only writes an adapter, and there is none; name one with --adapter-path.")
    if job.settings.check:
        raise InputError("--check asks a whole model; leave it out, or leave out --adapter-only.")
    described = describe(read_config(job.original.model))
    writer = GGUFWriter(None, described.family.architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    arrays: dict[str, Array] = {}
    alpha = None
    for name, adapter in _adapters(job.original, described):
        low_RI, high_OR = np.asarray(adapter.lora_a).T, np.asarray(adapter.lora_b).T
        own_alpha = float(adapter.scale) * len(low_RI)
        alpha = own_alpha if alpha is None else alpha
        if own_alpha != alpha:  # a file has one for all
            high_OR = high_OR * np.float32(own_alpha / alpha)
        if (order := described.row_order(name, len(high_OR))) is not None:
            high_OR = high_OR[order]
        arrays[f"{name}.lora_a"], arrays[f"{name}.lora_b"] = map(np.ascontiguousarray, (low_RI, high_OR))
    if alpha is None:
        raise InputError("--adapter-only: the model's blocks were trained whole; export the merged model instead.")
    writer.add_float32("adapter.lora.alpha", alpha)
    for name, array in arrays.items():
        writer.add_tensor_info(name, array.shape, array.dtype, array.nbytes)
    with disk_errors(job.folder / ADAPTER):
        writer.write_header_to_file(job.folder / ADAPTER)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for array in arrays.values():
            writer.write_tensor_data(array)
        writer.close()
    return [
        f"{ADAPTER}: {len(arrays) // 2} layers; with a GGUF file of the base: llama-server -m BASE --lora {ADAPTER}"
    ]


def _adapters(original: Original, described: Described) -> Iterator[tuple[str, LoRALinear]]:
    """The adapter layers by the names of their weights in the base's file."""
    loaded = original.load()
    parts = {part.path: part.name for part in parts_of(loaded).values() if part.adapter is not None}
    for path, layer in loaded.model.named_modules():
        if isinstance(layer, DoRALinear | ExpertsLoRALinear):
            kind = "DoRA adapters" if isinstance(layer, DoRALinear) else "adapters on experts"
            raise InputError(f"--adapter-only: {kind} are not written for llama.cpp; export the merged model instead.")
        if isinstance(layer, LoRALinear):
            stored = parts.get(path, f"{path}.weight").removeprefix("language_model.")
            name = described.family.to_gguf(stored)
            if name is None:
                raise InputError(f"--adapter-only: llama.cpp's {described.family.architecture} has no layer {path}.")
            yield name, layer
