"""`mlxmath paper`: tables, figures and how to reproduce them, in LaTeX and Markdown."""

from pathlib import Path

import click

from mlxmath.commands import options


@options.command("paper")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", default="paper", show_default=True, help="Folder for the tables and figures.")
def main(runs: tuple[Path, ...], out: str) -> None:
    """Write tables, figures and a statement of how to reproduce each, of training runs, evaluations and sweeps.

    RUNS are their folders; a sweep brings its runs and its evaluation. The tables are LaTeX (booktabs) and Markdown,
    the figures PDF; paper.tex takes all of them in.
    """
    from mlxmath.papers.write import write_paper

    place = Path(out).expanduser()
    write_paper([folder.expanduser() for folder in runs], place)
    click.echo(place / "paper.tex")
