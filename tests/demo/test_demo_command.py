"""The demo's options reach what they are for."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlxmath.config.load import TRAINED_FROM
from mlxmath.training import sft
from tests.helpers import run


def test_where_the_results_go_is_no_setting_of_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[Any] = []
    monkeypatch.setattr(sft, "sft", lambda resolved: trained.append(resolved) or SimpleNamespace(exit_code=7))
    ended = run(
        tmp_path, "mlxmath.demo.__main__", "--results-path", "found", "--adapter-path", "mine", "--backend", "cpu"
    )
    assert ended.returncode == 7
    (resolved,) = trained
    assert resolved.others(TRAINED_FROM) == [], "training refuses settings that it has no use for"
    assert resolved.config.training.adapter_path == "mine" and resolved.config.runtime.backend == "cpu"
