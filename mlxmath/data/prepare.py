"""A dataset into tokens, once; training finds them in the cache."""

import contextlib
import hashlib
import json
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mlxmath.config.schema import DataConfig, ModelConfig
from mlxmath.config.section import DEMO
from mlxmath.data.cache import CacheError, TokenRows
from mlxmath.data.cache_writer import RowWriter, fingerprint, token_dtype, write_rows
from mlxmath.data.codec import TOKENIZER_FILES, has_tokenizer, load_tokenizer
from mlxmath.data.mixture import Mixture
from mlxmath.data.render import encode_prompt
from mlxmath.data.rows import files_of, is_file_name
from mlxmath.data.summary import MIXTURE
from mlxmath.data.templates import Template, get_template
from mlxmath.data.tokenize import SKIPPED, Form, tokenize, tokenize_completions, tokenize_pairs
from mlxmath.errors import InputError, MlxmathError
from mlxmath.runtime.console import Progress, duration, say, size, warn
from mlxmath.runtime.files import real, sha256
from mlxmath.runtime.locks import making
from mlxmath.runtime.sealed import sealed_json, unsealed_json
from mlxmath.weights.hub import is_source
from mlxmath.weights.manifest import FILE_NAME, read_manifest

_TOKENIZE: Mapping[Form, Any] = {
    "solutions": tokenize, "pairs": tokenize_pairs, "completions": tokenize_completions,
}  # fmt: skip
_NOTES = "prepared.json"
"""In the cache folder: what rows the settings of earlier runs came to."""


def tokenizer_folder(config: ModelConfig) -> Path:
    """The folder with the tokenizer of `config.model`: `config.mlx_path`, which is made if need be."""
    folder = Path(config.mlx_path).expanduser()
    try:
        usable = not (folder / FILE_NAME).exists() or is_source(config.model, read_manifest(folder).source)
    except MlxmathError:
        usable = False
    if not (usable and has_tokenizer(folder)):
        from mlxmath.weights.convert import ensure_model

        ensure_model(config)
    say(f"tokenizer: {folder}")
    return folder


def prepare_rows(
    config: DataConfig, model_folder: Path, *, trust_remote_code: bool = False, form: Form = "solutions",
    noted_for: Path | None = None,
) -> TokenRows:  # fmt: skip
    """The tokenized dataset, from the cache if it is there, else made and put there.

    Args:
        config: which rows, and how they become tokens.
        model_folder: a folder with the model's tokenizer.
        trust_remote_code: let the tokenizer run code from its repository.
        form: what rows are made (see `mlxmath.data.tokenize`).
        noted_for: the folder that `prepared` will be asked about, where the tokenizer lies elsewhere.

    Raises:
        InputError: no such dataset, column, split, template or tokenizer.
        MlxmathError: the data cannot be read, or no row of it can be trained on.
    """
    template = get_template(config.template, config.template_file)
    mixture = Mixture(config, pairs=form != "solutions", labels=form == "completions")
    tokenizer = load_tokenizer(model_folder, trust_remote_code)
    template = template.for_tokenizer(tokenizer)
    for problems in mixture.sources:
        say(f"dataset: {problems}")
    shaped: dict[str, Any] = {form: True}
    if form == "solutions":
        shaped = config.model_dump(include={"overflow", "train_on_prompt"})
    key = {
        **mixture.key,
        "template": template.definition,
        "tokenizer": _tokenizer_identity(tokenizer, model_folder),
        **shaped,
        "max_seq_len": config.max_seq_len,
        **({"tools": config.tools} if config.tools else {}),
    }
    path = Path(config.cache_dir).expanduser() / f"{fingerprint(key)}.pkl"
    rows = _cached(path)
    if rows is None:
        with making(path, "mlxmath prepare") as waited:
            rows = _cached(path) if waited else None
            if rows is None:
                started = time.perf_counter()
                with write_rows(path, token_dtype(max(tokenizer.get_vocab().values()) + 1)) as writer:
                    _write_all(mixture, template, config, tokenizer, writer, form)
                rows = TokenRows.load(path)
                spent = time.perf_counter() - started
                say(
                    f"{path}: {len(rows):,} rows, {len(rows.tokens):,} tokens, {size(path.stat().st_size)} "
                    f"in {duration(spent)} ({len(rows.tokens) / spent:,.0f} tokens/s)"
                )
    note(config, noted_for or model_folder, rows, form)
    return rows


def _cached(path: Path) -> TokenRows | None:
    """What a cache file holds, if it is there and whole."""
    started = time.perf_counter()
    try:
        rows = TokenRows.load(path)
    except FileNotFoundError:
        return None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder; expected a file. Remove it, or give another --cache-dir.") from None
    except CacheError as error:
        warn(f"{error}; rebuilding")
        return None
    say(f"{path} holds these rows already: {len(rows):,}, loaded in {time.perf_counter() - started:.3f}s")
    return rows


def prepare_held_out(
    config: DataConfig, name: str, model_folder: Path, *, trust_remote_code: bool = False, form: Form = "solutions"
) -> TokenRows:
    """The rows of `--validation-dataset`, made as those of the training data are.

    Args:
        config: how rows become tokens; the columns are called the same.
        name: a file, the demo, or a repository as NAME or NAME:SPLIT (its validation split).
        model_folder: a folder with the model's tokenizer.
        trust_remote_code: let the tokenizer run code from its repository.
        form: see `prepare_rows`.

    Raises:
        InputError: no such dataset or split.
        MlxmathError: see `prepare_rows`.
    """
    changed, hint = held_out_config(config, name)
    say("held-out rows:")
    try:
        return prepare_rows(changed, model_folder, trust_remote_code=trust_remote_code, form=form)
    except InputError as error:
        raise InputError(f"--validation-dataset {name}: {error}{hint}") from None


