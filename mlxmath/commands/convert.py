"""`mlxmath convert`: turn Hugging Face weights (.bin or safetensors) or a GGUF file into an MLX model."""

from typing import Any

from mlxmath.commands import options
from mlxmath.config.load import settings_from
from mlxmath.runtime.console import say


@options.command("convert")
@options.configured
@options.setting_options(*options.MODEL, *options.MODEL_WRITE, "model.trust_remote_code")
def main(**values: Any) -> None:
    """Turn Hugging Face weights or a GGUF file into a model that MLX reads.

    Reads .safetensors or PyTorch .bin files without PyTorch; nothing in a .bin file is run. Packed weights of a GGUF
    file keep their bits where MLX has such a form, unless --dtype or --quantize ask for another. The result is checked,
    and a folder that already holds the wanted model is left as it is.
    """
    resolved = settings_from(("model",), origin="option", **values)
    for line in resolved.lines(("model",)):
        say(line)

    from mlxmath.weights.convert import ensure_model

    ensure_model(resolved.config.model, exact=True)
