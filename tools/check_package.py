"""`python tools/check_package.py`: the wheel in dist/ works without this clone.

Installs it into a new environment and runs the bundled model's shortest way, from `train` to a report, in a folder
outside the clone. The wheel's dependencies are those of the environment that runs this (found through a .pth file,
which brings folders, never an editable install); `--empty EXTRAS` installs them anew instead, as a user does.
"""

import argparse
import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
QUESTION, ANSWER = "What is 12 + 7?", "19"
STEPS = (
    ("mlxmath", "train", "--debug"),
    ("mlxmath", "evaluate", "--benchmark", "demo", "--limit", "2"),
    ("mlxmath", "infer", "--prompt", QUESTION),
    ("python", "-m", "mlxmath.demo", "--help"),
)


def install(wheel: Path, folder: Path, extras: str | None) -> Path:
    """A new environment in `folder` with the wheel; the folder of its programs."""
    venv.create(folder, with_pip=True)
    programs = folder / "bin"
    pip = [programs / "python", "-m", "pip", "install", "--quiet"]
    if extras is not None:
        subprocess.run([*pip, f"{wheel}[{extras}]" if extras else wheel], check=True)
        return programs
    subprocess.run([*pip, "--no-deps", wheel], check=True)
    site = subprocess.check_output(
        [programs / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    )
    lent = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    Path(site.decode().strip(), "lent.pth").write_text("\n".join(lent) + "\n")
    return programs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--empty", metavar="EXTRAS", help="install the dependencies too, with these extras ('' for none)"
    )
    extras = parser.parse_args().empty
    (wheel,) = (ROOT / "dist").glob("mlxmath-*.whl")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    clean |= {"HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as name:
        programs = install(wheel, Path(name, "environment").resolve(), extras)
        work = Path(name, "work")
        work.mkdir()

        def run(program: str, *arguments: str) -> str:
            print("$", program, *arguments, flush=True)
            done = subprocess.run([programs / program, *arguments], cwd=work, env=clean, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"{done.stdout}{done.stderr}exit code {done.returncode}")
            return done.stdout

        place = Path(run("python", "-c", "import mlxmath; print(mlxmath.__file__)").strip())
        if not place.is_relative_to(programs.parent):
            sys.exit(f"mlxmath was imported from {place}, not from the wheel")
        answers = [run(*step) for step in STEPS]
        if ANSWER not in answers[2]:
            sys.exit(f"infer answered {answers[2]!r} to {QUESTION}")
        if not list(work.glob("evaluation_results/**/report.html")):
            sys.exit("evaluate left no report.html")
    print(f"{wheel.name} works without the clone")


if __name__ == "__main__":
    main()
