"""`mlxmath sweep`: many runs of one file, side by side."""

import json
from pathlib import Path

import click

from mlxmath.commands import options


@options.command("sweep", long=True)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--folder", default="sweep", show_default=True, help="Folder for the runs and the report.")
@click.option(
    "--deadline-hours", type=click.FloatRange(0, min_open=True),
    help="Stop, saved, within this many hours for all runs together (unset: as the file says).",
)  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Start anew, whatever the folder holds.")
@click.option("--dry-run", is_flag=True, help="Print the command of each run; start nothing.")
def main(file: Path, folder: str, deadline_hours: float | None, overwrite: bool, dry_run: bool) -> None:
    """Train the runs that FILE describes, each by a command of its own, and compare them.

    FILE is TOML: a table of settings for what is run ([train], [dpo], [reward-model], [grpo], [gkd]), [vary] with lists
    or ranges of settings, seeds, and perhaps [halving] and [evaluate]. The same command again goes on where it was
    interrupted.
    """
    from mlxmath.sweeps.file import read_sweep
    from mlxmath.sweeps.plan import plan_of
    from mlxmath.sweeps.sweep import sweep

    place = Path(folder).expanduser()
    if dry_run:
        plan = plan_of(read_sweep(file), place)
        stages = [stage for one in plan.configurations for run in one.runs for stage in run.stages]
        for command in dict.fromkeys(stage.command for stage in stages):
            click.echo(command)
        return
    found = sweep(file, place, overwrite=overwrite, deadline_hours=deadline_hours)
    best = next((one for one in found["configurations"] if one["number"] == found["best"]), None)
    click.echo(json.dumps({"best": best and best["runs"][0]["folder"], "report": str(place / "report.html")}))
    if any(run["error"] for one in found["configurations"] for run in one["runs"]):
        raise SystemExit(1)
