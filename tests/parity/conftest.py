"""References that are not dependencies of the package: without them these tests are skipped."""

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the parity extra is not installed")
pytest.importorskip("transformers")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What the reference libraries deprecate among themselves is not our concern."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            for kind in ("FutureWarning", "DeprecationWarning"):
                item.add_marker(pytest.mark.filterwarnings(f"ignore::{kind}"))
