"""Rows, and files of them."""

import json
from pathlib import Path
from typing import Any

ROWS = [{"problem": f"q{i}", "solution": f"s{i}", "answer": str(i)} for i in range(5)]


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), path)
    return path
