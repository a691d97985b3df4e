"""What is published: the wheel holds the tracked files of the package and nothing else, even if made from the sdist."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BUILT_WITH = {"README.md", "CHANGELOG.md", "LICENSE", "pyproject.toml", ".gitignore"}
"""What the sdist holds beside the package, to make the wheel."""


@pytest.fixture(scope="module")
def tracked() -> set[str]:
    if not (ROOT / ".git").exists():
        pytest.skip("no git clone")
    listed = subprocess.check_output(["git", "ls-files", "-z", "mlxmath"], cwd=ROOT, text=True)
    return set(listed.split("\0")) - {""}


def build(source: Path, folder: Path, kind: str) -> Path:
    """The sdist or wheel of `source`, made in `folder` with what is installed."""
    command = [sys.executable, "-m", "build", "--no-isolation", f"--{kind}", "--outdir", str(folder), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = folder.iterdir()
    return made


def test_the_wheel_and_the_sdist_hold_the_package(tracked: set[str], tmp_path: Path) -> None:
    sdist = build(ROOT, tmp_path / "sdist", "sdist")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names == tracked | BUILT_WITH | {"PKG-INFO"}
    (tmp_path / "extracted").mkdir()
    subprocess.run(["tar", "-xzf", sdist, "-C", tmp_path / "extracted"], check=True)  # tarfile's filter is of 3.11.4
    (extracted,) = (tmp_path / "extracted").iterdir()
    for kind, source in (("from the clone", ROOT), ("from the sdist", extracted)):
        with zipfile.ZipFile(build(source, tmp_path / kind, "wheel")) as wheel:
            held = {name for name in wheel.namelist() if ".dist-info/" not in name}
            (entry_points,) = (name for name in wheel.namelist() if name.endswith(".dist-info/entry_points.txt"))
            assert "mlxmath = mlxmath.cli:main" in wheel.read(entry_points).decode(), kind
            for name in held:
                assert wheel.read(name) == (ROOT / name).read_bytes(), f"{kind}: {name}"
        assert held == tracked, kind


def test_nothing_but_modules_and_the_data_that_they_read_is_tracked(tracked: set[str]) -> None:
    data = {".typed", ".toml", ".json", ".jsonl", ".npz", ".bin", ".css", ".js", ".html", ".md", ".svg", ".txt"}
    assert {Path(name).suffix for name in tracked} == {".py", *data}
    parts = {part for name in tracked for part in Path(name).parts}
    assert not {part for part in parts if part in ("tests", "__pycache__", "conftest.py") or part.startswith("test_")}
