"""`plan`: sizes, verdicts, remedies; and that `train` asks it."""

import json
import re
from pathlib import Path

import pytest

from mlxmath.errors import InputError
from mlxmath.plan import parse_size
from tests.commands import run, succeed
from tests.test_train import debug_run, prepared  # noqa: F401 (fixtures)


def model(folder: Path) -> str:
    """A folder with nothing but the config.json of deepseek-math-7b."""
    (folder / "seven").mkdir()
    (folder / "seven" / "config.json").write_text(
        json.dumps(
            {
                "model_type": "llama", "num_hidden_layers": 30, "hidden_size": 4096, "intermediate_size": 11008,
                "num_attention_heads": 32, "vocab_size": 102400,
            }
        )
    )  # fmt: skip
    return "seven"


def test_it_needs_only_the_configuration_and_says_what_would_fit(tmp_path: Path) -> None:
    name = model(tmp_path)
    fits = succeed(tmp_path, "plan", "--model", name, "--memory", "128GB", "--quantize", "4")
    assert "fits" in fits.stdout and "weights" in fits.stdout
    assert re.search(r"about [\d,]+ tokens/s on this cpu", fits.stdout)
    assert "an optimizer step of 8 rows takes at most" in fits.stdout
    counted = succeed(tmp_path, "plan", "--model", name, "--memory", "128GB", "--quantize", "4", "--max-steps", "3")
    assert "24 rows of at most 1,024 tokens take at most" in counted.stdout
    tight = run(tmp_path, "plan", "--model", name, "--memory", "8 GB")
    assert tight.returncode == 1
    assert "does not fit into 8.00 GB" in tight.stdout
    assert "with --grad-checkpoint 1" in tight.stdout and "--quantize 4" in tight.stdout
    assert "(fits)" in tight.stdout or tight.stdout.count("still too much") == 4


def test_train_refuses_what_cannot_fit_unless_told_otherwise(prepared: Path) -> None:  # noqa: F811
    refused = run(prepared, "train", "--debug", "--memory-limit-gb", "0.001")
    assert refused.returncode == 2 and "takes about" in refused.stderr and "--allow-overcommit" in refused.stderr
    assert not (prepared / "adapters").exists()
    succeed(prepared, "train", "--debug", "--memory-limit-gb", "0.05", "--allow-overcommit", "--max-steps", "1")


@pytest.mark.parametrize(("text", "expected"), [("16GB", 16e9), ("1.5 tb", 1.5e12), ("500", 500), ("64B", 64)])
def test_sizes(text: str, expected: float) -> None:
    assert parse_size(text) == expected


@pytest.mark.parametrize("text", ["", "much", "-1GB", "0GB", "16GiB"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(InputError, match="--memory: expected a size such as 16GB"):
        parse_size(text)
