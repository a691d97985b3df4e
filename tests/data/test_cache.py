"""The cache: what comes out is what went in, or a `CacheError`; nothing in it is ever executed."""

import hashlib
import multiprocessing
import os
import pickle
import pickletools
import random
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlxmath.config.schema import DataConfig, SourceConfig
from mlxmath.data import cache
from mlxmath.data.cache import CacheError, TokenRows
from mlxmath.data.cache_writer import fingerprint, token_dtype, write_rows
from mlxmath.data.prepare import Prepared, note, prepared
from mlxmath.data.render import Rendered
from tests.data.material import write_lines


def make_rows(num_rows: int = 50, dtype: Any = np.uint16, seed: int = 0) -> TokenRows:
    rng = np.random.default_rng(seed)
    offsets = np.cumsum([0, *rng.integers(1, 40, num_rows)])
    tokens = rng.integers(0, np.iinfo(dtype).max, offsets[-1]).astype(dtype)
    mask = (rng.random(offsets[-1]) < 0.5).astype(np.uint8)
    return TokenRows(tokens, mask, offsets, {"rows": num_rows, "rate": 0.5, "overflow": "chunk", "skipped: é": 2})


def save(rows: TokenRows, path: Path) -> None:
    sources = np.arange(len(rows)) if rows.sources is None else rows.sources
    with write_rows(path, rows.tokens.dtype) as writer:
        writer.add(Rendered(rows.tokens, rows.mask, rows.offsets, sources), int(sources[-1]) + 1)
        writer.stats.update(rows.stats)
        writer.ranks, writer.questions = rows.ranks, rows.questions


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.pkl"


