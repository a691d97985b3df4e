"""`mlxmath prepare`: turn a dataset into tokens, once; training finds them in the cache. Or make more of it, once."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlxmath.commands import options
from mlxmath.config.load import settings_from
from mlxmath.config.offered import AUGMENTATION, DATA, MODEL, TEACHER
from mlxmath.runtime.console import put, say

if TYPE_CHECKING:
    from mlxmath.data.cache import TokenRows


@options.command("prepare")
@options.configured
@options.setting_options(
    *MODEL, *DATA, *AUGMENTATION, *TEACHER, "distillation.samples",
    "distillation.temperature",
)  # fmt: skip
@click.option("--resume", is_flag=True, help="With --augment: use the teacher's answers that the folder holds.")
@click.option("--overwrite", is_flag=True, help="With --augment: replace what the folder holds.")
@click.option("--debug", is_flag=True, help="The bundled model and ten bundled problems.")
@click.option(
    "--show",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="Print the first N rows; what is trained on is green, between ⟦ and ⟧.",
)
def main(show: int, resume: bool, overwrite: bool, **values: Any) -> None:
    """Tokenize a dataset into the cache and say what became of it; or write a larger one (--augment)."""
    resolved = settings_from(("model", "data", "augmentation", "distillation", "runtime"), origin="option", **values)
    for line in resolved.lines(("data",)):
        say(line)
    config = resolved.config
    if config.augmentation.augment:
        from mlxmath.distillation.augment import augment

        made = augment(config, resume=resume, overwrite=overwrite)
        for line in made.summary():
            say(line)
        click.echo(json.dumps({name: str(path) for name, path in made.paths.items()}))
        return

    from mlxmath.data.prepare import prepare_rows, tokenizer_folder
    from mlxmath.data.summary import plot_lengths, statistics
    from mlxmath.weights.held import with_held_model

    config = with_held_model(resolved).config
    folder = tokenizer_folder(config.model)
    rows = prepare_rows(config.data, folder, trust_remote_code=config.model.trust_remote_code)
    for line in statistics(rows):
        say(line)
    plot = Path(config.data.cache_dir) / "token_lengths.png"
    plot_lengths(rows.lengths, plot)
    say(f"histogram: {plot}")
    if show:
        show_rows(rows, folder, show, trust_remote_code=config.model.trust_remote_code)


def show_rows(rows: "TokenRows", model_folder: Path, count: int, *, trust_remote_code: bool = False) -> None:
    """Print the first `count` rows to standard output: targets in green between ⟦ and ⟧, context dim."""
    import numpy as np

    from mlxmath.data.codec import codec_of, load_tokenizer

    codec = codec_of(load_tokenizer(model_folder, trust_remote_code))
    for index in range(min(count, len(rows))):
        tokens, mask = rows.row(index)
        ends = [*(np.flatnonzero(np.diff(mask)) + 1).tolist(), len(tokens)]
        put(f"--- row {index}: {len(tokens)} tokens, {int(mask.sum())} targets")
        start = shown = 0
        for end in ends:
            text = codec.decode(tokens[:end].tolist())
            target = bool(mask[start])
            part = f"⟦{text[shown:]}⟧" if target else text[shown:]
            put(part, end="", fg="green" if target else None, dim=not target)
            start, shown = end, len(text)
        put("")
