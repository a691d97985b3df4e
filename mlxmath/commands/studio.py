"""`mlxmath studio`: a local page over the folders that the commands write; see `mlxmath.studio`."""

import importlib.util
from pathlib import Path

import click

from mlxmath.commands import options
from mlxmath.errors import InputError
from mlxmath.runtime.files import real


@options.command("studio")
@click.argument("folder", default=".")
@click.option(
    "--host", default="127.0.0.1", show_default=True,
    help="Address to listen on; any other than this machine's own opens the studio to the network.",
)  # fmt: skip
@click.option("--port", default=0, type=click.IntRange(0, 65535), help="Port to listen on (unset: a free one).")
@click.option("--read-only", is_flag=True, help="Show everything, start and write nothing.")
@click.option("--no-browser", is_flag=True, help="Print the address, and do not open it.")
def main(folder: str, host: str, port: int, read_only: bool, no_browser: bool) -> None:
    """Open a page on FOLDER, the current one by default: watch its runs, start new ones, compare answers, rate them.

    It starts the same commands as you would, shows the files that they write, and reads nothing outside FOLDER. Ctrl-C
    ends it; runs go on.
    """
    if missing := [name for name in ("starlette", "uvicorn", "python_multipart") if not importlib.util.find_spec(name)]:
        raise InputError(f"the studio needs {', '.join(missing)}: `pip install 'mlxmath[studio]'`.")
    from mlxmath.studio.place import Studio
    from mlxmath.studio.server import serve

    place = real(Path(folder).expanduser())
    if not place.is_dir():
        raise InputError(f"FOLDER: {folder} is no folder; expected one in which mlxmath's commands run.")
    serve(Studio(place, read_only), host, port, browse=not no_browser)