def assert_equal(found: TokenRows, expected: TokenRows) -> None:
    assert len(found) == len(expected)
    assert found.tokens.dtype == expected.tokens.dtype
    for name in ("tokens", "mask", "offsets", "lengths"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert found.stats == expected.stats
    assert found.num_targets == expected.num_targets


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_round_trip(tmp_path: Path, dtype: Any) -> None:
    rows = make_rows(dtype=dtype)
    save(rows, tmp_path / "x.pkl")
    loaded = TokenRows.load(tmp_path / "x.pkl")
    assert_equal(loaded, rows)
    tokens, mask = loaded.row(3)
    np.testing.assert_array_equal(tokens, rows.tokens[rows.offsets[3] : rows.offsets[4]])
    np.testing.assert_array_equal(mask, rows.mask[rows.offsets[3] : rows.offsets[4]])
    with pytest.raises(IndexError):
        loaded.row(50)
    with pytest.raises(ValueError, match="read-only"):
        loaded.tokens[0] = 1
    np.testing.assert_array_equal(loaded.sources, np.arange(50))
    for array in (loaded.tokens, loaded.mask, loaded.offsets, loaded.sources):
        assert array.ctypes.data % 64 == 0


def test_batches_are_appended(tmp_path: Path) -> None:
    rows = make_rows()
    with write_rows(tmp_path / "x.pkl", np.dtype(np.uint16)) as writer:
        for start in range(0, 50, 7):
            offsets = rows.offsets[start : start + 8]
            span = slice(offsets[0], offsets[-1])
            number = np.arange(len(offsets) - 1)
            batch = Rendered(rows.tokens[span].astype(np.uint32), rows.mask[span], offsets - offsets[0], number)
            writer.add(batch, len(number))
        writer.stats.update(rows.stats)
    assert_equal(TokenRows.load(tmp_path / "x.pkl"), rows)


def test_sources_of_batches_are_numbered_on(tmp_path: Path) -> None:
    batch = Rendered(np.ones(4, np.uint32), np.ones(4, np.uint8), np.arange(5), np.array([0, 0, 2, 3]))
    with write_rows(tmp_path / "x.pkl", np.dtype(np.uint16)) as writer:
        writer.add(batch, 4)
        writer.add(batch._replace(sources=np.arange(4)), 4)
        writer.add(batch, 5)
        writer.add(batch, 4)
        writer.ranks = writer.sources.astype(np.int32) // 4
    loaded = TokenRows.load(tmp_path / "x.pkl")
    assert loaded.sources.tolist() == [0, 0, 2, 3, 4, 5, 6, 7, 8, 8, 10, 11, 13, 13, 15, 16]
    assert loaded.ranks.tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 3 + [4]
    save(loaded, tmp_path / "again.pkl")
    again = TokenRows.load(tmp_path / "again.pkl")
    assert (again.sources.tolist(), again.ranks.tolist()) == (loaded.sources.tolist(), loaded.ranks.tolist())


def test_questions_are_of_problems_and_found_for_rows(tmp_path: Path) -> None:
    batch = Rendered(np.ones(4, np.uint32), np.ones(4, np.uint8), np.arange(5), np.array([0, 0, 2, 3]))
    found = []
    for number, questions in enumerate(([7, 8, 2**64 - 1, 7, 9], [1, 2, 3, 4, 5], None, [1, 2, 3])):
        path = tmp_path / f"{number}.pkl"
        with write_rows(path, np.dtype(np.uint16)) as writer:
            writer.add(batch, 5)
            writer.questions = None if questions is None else np.array(questions, np.uint64)
        if number == 3:
            with pytest.raises(CacheError, match="its rows have no questions"):
                TokenRows.load(path)
        else:
            found.append(TokenRows.load(path))
    assert [rows.questions_of_rows.tolist() for rows in found] == [[7, 7, 2**64 - 1, 7], [1, 1, 3, 4], [0, 0, 2, 3]]
    assert found[0].questions.tolist() == [7, 8, 2**64 - 1, 7, 9]
    assert len({rows.fingerprint for rows in found}) == 1, "it names the rows, not what they are asked"
    save(found[0], tmp_path / "again.pkl")
    assert TokenRows.load(tmp_path / "again.pkl").questions.tolist() == found[0].questions.tolist()


def test_token_type() -> None:
    assert token_dtype(65_535) == np.uint16
    assert token_dtype(65_536) == np.uint32


def test_fingerprint_depends_on_every_value() -> None:
    key = {"a": 1, "b": [1, 2], "c": None}
    assert fingerprint(key) == fingerprint(dict(reversed(key.items())))
    assert len({fingerprint(key), fingerprint(key | {"a": 2}), fingerprint(key | {"d": 0})}) == 3


@pytest.mark.parametrize("verified_before", [True, False])
def test_any_flipped_byte_is_found(path: Path, verified_before: bool) -> None:
    rows = make_rows()
    save(rows, path)
    whole = path.read_bytes()
    rng = random.Random(1)
    padding = 0
    for at in [0, 17, 20, 255, len(whole) - 1, *(rng.randrange(len(whole)) for _ in range(300))]:
        damaged = bytearray(whole)
        damaged[at] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        if not verified_before:
            path.with_suffix(".verified").unlink(missing_ok=True)
        try:
            assert_equal(TokenRows.load(path), rows)
            padding += 1  # between two parts, where nothing is kept
        except CacheError as error:
            assert error.path == path and error.reason
    assert padding < 25


def test_every_truncation_is_found(path: Path) -> None:
    save(make_rows(5), path)
    whole = path.read_bytes()
    for length in [*range(0, 260, 3), *range(260, len(whole), 17), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(CacheError):
            TokenRows.load(path)


def test_contents_are_not_read_again_once_verified(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(make_rows(), path)

    def refuse(*_: Any) -> None:
        raise AssertionError("read again")

    with monkeypatch.context() as patch:
        patch.setattr(cache.hashlib, "sha256", refuse)
        TokenRows.load(path)
        os.utime(path, ns=(1, 1))
        with pytest.raises(AssertionError, match="read again"):
            TokenRows.load(path)
    TokenRows.load(path)
    with monkeypatch.context() as patch:
        patch.setattr(cache.hashlib, "sha256", refuse)
        TokenRows.load(path)


def test_folder_that_cannot_be_written_still_loads(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = make_rows()
    save(rows, path)
    path.with_suffix(".verified").unlink()

    def refuse(path: Path, value: Any) -> None:
        raise cache.MlxmathError("read-only")

    monkeypatch.setattr(cache, "atomic_json", refuse)
    assert_equal(TokenRows.load(path), rows)


def test_absent_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        TokenRows.load(tmp_path / "x.pkl")


class Malicious:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def crafted(path: Path, dumped: bytes, version: int = cache.FORMAT_VERSION, edit: Callable[..., Any] = list) -> None:
    """A file with every checksum right and a description of the attacker's choice."""
    rows = make_rows(3)
    save(rows, path)
    data = path.read_bytes()
    fields = list(cache.HEADER.unpack_from(data))
    start = fields[15]
    data = data[:start] + dumped
    fields[1], fields[16] = version, len(dumped)
    fields[17] = hashlib.blake2b(dumped, digest_size=16).digest()
    header = cache.HEADER.pack(*edit(fields)).ljust(cache.HEADER_BYTES - 16, b"\0")
    header += hashlib.blake2b(header, digest_size=16).digest()
    path.write_bytes(header + data[cache.HEADER_BYTES :])


def description(**changes: Any) -> bytes:
    arrays = {name: pickle.PickleBuffer(b"") for name in cache.ARRAYS}
    return pickle.dumps({"stats": {}, **arrays, **changes}, protocol=5, buffer_callback=lambda _: None)


def test_crafted_file_is_otherwise_good(tmp_path: Path) -> None:
    crafted(tmp_path / "x.pkl", description(stats={"a": 1}))
    assert TokenRows.load(tmp_path / "x.pkl").stats == {"a": 1}


@pytest.mark.parametrize("protocol", range(6))
def test_foreign_pickle_runs_nothing(tmp_path: Path, protocol: int) -> None:
    path, witness = tmp_path / "x.pkl", tmp_path / "ran"
    path.write_bytes(pickle.dumps(Malicious(witness), protocol=protocol) + bytes(300))
    with pytest.raises(CacheError, match="not a file of mlxmath"):
        TokenRows.load(path)
    crafted(path, pickle.dumps(Malicious(witness), protocol=protocol))
    with pytest.raises(CacheError, match="holds the operation"):
        TokenRows.load(path)
    crafted(path, description(stats={"a": Malicious(witness)}))
    with pytest.raises(CacheError, match="holds the operation"):
        TokenRows.load(path)
    assert not witness.exists()
    pickle.loads(pickle.dumps(Malicious(witness), protocol=protocol))
    assert witness.exists(), "the pickle was harmless; nothing was tested"


def test_even_without_the_list_of_operations_no_class_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    witness = tmp_path / "ran"
    dumped = pickle.dumps(Malicious(witness))
    monkeypatch.setattr(cache, "_PLAIN_OPERATIONS", {op.name for op in pickletools.opcodes})
    for path, content in ((tmp_path / "a.pkl", dumped), (tmp_path / "b.pkl", b"Pother\n.")):
        crafted(path, content)
        with pytest.raises(CacheError, match="it asks for"):
            TokenRows.load(path)
    assert not witness.exists()


@pytest.mark.parametrize(
    ("dumped", "reason"),
    [
        (description(stats={"a": None}), "statistics"),
        (description(stats={1: 1}), "statistics"),
        (description(stats=3), "lacks a part"),
        (description(tokens=7), "does not refer"),
        (pickle.dumps({"stats": {}}), "lacks a part"),
        (pickle.dumps(3), "lacks a part"),
        (b"", "cannot be read"),
        (b"\x80\x05", "cannot be read"),
        (b"\x80\x05" + b"\x97" * 7 + b".", "cannot be read"),  # more arrays than there are
        (b"\x80\x05h\x07.", "cannot be read"),  # a memo entry that was never made
        (b"\x80\x05r\xff\xff\xff\x7f.", "operation LONG_BINPUT"),  # a memo of two thousand million entries
        (b"\x80\x05X\xff\xff\xff\x7fa.", "cannot be read"),  # a text of two gigabytes
        (b"\x80\x05" + b"(" * 70_000 + b".", "cannot be read"),
    ],
)
def test_description_of_another_shape(tmp_path: Path, dumped: bytes, reason: str) -> None:
    crafted(tmp_path / "x.pkl", dumped)
    with pytest.raises(CacheError, match=reason):
        TokenRows.load(tmp_path / "x.pkl")


def test_other_version(tmp_path: Path) -> None:
    crafted(tmp_path / "x.pkl", description(), version=99)
    with pytest.raises(CacheError, match="format version 99, this program reads 4"):
        TokenRows.load(tmp_path / "x.pkl")


def test_places_outside_the_file_are_refused(tmp_path: Path) -> None:
    rng = random.Random(5)
    for _ in range(50):
        number = rng.choice([0, 1, 64, 63, 2**31, 2**63 - 1, 2**64 - 64, rng.randrange(2**20)])

        def edit(fields: list[Any], number: int = number) -> list[Any]:
            fields[rng.randrange(3, 17)] = number
            return fields

        crafted(tmp_path / "x.pkl", description(), edit=edit)
        with pytest.raises(CacheError):
            TokenRows.load(tmp_path / "x.pkl")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        *(
            ({"_offsets": offsets}, "row boundaries")
            for offsets in ([0, 5, 3, 10], [1, 5, 10], [0, 5, 9], [0, 5, 5, 10], [0, -5, 10], [0, 5, 1 << 40])
        ),
        *(({"_sources": sources}, "sources are out of order") for sources in ([0], [0, 2, 1], [1, 0], [-1, 0])),
    ],
)
def test_rows_must_be_in_order(path: Path, changes: dict[str, list[int]], reason: str) -> None:
    with write_rows(path, np.dtype(np.uint16)) as writer:
        writer.add(Rendered(np.zeros(10, np.uint32), np.ones(10, np.uint8), np.array([0, 5, 10]), np.arange(2)), 2)
        for name, values in changes.items():
            setattr(writer, name, [np.array(values, np.int64)])
        if "_offsets" in changes:
            writer._sources = [np.arange(len(changes["_offsets"]) - 1)]
    with pytest.raises(CacheError, match=reason):
        TokenRows.load(path)


def test_an_error_while_writing_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(struct.error), write_rows(tmp_path / "x.pkl", np.dtype(np.uint16)) as writer:
        writer.add(Rendered(np.zeros(1, np.uint32), np.zeros(1, np.uint8), np.array([0, 1]), np.zeros(1, int)), 1)
        raise struct.error
    assert list(tmp_path.iterdir()) == []


def save_often(path: Path, seed: int) -> None:
    for _ in range(20):
        save(make_rows(seed=seed), path)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_two_processes_write_the_same_file_while_a_third_reads(tmp_path: Path, path: Path) -> None:
    rows = make_rows(seed=4)
    save(rows, path)
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=save_often, args=(path, 4)) for _ in range(2)]
    for writer in writers:
        writer.start()
    loads = 0
    while any(writer.is_alive() for writer in writers):
        assert_equal(TokenRows.load(path), rows)
        loads += 1
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert loads > 0
    assert {p.name for p in tmp_path.iterdir()} == {"x.pkl", "x.verified"}


