"""README.md of a repository on the hub: its metadata, and what a reader wants to know."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mlxmath import __version__
from mlxmath.runtime.markdown import cell, code
from mlxmath.sharing.contents import CARD, Contents, check_public
from mlxmath.sharing.facts import Figures, Origin, base_of, data_of, outcome_of, settings_of
from mlxmath.sharing.usage import usage

_WHAT = {
    "mlx adapter": "An adapter for mathematics, in mlx_lm's form: it is put on its base, and useless without it.",
    "peft adapter": "An adapter for mathematics, in PEFT's form: it is put on its base, and useless without it.",
    "mlx model": "A language model for mathematics, in MLX's form.",
    "transformers model": "A language model for mathematics, in the form of transformers.",
    "gguf": "A language model for mathematics, as GGUF for llama.cpp and Ollama.",
}
_LIBRARIES = {"mlx adapter": "mlx", "peft adapter": "peft", "mlx model": "mlx", "transformers model": "transformers",
              "gguf": "gguf"}  # fmt: skip
_REWARD_MODEL = "A reward model: an adapter and a head that score solutions, for `mlxmath grpo --reward model:FOLDER`."

Licences = Mapping[str, str]
"""By repository, as far as they are known."""


def card_of(
    contents: Contents, repository: str, figures: Sequence[Figures], licences: Licences, licence: str | None
) -> str:
    """README.md.

    Args:
        contents: what is pushed.
        repository: where to.
        figures: what was measured of it.
        licences: of the base and the datasets.
        licence: its own (None: that of its base).

    Raises:
        MlxmathError: something private would stand in it.
    """
    base, data = base_of(contents), data_of(contents)

    def licence_of(origin: Origin) -> str:
        if origin.repository is None:
            return ""
        return f" (licence: {cell(licences.get(origin.repository, 'not known'))})"

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters |= {"cell": cell, "code": code}
    text = environment.get_template("card.md").render(
        metadata=_metadata(contents, repository, figures, base, data, licences, licence),
        title=repository.partition("/")[2], base=base, data=data, outcome=outcome_of(contents), figures=figures,
        what=_REWARD_MODEL if contents.config.get("reward_model") else _WHAT[contents.kind],
        usage=usage(contents, repository, base), settings=settings_of(contents), version=__version__,
        pictures=[name for name in contents.files if name.endswith(".png")], licence=licence_of,
    )  # fmt: skip
    check_public(CARD, text)
    return text


def _metadata(
    contents: Contents, repository: str, figures: Sequence[Figures], base: Origin | None, data: Sequence[Origin],
    licences: Licences, licence: str | None,
) -> str:  # fmt: skip
    """What the hub reads, in YAML."""
    from huggingface_hub import EvalResult, ModelCardData

    known = base.repository if base else None
    relation = "adapter" if contents.is_adapter else "quantized" if contents.kind == "gguf" else "finetune"
    results = [
        EvalResult(task_type="text-generation", dataset_type=name, dataset_name=name, metric_type="accuracy",
                   metric_name="accuracy", metric_value=round(value, 4))
        for one in figures for name, value in one.accuracy.items()
    ]  # fmt: skip
    return ModelCardData(
        base_model=known,
        base_model_relation=relation if known else None,
        datasets=[one.repository for one in data if one.repository] or None,
        eval_results=results or None,
        library_name=_LIBRARIES[contents.kind],
        license=licence or licences.get(known or ""),
        model_name=repository.partition("/")[2] if results else None,
        pipeline_tag="text-generation",
        tags=["math", "mlxmath", *(["lora"] if contents.is_adapter else [])],
    ).to_yaml()
