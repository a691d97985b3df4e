"""Rows as a run reads them, page by page: what `mlxmath prepare` makes, its mask, and what it leaves out.

All of this runs in the process of `mlxmath.studio.worker`, in the studio's folder.
"""

import itertools
import json
import math
import os
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from mlxmath.config.schema import ModelConfig, RunConfig
from mlxmath.config.section import DEMO
from mlxmath.errors import InputError, MlxmathError
from mlxmath.runtime.console import size

MOST_BYTES = 64 << 20
"""Larger files are prepared only by the command, which the user starts."""
SMALL_BYTES = 1 << 20
"""Of larger files a first look takes the first rows alone."""
_HEAD = 20
"""So many."""
_MOST_KEPT = 4
_MOST_CHARACTERS = 20_000
"""Of a row's text on a page."""
_MOST_TOKENS = 2048
"""Of a row, whose boundaries are shown."""


@dataclass
class Opened:
    """Prepared data, open to be shown row by row."""

    count: int
    """Rows."""
    row: Callable[[int], tuple[Sequence[int], Sequence[int]]]
    """Tokens and mask."""
    label: Callable[[int], str]
    """What a row is, for people."""
    decode: Callable[[list[int]], str]
    lengths: Any
    """(R,)"""
    facts: list[str]
    """What became of the dataset."""
    left_out: Callable[[], list[dict[str, Any]]]
    """Rows that are not taken, with why; read when asked for."""
    longest: int
    _left_out: list[dict[str, Any]] | None = field(default=None)

    def those_left_out(self) -> list[dict[str, Any]]:
        """See `left_out`; once."""
        if self._left_out is None:
            self._left_out = self.left_out()
        return self._left_out


_opened: OrderedDict[str, Opened] = OrderedDict()


def page(config: RunConfig, request: Mapping[str, Any]) -> dict[str, Any]:
    """A page of rows, or one row, or of those that are left out, as `mlxmath prepare` makes them."""
    method = str(request["method"])
    key = json.dumps([request[name] for name in ("folder", "method", "config", "stamp")], sort_keys=True)
    num_bytes = _num_bytes(config)
    if key not in _opened and num_bytes > MOST_BYTES and not _is_prepared(config, method):
        what = "is on the hub" if num_bytes == math.inf else f"is large ({size(int(num_bytes))})"
        return {"unprepared": f"{', '.join(source.dataset for source in config.data.mixture)} {what}"}
    if key not in _opened and request["glance"] and num_bytes > SMALL_BYTES and (head := _head(config)):
        key = f"head {key}"
        config = head
    if (found := _opened.get(key)) is None:
        found = _opened[key] = _open(config, method)
        while len(_opened) > _MOST_KEPT:
            _opened.popitem(last=False)
    _opened.move_to_end(key)
    start, count = int(request["start"]), int(request["count"])
    shown: dict[str, Any] = {"count": found.count, "longest": found.longest, "facts": found.facts, "start": start}
    shown["is_head"] = key.startswith("head")
    if request["left_out"]:
        them = found.those_left_out()
        return shown | {"count": len(them), "left_out": them[start : start + count]}
    numbers = range(start, min(start + count, found.count))
    rows = [_row(found, number, apart=bool(request["tokens"])) for number in numbers]
    return shown | {"rows": rows, "histogram": _histogram(found)}


