"""`mlxmath push`: an adapter or a model to the Hugging Face Hub; see `mlxmath.sharing.push`."""

from pathlib import Path

import click

from mlxmath.commands import options
from mlxmath.runtime.console import put, say, size

_FOLDER = click.Path(path_type=Path)


@options.command("push", long=True)
@click.argument("folder", type=_FOLDER)
@click.argument("repository")
@click.option("--run", type=_FOLDER, help="Folder of the training run, where FOLDER does not tell it.")
@click.option("--evaluation", type=_FOLDER, multiple=True, help="Folder of an evaluation; may be repeated.")
@click.option("--license", "licence", metavar="NAME", help="As the hub names it (unset: that of the base).")
@click.option("--public", is_flag=True, help="Everybody may see it (unset: you alone).")
@click.option("--dry-run", is_flag=True, help="Print the card and the files; send nothing.")
def main(
    folder: Path, repository: str, run: Path | None, evaluation: tuple[Path, ...], licence: str | None, public: bool,
    dry_run: bool,
) -> None:  # fmt: skip
    """Push the adapter, model or GGUF files in FOLDER to REPOSITORY (NAME or OWNER/NAME) on the Hugging Face Hub.

    A card is made from the run and its evaluation. The token is that of `hf auth login`, or HF_TOKEN.
    """
    from mlxmath.sharing.push import push

    found = push(
        folder, repository, run=run, evaluations=evaluation, licence=licence, public=public, dry_run=dry_run
    )  # fmt: skip
    if dry_run:
        put(found.card)
        for name, count in found.sizes.items():
            say(f"  {name}  {size(count)}")
        say(f"nothing was sent; {'public' if public else 'private'}, to {found.repository}")
        return
    say(f"pushed to {found.repository}")
    put(found.url or "")
