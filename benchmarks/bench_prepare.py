"""How fast are rows tokenized, and how fast is a large cache loaded?

    python benchmarks/bench_prepare.py [--data ../shared/data/gsm8k/train.jsonl]

Three ways of making the same training rows, completion-only, are timed on GSM8K: ours, mlx_lm's own path with the
prompt masked (`CompletionsDataset`, each row through the chat template twice), and ours on one core. Each is run
several times in turn and the fastest run counts. A set of ten times the rows goes through several processes. Then a
cache of 100 million tokens is written, loaded, and loaded with its checksum verified.
"""

import json
import os
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.common import REPOSITORY, command_line, machine, save_json
from benchmarks.workload import byte_level_tokenizer
from mlxmath.config.schema import DataConfig
from mlxmath.data.cache import TokenRows
from mlxmath.data.cache_writer import write_rows
from mlxmath.data.codec import load_tokenizer
from mlxmath.data.render import Rendered, adds_bos
from mlxmath.data.sources import load_problems
from mlxmath.data.templates import get_template, joined
from mlxmath.data.tokenize import tokenize

TEMPLATE = get_template("tutor")
NUM_TOKENS = 100_000_000
PACKAGES = ("tokenizers", "transformers", "numpy", "mlx-lm", "mlx")


def compare(name: str, tokenizer: Any, problems: list[Any], repeats: int) -> dict[str, Any]:
    """Rows a second of each way; the fastest of `repeats` runs, taken in turn."""
    from mlx_lm.tokenizer_utils import TokenizerWrapper
    from mlx_lm.tuner.datasets import CompletionsDataset

    tokenizer.chat_template = TEMPLATE.chat_template(bos=adds_bos(tokenizer))
    wrapped = TokenizerWrapper(tokenizer)
    rows = [{"prompt": p.question, "completion": p.solution} for p in problems]
    dataset = CompletionsDataset(rows, wrapped, "prompt", "completion", mask_prompt=True)
    rendered: list[Rendered] = []

    def theirs() -> list[Any]:
        return [dataset.process(dataset[i]) for i in range(len(dataset))]

    def ours() -> None:
        rendered[:] = [rows for rows, _ in tokenize(problems, TEMPLATE, DataConfig(), tokenizer)]

    def one_core() -> None:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        with mock.patch("mlxmath.data.tokenize.NUM_THREADS", 1):
            ours()
        os.environ["TOKENIZERS_PARALLELISM"] = "true"

    spent: dict[str, list[tuple[float, float]]] = {"mlx_lm": [], "ours": [], "ours, one core": []}
    ways: dict[str, Callable[[], Any]] = {"mlx_lm": theirs, "ours": ours, "ours, one core": one_core}
    ours()
    for _ in range(repeats):
        for way, run in ways.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            spent[way].append((time.perf_counter() - wall, time.process_time() - cpu))
    num_equal = count_equal(theirs(), rendered)
    best = {way: min(times) for way, times in spent.items()}
    cpu = {way: min(c for _, c in times) for way, times in spent.items()}
    return {
        "tokenizer": name,
        "rows": len(problems),
        "tokens": int(sum(len(batch.tokens) for batch in rendered)),
        "rows_equal_to_mlx_lm": num_equal,
        "rows_per_s": {way: round(len(problems) / wall) for way, (wall, _) in best.items()},
        "cpu_s": {way: round(seconds, 3) for way, seconds in cpu.items()},
        "speedup": round(best["mlx_lm"][0] / best["ours"][0], 2),
        "speedup_one_core": round(best["mlx_lm"][0] / best["ours, one core"][0], 2),
    }


def varied(problems: list[Any], times: int) -> list[Any]:
    """Each problem `times` times with other numbers, as augmented sets have them; the first time as it is."""
    rng = random.Random(0)

    def other(match: re.Match[str]) -> str:
        return str(rng.randrange(10 ** (len(match[0]) - 1), 10 ** len(match[0])))

    found = list(problems)
    for _ in range(times - 1):
        for p in problems:
            question, solution = (re.sub(r"\d{1,6}", other, text) for text in (p.question, p.solution))
            found.append(replace(p, question=question, solution=solution))
    rng.shuffle(found)
    return found


