"""`mlxmath doctor`: has this machine, or a cluster, what work needs?"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlxmath.commands import options
from mlxmath.runtime.console import harmless, printable

if TYPE_CHECKING:
    from mlxmath.runtime.doctor import Check

_SIGNS = {"ok": "[green]ok[/green]", "note": "[yellow]note[/yellow]", "missing": "[red]missing[/red]"}


@options.command("doctor")
@click.option("--cluster", metavar="FILE", help="Check the hosts of a hosts file for mlx.launch too.")
@click.option("--hub", is_flag=True, help="Ask the Hugging Face hub whether it can be reached.")
@click.option(
    "--python", metavar="PATH", help="With --cluster: Python on every host, as in mlx.launch.  [default: this one]"
)
@click.option(
    "--starting-port", type=click.IntRange(1024, 65000), default=32323, show_default=True,
    help="With --cluster: the first port of the ring, as in mlx.launch.",
)  # fmt: skip
def main(cluster: str | None, hub: bool, python: str | None, starting_port: int) -> None:
    """Check devices, BLAS, packages, memory and disk; with --cluster hosts, versions, ports and bandwidth.

    Exits with 1 if something is missing that work is impossible without.
    """
    from mlxmath.runtime.cluster import check_cluster, read_hosts
    from mlxmath.runtime.doctor import check_machine

    hosts = read_hosts(Path(cluster).expanduser()) if cluster else None
    checks = [*check_machine(Path.cwd(), hub=hub)]
    if hosts is not None:
        checks += check_cluster(hosts, python or sys.executable, starting_port)
    show(checks)
    if any(check.status == "missing" for check in checks):
        raise SystemExit(1)


def show(checks: "list[Check]") -> None:
    """Print a table to standard output."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(show_lines=False)
    for column in ("", "what", "found"):
        table.add_column(column, overflow="fold")
    for check in checks:
        table.add_row(_SIGNS[check.status], escape(printable(check.name)), escape(harmless(check.found)))
    Console().print(table)
