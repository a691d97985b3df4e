"""`mlxmath report`: build an evaluation's report again from its samples."""

from pathlib import Path

import click

from mlxmath.commands import options


@options.command("report")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--regrade", is_flag=True, help="Grade the responses anew instead of taking the verdicts in the samples.")
def main(folder: Path, regrade: bool) -> None:
    """Write results.json, report.html, charts and the model card's table of FOLDER again, from its samples.jsonl."""
    from mlxmath.evaluation.report import write_report

    write_report(folder, regrade=regrade)