def held_out_config(config: DataConfig, name: str) -> tuple[DataConfig, str]:
    """The settings that read `--validation-dataset`, and what to try if they cannot."""
    changes: dict[str, Any] = {
        "dataset": name, "split": None, "num_examples": None, "sources": (), "filters": (), "balance": None,
        "solutions": "own", "deduplicate": "off", "decontaminate": (), "curriculum": "none",
    }  # fmt: skip
    hint = ""
    if name == DEMO:
        changes |= {"split": "validation", "question_column": None, "solution_column": None, "answer_column": None}
    elif not is_file_name(name):
        repository, _, split = name.partition(":")
        changes |= {"dataset": repository, "split": split or "validation"}
        hint = f" Another split: --validation-dataset {repository}:SPLIT."
    if changes["dataset"] != config.dataset:
        changes |= {"dataset_config": None, "dataset_revision": None}
    return config.model_copy(update=changes), hint


def _write_all(
    mixture: Mixture, template: Template, config: DataConfig, tokenizer: Any, writer: RowWriter, form: Form
) -> None:
    """Choose, render, fit and write all problems, batch by batch."""
    mixture.choose()
    each = 2 if form == "completions" else 1  # numbers of a problem
    counts: Counter[str] = Counter()
    with Progress("tokenizing", len(mixture), unit="rows") as progress:
        for rows, batch_counts in _TOKENIZE[form](mixture, template, config, tokenizer):
            writer.add(rows, batch_counts["problems"])
            counts.update(batch_counts)
            progress.update(batch_counts["problems"] // each)
    if not counts["output_rows"]:
        left_out = Counter[str]()
        for report in mixture.reports:
            left_out.update({f"unusable: {n}" if n in report.skipped else n: c for n, c in report.left_out.items()})
        left_out.update({name: n for name, n in counts.items() if name.startswith(SKIPPED)})
        what = ", ".join(f"{n:,} {reason}" for reason, n in left_out.items()) or f"{counts['problems']} rows were read"
        names = ", ".join(report.name for report in mixture.reports)
        wanted = {"solutions": "row with a target", "pairs": "pair", "completions": "completion"}[form]
        overflow = f", --overflow {config.overflow}" if form == "solutions" else ""
        raise MlxmathError(
            f"{names}: no {wanted} is left ({what}; --max-seq-len "
            f"{config.max_seq_len}{overflow}); choose other data, columns or "
            "filters, or a larger --max-seq-len."
        )
    if mixture.ranks is not None:
        writer.ranks = mixture.ranks[writer.sources // each]
    writer.questions = np.repeat(mixture.questions, each)
    settings = {"overflow": config.overflow, "max_seq_len": config.max_seq_len, MIXTURE: mixture.report()}
    writer.stats.update({**counts, **settings})


def _tokenizer_identity(tokenizer: Any, folder: Path) -> list[Any]:
    """What decides how text becomes ids: the vocabulary's files, the control tokens, and how a probe comes out."""
    paths = [folder / name for name in TOKENIZER_FILES] + sorted(folder.glob("*.tiktoken"))
    hashes = [[path.name, sha256(path)] for path in paths if path.is_file()]
    probe = encode_prompt(tokenizer, " Tom's 3.5 \n\n  <s> </s> <think>\\frac{1}{2} é中\n")
    return [hashes, tokenizer.eos_token_id, len(tokenizer), probe]


class Prepared(NamedTuple):
    """What a cache holds."""

    rows: int
    tokens: int


def prepared(config: DataConfig, model_folder: Path, form: Form = "solutions") -> Prepared | None:
    """What `prepare_rows` with these settings came to the last time. Neither the data nor the tokenizer is opened."""
    try:
        return Prepared(
            **unsealed_json(Path(config.cache_dir).expanduser() / _NOTES, ())[_key(config, model_folder, form)]
        )
    except (MlxmathError, OSError, KeyError, TypeError):
        return None


def note(config: DataConfig, model_folder: Path, rows: TokenRows, form: Form) -> None:
    """Write down for `prepared` what rows there are."""
    path = Path(config.cache_dir).expanduser() / _NOTES
    notes: dict[str, Any] = {}
    with contextlib.suppress(MlxmathError):  # there are none, or damaged ones
        notes = unsealed_json(path, ())
    try:
        notes[_key(config, model_folder, form)] = {"rows": len(rows), "tokens": len(rows.tokens)}
        sealed_json(path, notes)
    except (MlxmathError, OSError) as error:
        warn(f"{path} is not up to date, which only `mlxmath plan` notices: {error}")


def _key(config: DataConfig, model_folder: Path, form: Form) -> str:
    """The settings, and the sizes and times of the files that are read by them."""
    datasets = [name for source in config.mixture for name in (source.dataset, source.fallback)]
    names = [name for name in (*datasets, *config.decontaminate, config.template_file) if name and is_file_name(name)]
    files = [(str(file), file.stat()) for name in names for file in files_of(Path(name).expanduser())]
    facts = [
        config.model_dump(mode="json", exclude={"cache_dir"}), str(real(model_folder)), form,
        [[name, found.st_size, found.st_mtime_ns] for name, found in files],
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
