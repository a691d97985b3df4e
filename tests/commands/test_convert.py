import subprocess
import sys
from pathlib import Path

import pytest

from mlxmath.commands.convert import main
from mlxmath.weights.manifest import Manifest, verify
from tests.helpers import invoke
from tests.weights.handmade import llama_folder


def test_convert_and_again(tmp_path: Path) -> None:
    source, out = llama_folder(tmp_path / "source"), tmp_path / "mlx_model"
    asked = ("--model", str(source), "--mlx-path", str(out))
    output = invoke(main, *asked, "--quantize", "4", "--group-size", "32").output
    assert "model.quantize           4" in output and f"wrote {out}: " in output and "4 bits" in output
    assert isinstance(verify(out, full=True), Manifest)
    assert "is valid" in invoke(main, *asked, "--quantize", "4", "--group-size", "32").output
    assert "--overwrite" in invoke(main, *asked, code=2).output
    assert "bfloat16" in invoke(main, *asked, "--overwrite", "--dtype", "bfloat16").output


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--model", "./absent"], 2, "does not exist"),
        (["--quantize", "7"], 2, "expected 2, 3, 4, 5, 6, 8, mxfp4, nvfp4, mxfp8 or"),
        (["--dtype", "float8"], 2, "float8"),
    ],
)
def test_usage(arguments: list[str], code: int, message: str, tmp_path: Path) -> None:
    output = invoke(main, *arguments, "--mlx-path", str(tmp_path / "out"), code=code).output
    assert message in output and "Traceback" not in output


def test_a_damaged_source_is_one_line(tmp_path: Path) -> None:
    source = llama_folder(tmp_path / "source")
    (source / "pytorch_model.bin").write_bytes(b"junk")
    output = invoke(main, "--model", str(source), "--mlx-path", str(tmp_path / "out"), code=1).output
    assert [line for line in output.splitlines() if line.startswith("error: ")] == output.splitlines()[-1:]


def test_the_plain_path_imports_little(tmp_path: Path) -> None:
    source = llama_folder(tmp_path / "source")
    script = (
        "import sys\nfrom mlxmath.commands.convert import main\n"
        f"main(['--model', {str(source)!r}, '--mlx-path', {str(tmp_path / 'out')!r}], standalone_mode=False)\n"
        "assert not {'mlx_lm', 'torch', 'transformers', 'huggingface_hub'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
