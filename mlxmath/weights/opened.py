"""A model that was found, opened: its config.json, its tensors, and the files that travel with them."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxmath.runtime.console import say, warn
from mlxmath.weights.configuration import read_config
from mlxmath.weights.download import LICENSES, TOKENIZER_FILES
from mlxmath.weights.gguf_file import GgufFile, open_gguf
from mlxmath.weights.gguf_model import read_gguf
from mlxmath.weights.gguf_tokenizer import write_tokenizer
from mlxmath.weights.hub import Source, Weights, open_weights
from mlxmath.weights.ollama_template import CannotTranslateError, to_jinja
from mlxmath.weights.tokenizer import name_plain_class


@dataclass(frozen=True)
class Opened:
    """
    Attributes:
        source: where it was found.
        config: its config.json; of a GGUF file, what its metadata say.
        weights: its tensors, not yet read.
        notes: sentences for the user.
        gguf: the header of a GGUF file.
    """

    source: Source
    config: dict[str, Any]
    weights: Weights
    notes: tuple[str, ...] = ()
    gguf: GgufFile | None = None

    @property
    def form(self) -> str:
        """Ending of its weight files."""
        return ".gguf" if self.gguf else self.weights.files[0].suffix

    def write_companions(self, folder: Path, *, trust_remote_code: bool) -> None:
        """Put tokenizer, generation settings and licence beside the converted weights."""
        if self.gguf:
            write_tokenizer(self.gguf, folder, self.source.stop)
            self._translate_template(folder)
        else:
            copy_companions(self.source.folder, folder, trust_remote_code=trust_remote_code)
        name_plain_class(folder)

    def _translate_template(self, folder: Path) -> None:
        """Take the template that lies beside the model, where its file has none."""
        path = folder / "chat_template.jinja"
        if path.exists():
            return
        if self.source.template:
            try:
                path.write_text(to_jinja(self.source.template), encoding="utf-8")
                return
            except CannotTranslateError as error:
                warn(f"{self.source.name}: Ollama's template cannot be translated ({error}).")
        say(f"  {self.source.name} brings no chat template; choose how it is asked with --template")


def open_source(source: Source, *, packed: bool = True) -> Opened:
    """Open a model's files; no weight is read.

    Args:
        source: where it was found.
        packed: keep the packed form of a GGUF file's weights where MLX has it.

    Raises:
        MlxmathError: a file is missing or damaged, or of a kind of model that is not read.
    """
    if source.gguf is None:
        return Opened(source, read_config(source.folder), open_weights(source.folder))
    file = open_gguf(source.gguf)
    model = read_gguf(file, packed=packed)
    weights = Weights(file.paths, model.tensors, 0, {})
    return Opened(source, model.config, weights, model.notes, file)


def write_tokenizer_of(source: Source, folder: Path) -> None:
    """Put a model's tokenizer into a folder as its conversion does; its weights are not looked at.

    Raises:
        MlxmathError: a file is damaged.
    """
    file = open_gguf(source.gguf) if source.gguf else None
    Opened(source, {}, Weights((), {}, 0, {}), gguf=file).write_companions(folder, trust_remote_code=False)


def source_config(source: Source) -> dict[str, Any]:
    """The config.json of a model that was found, before any weight is looked at.

    Raises:
        MlxmathError: it is missing or damaged, or of a model that is not read.
    """
    if source.gguf is None:
        return read_config(source.folder)
    return read_gguf(open_gguf(source.gguf)).config


def copy_companions(source: Path, folder: Path, *, trust_remote_code: bool) -> None:
    for pattern in (*TOKENIZER_FILES, *LICENSES, *(("*.py",) if trust_remote_code else ())):
        for path in source.glob(pattern):
            copy = folder / path.relative_to(source)
            if path.is_file() and not copy.exists():
                copy.parent.mkdir(exist_ok=True)
                shutil.copyfile(path, copy)
    if not any(folder.glob("tokenizer*")) and not any(folder.glob("*.model")):
        warn(f"{source} holds no tokenizer files; the model can be loaded, but not used for text.")
