"""`mlxmath convert`: turn Hugging Face weights (.bin or safetensors) or a GGUF file into an MLX model."""

from typing import Any

from mlxmath.commands import options
from mlxmath.config.load import CONVERTED_FROM, settings_from
from mlxmath.config.offered import DATA, MODEL, MODEL_WRITE, RUNTIME
from mlxmath.config.quantization import auto_bits
from mlxmath.runtime.console import say


@options.command("convert")
@options.configured
@options.setting_options(*MODEL, *MODEL_WRITE, "model.trust_remote_code", *DATA, *RUNTIME)
def main(**values: Any) -> None:
    """Turn Hugging Face weights or a GGUF file into a model that MLX reads.

    Reads .safetensors or PyTorch .bin files without PyTorch; nothing in a .bin file is run. Packed weights of a GGUF
    file keep their bits where MLX has such a form, unless --dtype or --quantize ask for another. The result is checked,
    and a folder that already holds the wanted model is left as it is. The options from --dataset on are for --quantize
    auto, which measures on these problems (of the bundled model on its own, if none are named).
    """
    from mlxmath.training.convert import convert_model, with_problems
    from mlxmath.weights.held import with_held_model

    resolved = with_problems(with_held_model(settings_from(CONVERTED_FROM, origin="option", **values)))
    measures = auto_bits(resolved.config.model.quantize) is not None
    for line in resolved.lines(CONVERTED_FROM if measures else ("model",)):
        say(line)
    convert_model(resolved)