def test_rows_loaded_before_a_rebuild_stay_whole(path: Path) -> None:
    save(make_rows(seed=1), path)
    old = TokenRows.load(path)
    thread = threading.Thread(target=save, args=(make_rows(seed=2), path))
    thread.start()
    thread.join()
    assert_equal(old, make_rows(seed=1))
    assert_equal(TokenRows.load(path), make_rows(seed=2))


@pytest.mark.parametrize("changed", ["mine.jsonl", "folder/data/more.jsonl", "bench.jsonl", "instead.jsonl"])
def test_what_was_prepared_is_not_told_of_data_that_has_changed(tmp_path: Path, changed: str) -> None:
    (tmp_path / "folder" / "data").mkdir(parents=True)
    (tmp_path / "cache").mkdir()
    names = ("mine.jsonl", "folder/data/train.jsonl", "folder/data/more.jsonl", "bench.jsonl", "instead.jsonl")
    for name in names:
        write_lines(tmp_path / name, [{"problem": "q", "solution": "s"}])
    of = (
        SourceConfig(dataset=str(tmp_path / "mine.jsonl")), SourceConfig(dataset=str(tmp_path / "folder")),
        SourceConfig(dataset="a/b", fallback=str(tmp_path / "instead.jsonl")),
    )  # fmt: skip
    config = DataConfig(
        sources=of, decontaminate=("gsm8k", str(tmp_path / "bench.jsonl")), cache_dir=str(tmp_path / "cache")
    )
    rows = make_rows()
    note(config, tmp_path, rows, "solutions")
    assert prepared(config, tmp_path) == Prepared(len(rows), len(rows.tokens))
    write_lines(tmp_path / changed, [{"problem": "another q", "solution": "s"}])
    assert prepared(config, tmp_path) is None