def count_equal(theirs: list[Any], ours: list[Rendered]) -> int:
    """Rows with the same tokens and the same first target."""
    mine = [
        (batch.tokens[a:b].tolist(), int(np.argmax(batch.mask[a:b])))
        for batch in ours
        for a, b in zip(batch.offsets[:-1], batch.offsets[1:], strict=True)
    ]
    if len(mine) != len(theirs):
        return 0
    return sum(row == (list(tokens), offset) for row, (tokens, offset) in zip(mine, theirs, strict=True))


def cache_times(num_tokens: int, repeats: int) -> dict[str, Any]:
    """Seconds to write a cache, to load it, and to load it when its checksum must be verified."""
    rng = np.random.default_rng(0)
    batch_tokens = 1_000_000
    offsets = np.arange(0, batch_tokens + 1, 500, dtype=np.int64)
    tokens = rng.integers(0, 32_000, batch_tokens).astype(np.uint32)
    batch = Rendered(tokens, (rng.random(batch_tokens) < 0.5).astype(np.uint8), offsets, np.arange(len(offsets) - 1))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.pkl"
        started = time.perf_counter()
        with write_rows(path, np.dtype(np.uint16)) as writer:
            for _ in range(num_tokens // batch_tokens):
                writer.add(batch, len(offsets) - 1)
        write_s = time.perf_counter() - started
        loads, verified = [], []
        for _ in range(repeats):
            started = time.perf_counter()
            rows = TokenRows.load(path)
            loads.append(time.perf_counter() - started)
        for _ in range(repeats):
            path.with_suffix(".verified").unlink()
            started = time.perf_counter()
            TokenRows.load(path)
            verified.append(time.perf_counter() - started)
        return {
            "tokens": len(rows.tokens),
            "rows": len(rows),
            "file_bytes": path.stat().st_size,
            "write_s": round(write_s, 3),
            "load_ms": round(1000 * sorted(loads)[repeats // 2], 2),
            "load_ms_worst": round(1000 * max(loads), 2),
            "load_and_verify_ms": round(1000 * sorted(verified)[repeats // 2], 1),
        }


def main() -> None:
    """Run, print a table, write benchmarks/results/prepare.json."""
    parser = command_line(__doc__, "prepare.json", "data")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--times", type=int, default=10, help="size of the larger set, in times of the data")
    parser.add_argument("--num-tokens", type=int, default=NUM_TOKENS)
    options = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    problems = list(load_problems(DataConfig(dataset=str(options.data), decontaminate=(), deduplicate="off")))
    texts = [joined(TEMPLATE.render(p)) for p in problems]
    tokenizers = {
        "bundled demo": load_tokenizer(REPOSITORY / "mlxmath" / "demo" / "model"),
        "byte-level BPE, 32k, trained on these rows": byte_level_tokenizer(texts, 32_000),
    }
    tokenization = [compare(name, t, problems, options.repeats) for name, t in tokenizers.items()]
    name, tokenizer = list(tokenizers.items())[-1]
    many = varied(problems, options.times)
    tokenization.append(compare(f"{name}; each row {options.times} times, with other numbers", tokenizer, many, 1))
    result = {
        "machine": machine(PACKAGES),
        "tokenization": tokenization,
        "cache": cache_times(options.num_tokens, options.repeats),
    }
    for row in result["tokenization"]:
        print(f"\n{row['tokenizer']}: {row['rows']:,} rows, {row['tokens']:,} tokens")
        print(f"  {row['rows_equal_to_mlx_lm']:,} rows equal to mlx_lm's")
        for way, rate in row["rows_per_s"].items():
            print(f"  {way:15} {rate:>8,} rows/s   {row['cpu_s'][way]:6.2f} s of processor time")
        print(f"  ours is {row['speedup']}x as fast, {row['speedup_one_core']}x on one core")
    cache = result["cache"]
    print(f"\ncache of {cache['tokens']:,} tokens, {cache['file_bytes'] / 1e6:.0f} MB")
    print(f"  written in {cache['write_s']} s, loaded in {cache['load_ms']} ms (worst {cache['load_ms_worst']} ms)")
    print(f"  loaded in {cache['load_and_verify_ms']} ms when the checksum is verified")
    save_json(options.out, result)
    print(f"\n{json.dumps(result['machine'])}\n-> {options.out}")


if __name__ == "__main__":
    main()