def _row(found: Opened, number: int, *, apart: bool) -> dict[str, Any]:
    """A row as runs of context and of targets, or token by token."""
    tokens, mask = found.row(number)
    ids, flags = [int(token) for token in tokens], [int(flag) for flag in mask]
    if apart:
        ends = list(range(1, min(len(ids), _MOST_TOKENS) + 1))
    else:
        ends = [*(i for i in range(1, len(ids)) if flags[i] != flags[i - 1]), len(ids)]
    parts, start, shown, num_characters = [], 0, 0, 0
    is_cut = apart and len(ids) > _MOST_TOKENS
    for end in ends:
        text = found.decode(ids[:end])
        if apart and text.endswith("�") and end < len(ids):
            piece = ""  # a part of a character; it comes with the last of its tokens
        else:
            piece, shown = text[shown:], len(text)
        parts.append([piece[: max(0, _MOST_CHARACTERS - num_characters)], flags[start], ids[start] if apart else None])
        num_characters += len(piece)
        start = end
    return {
        "number": number, "label": found.label(number), "parts": parts, "tokens": len(ids), "targets": sum(flags),
        "is_longest": len(ids) >= found.longest, "is_cut": is_cut or num_characters > _MOST_CHARACTERS,
    }  # fmt: skip


def _histogram(found: Opened) -> dict[str, Any]:
    from mlxmath.data.summary import bins

    counts, edges = bins(found.lengths)
    return {"counts": counts, "edges": edges}


def _num_bytes(config: RunConfig) -> float:
    """How much there is to read; infinite where it is not on this machine."""
    from mlxmath.data.rows import is_file_name

    total = 0.0
    for source in config.data.mixture:
        if source.dataset == DEMO:
            continue
        if not is_file_name(source.dataset):
            return math.inf
        path = Path(source.dataset)
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        total += sum(file.stat().st_size for file in files)
    return total


def _head(config: RunConfig) -> RunConfig | None:
    """The settings that come to the first rows alone; None where they are drawn from all."""
    (source, *others), wanted = config.data.mixture, config.data.num_examples
    if others or source.count is not None or source.balance is not None or (wanted or _HEAD) < _HEAD:
        return None
    apart = _temporary()  # the cache is for the rows of runs
    return config.model_copy(
        update={"data": config.data.model_copy(update={"num_examples": _HEAD, "cache_dir": str(apart)})}
    )


@cache
def _temporary() -> Path:
    """A folder of this process."""
    _made.append(tempfile.TemporaryDirectory(prefix="mlxmath-studio-"))
    return Path(_made[-1].name)


def _form(config: RunConfig, method: str) -> Any:
    if method in ("dpo", "reward-model"):
        return "completions" if method == "dpo" and config.dpo.loss_type == "kto" else "pairs"
    return "solutions"


def _is_prepared(config: RunConfig, method: str) -> bool:
    from mlxmath.data.prepare import prepared

    return prepared(config.data, Path(config.model.mlx_path).expanduser(), _form(config, method)) is not None


def _open(config: RunConfig, method: str) -> Opened:
    return _open_prompts(config, method) if method in ("grpo", "gkd") else _open_rows(config, method)


def _open_rows(config: RunConfig, method: str) -> Opened:
    """What fine-tuning, preferences and reward models learn from."""
    from mlxmath.data.codec import codec_of, load_tokenizer
    from mlxmath.data.load import mixture_for
    from mlxmath.data.prepare import prepare_rows
    from mlxmath.data.summary import facts

    form, folder = _form(config, method), _tokenizer_folder(config.model)
    rows = prepare_rows(config.data, folder, form=form, noted_for=Path(config.model.mlx_path).expanduser())
    sources = rows.sources

    def label(number: int) -> str:
        if sources is None:
            return f"row {number + 1:,}"
        source = int(sources[number])
        if form == "pairs":
            return f"pair {number // 2 + 1:,}, {'rejected' if number % 2 else 'chosen'}"
        if form == "completions":
            return f"completion {number + 1:,}, {'undesirable' if source % 2 else 'desirable'}"
        first, last = (int(sources.searchsorted(source, side)) for side in ("left", "right"))
        part = f", part {number - first + 1} of {last - first}" if last - first > 1 else ""
        return f"row {number + 1:,}{part}"

    return Opened(
        len(rows), lambda number: tuple(part.tolist() for part in rows.row(number)), label,
        codec_of(load_tokenizer(folder)).decode, rows.lengths, facts(rows),
        lambda: _left_out(mixture_for(method, config, config.data)), config.data.max_seq_len,
    )  # fmt: skip


