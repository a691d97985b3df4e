import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from mlxmath.commands.convert import main
from mlxmath.weights.manifest import Manifest, verify
from tests.weights.handmade import llama_folder


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    return result.exit_code, result.output


def test_convert_and_again(tmp_path: Path) -> None:
    source, out = llama_folder(tmp_path / "source"), tmp_path / "mlx_model"
    code, output = run("--model", source, "--mlx-path", out, "--quantize", 4, "--group-size", 32)
    assert code == 0, output
    assert "model.quantize           4" in output
    assert f"wrote {out}: " in output
    assert "4 bits" in output
    assert isinstance(verify(out, full=True), Manifest)
    code, output = run("--model", source, "--mlx-path", out, "--quantize", 4, "--group-size", 32)
    assert code == 0
    assert "is valid" in output
    code, output = run("--model", source, "--mlx-path", out)
    assert code == 2
    assert "--overwrite" in output
    code, output = run("--model", source, "--mlx-path", out, "--overwrite", "--dtype", "bfloat16")
    assert code == 0
    assert "bfloat16" in output


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--model", "./absent"], 2, "does not exist"),
        (["--quantize", "3"], 2, "'4', '8'"),
        (["--dtype", "float8"], 2, "float8"),
    ],
)
def test_usage(arguments: list[str], code: int, message: str, tmp_path: Path) -> None:
    found, output = run(*arguments, "--mlx-path", tmp_path / "out")
    assert found == code, output
    assert message in output
    assert "Traceback" not in output


def test_a_damaged_source_is_one_line(tmp_path: Path) -> None:
    source = llama_folder(tmp_path / "source")
    (source / "pytorch_model.bin").write_bytes(b"junk")
    code, output = run("--model", source, "--mlx-path", tmp_path / "out")
    assert code == 1
    assert [line for line in output.splitlines() if line.startswith("error: ")] == output.splitlines()[-1:]


def test_help_imports_neither_mlx_nor_numpy() -> None:
    script = (
        "import sys\nfrom mlxmath.commands.convert import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "assert not {'mlx', 'mlx.core', 'numpy', 'torch', 'huggingface_hub'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--quantize" in done.stdout


def test_the_plain_path_imports_little(tmp_path: Path) -> None:
    source = llama_folder(tmp_path / "source")
    script = (
        "import sys\nfrom mlxmath.commands.convert import main\n"
        f"main(['--model', {str(source)!r}, '--mlx-path', {str(tmp_path / 'out')!r}], standalone_mode=False)\n"
        "assert not {'mlx_lm', 'torch', 'transformers', 'huggingface_hub'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
