"""`mlxmath distill`: a teacher's solutions, judged, as a dataset to train on."""

import json
from pathlib import Path
from typing import Any

import click

from mlxmath.commands import options
from mlxmath.config.load import settings_from
from mlxmath.config.offered import DISTILLATION, PROBLEMS, RUNTIME
from mlxmath.runtime.console import say, warn


@options.command("distill", long=True)
@options.configured
@options.setting_options(*DISTILLATION, *PROBLEMS)
@click.option("--rank-only", metavar="FILE", help="Judge the solutions in this file; no teacher is asked.")
@click.option("--resume", is_flag=True, help="Use the answers in the folder, and ask for what is missing.")
@click.option("--overwrite", is_flag=True, help="Start anew, whatever the folder holds.")
@options.setting_options(*RUNTIME)
def main(rank_only: str | None, resume: bool, overwrite: bool, **values: Any) -> None:
    """Have a teacher write solutions, and keep the right and faithful ones as a dataset.

    Writes responses.jsonl (every answer, as it comes), solutions.jsonl (for train --dataset), pairs.jsonl (a kept and a
    wrong solution to the same problem, for dpo and reward-model --dataset), rejected.jsonl (with reasons) and card.md.
    """
    config = settings_from(("distillation", "data", "runtime"), origin="option", **values).config

    from mlxmath.distillation.distill import distill

    path = Path(rank_only).expanduser() if rank_only else None
    result = distill(config, rank_only=path, resume=resume, overwrite=overwrite)
    for line in result.summary():
        say(line)
    if not result.num_kept:
        warn("no solution is kept; rejected.jsonl holds each with its reason")
    click.echo(json.dumps({name: str(path) for name, path in result.paths.items()}))