def _open_prompts(config: RunConfig, method: str) -> Opened:
    """What GRPO and on-policy distillation ask: the completion is the model's own."""
    import numpy as np

    from mlxmath.data.codec import codec_of
    from mlxmath.data.mixture import Mixture
    from mlxmath.data.templates import get_template
    from mlxmath.generation.model import load_generation_tokenizer
    from mlxmath.training.grpo.prompts import read_prompts

    length = (config.gkd if method == "gkd" else config.grpo).max_completion_length
    solutions = method == "gkd" and config.gkd.lmbda < 1
    template = get_template(config.data.template, config.data.template_file)
    tokenizer = load_generation_tokenizer(_tokenizer_folder(config.model), template)
    read = read_prompts(config, config.data, tokenizer, length, solutions=solutions)
    prompts = read.prompts
    told = [f"{len(prompts):,} problems with a gold answer; the model writes up to {length:,} tokens to each"]
    told += [f"{count:,} left out: {reason}" for reason, count in read.left_out.items() if count]
    return Opened(
        len(prompts), lambda number: (prompts[number].tokens, [0] * len(prompts[number].tokens)),
        lambda number: f"problem {number + 1:,}, gold answer {prompts[number].gold}",
        codec_of(tokenizer).decode, np.array([len(prompt.tokens) for prompt in prompts], np.int64), told,
        lambda: _left_out(Mixture(config.data, solutions_required=solutions)), config.data.max_seq_len - length,
    )  # fmt: skip


def _left_out(mixture: Any) -> list[dict[str, Any]]:
    """Rows that are not taken: where, why, and what stands there."""
    mixture.choose()
    found = []
    for loaded, them in mixture.left_out:
        texts = dict(_texts(loaded, {one.row for one in them}))
        found += [
            {"source": loaded.rows.name, "row": one.row + 1, "reason": one.reason, "text": texts.get(one.row, "")}
            for one in them
        ]
    return found


def _texts(loaded: Any, wanted: set[int]) -> Iterator[tuple[int, str]]:
    """What the rows of these numbers ask."""
    name = loaded.columns.question
    for number, row in enumerate(itertools.islice(loaded.rows.read(loaded.columns.used), max(wanted, default=-1) + 1)):
        if number in wanted:
            value = row.get(name)
            text = value if isinstance(value, str) else json.dumps(row, ensure_ascii=False, default=str)
            yield number, text[:500].encode("utf-8", "replace").decode()


def _tokenizer_folder(config: ModelConfig) -> Path:
    """A folder with the model's tokenizer, as a conversion writes it. No weight is read, none downloaded.

    Raises:
        InputError: it is not on this machine.
    """
    from mlxmath.data.codec import has_tokenizer
    from mlxmath.training.plan import converted

    folder = Path(config.mlx_path).expanduser()
    if converted(config) is not None and has_tokenizer(folder):
        return folder
    return _of_source(os.getcwd(), config.model, config.revision)  # noqa: PTH109


_made: list[tempfile.TemporaryDirectory[str]] = []


@lru_cache(maxsize=16)
def _of_source(_: str, model: str, revision: str | None) -> Path:
    from mlxmath.data.codec import has_tokenizer
    from mlxmath.weights.hub import fetch
    from mlxmath.weights.opened import write_tokenizer_of

    source = fetch(model, revision, config_only=True)
    if source.gguf is None and not has_tokenizer(source.folder):
        raise InputError(
            f"the tokenizer of {model} is not on this machine, so its tokens cannot be shown yet; convert the model "
            "first (`mlxmath convert`), or start the run."
        )
    _made.append(tempfile.TemporaryDirectory(prefix="mlxmath-studio-"))
    folder = Path(_made[-1].name)
    with _own_errors(model):
        write_tokenizer_of(source, folder)
    return folder


@contextmanager
def _own_errors(model: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise MlxmathError(f"the tokenizer of {model} cannot be read: {error.strerror or error}.") from None
