"""The fastest BLAS is chosen, remembered, and taken again."""

import json
import os
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import mlxmath
from mlxmath.config.load import RUN
from mlxmath.runtime import blas, blas_trials, sgemm
from mlxmath.runtime.blas_trials import VARIABLE, Blas
from mlxmath.runtime.sealed import sealed_json
from mlxmath.training import record
from tests.runtime.blas_process import in_a_process

OLD = Blas("/lib/a/libopenblas.so.0", None, "Prescott", 36e9)
NEW = Blas("/lib/a/libopenblas.so.0", "SkylakeX", "SkylakeX", 250e9)
MKL = Blas("/lib/b/libmkl_rt.so.3", None, None, 266e9)

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux needs a BLAS to be found")
needs_openblas = pytest.mark.skipif(
    not any(one.kernels for one in blas_trials.trials()), reason="no OpenBLAS on this machine"
)


@pytest.mark.parametrize(
    ("found", "is_set", "again", "expected"),
    [
        ([OLD], False, None, OLD),
        ([OLD, NEW], False, None, NEW),
        ([OLD, NEW, MKL], False, None, MKL),  # 6 % faster
        ([MKL, NEW], False, None, MKL),
        ([NEW, Blas("/lib/c", None, None, 255e9)], False, None, NEW),  # 2 %: a trial may be wrong by that
        ([OLD, NEW, MKL], True, None, OLD),  # the user's kernels
        ([MKL], True, None, MKL),
        ([OLD, NEW, MKL], False, NEW.identity, NEW),
        ([OLD, MKL], False, NEW.identity, MKL),  # it is not here any more
        ([OLD, NEW, MKL], True, NEW.identity, OLD),
    ],
)
def test_the_fastest_is_chosen_but_for_what_the_user_says_and_what_was_used(
    found: list[Blas], is_set: bool, again: dict[str, Any] | None, expected: Blas
) -> None:
    assert blas.choose(found, is_set, again) == expected


def test_only_kernels_that_a_library_has_are_tried_and_what_fails_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def trial(library: str, asked: str | None) -> Blas | None:
        if library == "broken":
            return None
        if library == "mkl":
            return Blas(library, asked, None, 3.0)
        has = asked in (None, "Haswell")  # of an unknown one OpenBLAS takes its own choice
        return Blas(library, asked, "Prescott" if asked is None or not has else asked, 1.0)

    monkeypatch.setattr(blas_trials, "trial", trial)
    found = blas_trials.measured(["broken", "open", "mkl"], ["SkylakeX", "Haswell"])
    assert [(one.library, one.asked, one.kernels) for one in found] == [
        ("open", None, "Prescott"), ("open", "Haswell", "Haswell"), ("mkl", None, None),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("sse4_2", 0),
        ("avx2 fma", ["Haswell"]),
        ("avx2 fma avx512f avx512cd avx512bw avx512dq avx512vl", ["SkylakeX", "Haswell"]),
        ("avx2 fma avx512f avx512cd avx512er avx512pf", ["Haswell"]),  # Xeon Phi
    ],
)
def test_kernels_are_tried_that_the_processor_has_the_instructions_for(
    flags: str, expected: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "lib").touch()
    own = replace(OLD, library=str(tmp_path / "lib"))
    asked: list[Any] = []
    monkeypatch.setattr(blas_trials, "libraries", lambda: [str(tmp_path / "lib")])
    monkeypatch.setattr(blas_trials, "processor", lambda: ("x", set(flags.split())))
    monkeypatch.setattr(blas_trials, "remembered", lambda _, measure: measure())
    monkeypatch.setattr(blas_trials, "measured", lambda paths, others: asked.append(others) or (own,))
    found = blas_trials.trials.__wrapped__()
    if expected:
        assert asked == [expected] and found == (own,)
    else:  # there is nothing to choose between
        assert asked == [] and [one.flops_per_s for one in found] == [0]


def test_what_was_measured_is_remembered_and_a_file_that_is_damaged_is_not_believed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    measured = iter([(OLD, NEW), (MKL,), (NEW,), (OLD,)])
    assert blas_trials.remembered("a.json", lambda: next(measured)) == (OLD, NEW)
    assert blas_trials.remembered("a.json", lambda: next(measured)) == (OLD, NEW)
    path = tmp_path / "mlxmath" / "a.json"
    path.write_text(path.read_text().replace("Prescott", "Zen"))
    assert blas_trials.remembered("a.json", lambda: next(measured)) == (MKL,)
    path.write_text('{"trials": [1]}')
    assert blas_trials.remembered("a.json", lambda: next(measured)) == (NEW,)
    path.write_bytes(b"\xff")
    assert blas_trials.remembered("a.json", lambda: next(measured)) == (OLD,)
    assert blas_trials.remembered("a.json", lambda: ()) == (OLD,)


@pytest.mark.parametrize(
    "row",
    [{"flops_per_s": float("nan")}, {"flops_per_s": -1.0}, {"library": "/lib/of/another"}, {"asked": "Z"}, {"x": 1}],
)
def test_what_is_remembered_of_another_machine_or_a_later_version_is_not_believed(
    row: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "lib").touch()
    own = Blas(str(tmp_path / "lib"), None, "Prescott", 36e9)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(blas_trials, "libraries", lambda: [own.library])
    monkeypatch.setattr(blas_trials, "processor", lambda: ("x", {"avx2", "fma"}))
    monkeypatch.setattr(blas_trials, "measured", lambda *_: (own,))
    assert blas_trials.trials.__wrapped__() == (own,)
    (path,) = (tmp_path / "mlxmath").glob("*.json")
    sealed_json(path, {"trials": [asdict(own) | row]})
    (found,) = blas_trials.trials.__wrapped__()
    assert found in (own, Blas(own.library, None, None, 0.0))


@pytest.mark.parametrize("cache", ["file/cache", "/proc/cache"])
def test_without_a_cache_it_is_measured_each_time(
    cache: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / cache))
    assert [blas_trials.remembered("a.json", lambda found=found: (found,)) for found in (OLD, NEW)] == [(OLD,), (NEW,)]
    assert capsys.readouterr() == ("", "")


def test_of_processes_that_start_together_one_measures_for_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found: list[tuple[Blas, ...]] = []

    def measure(rate: int) -> tuple[Blas, ...]:
        time.sleep(0.1)
        return (Blas("a", None, None, float(rate)),)

    threads = [
        threading.Thread(target=lambda i=i: found.append(blas_trials.remembered("a.json", lambda: measure(i))))
        for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and len(set(found)) == 1


@needs_openblas
def test_a_library_that_takes_its_oldest_kernels_is_given_better_ones(tmp_path: Path) -> None:
    code = """
trial = blas_trials.trial
def of_old(library, asked):
    found = trial(library, asked or "Prescott")
    return found and type(found)(library, asked, found.kernels, found.flops_per_s)
blas_trials.trial = of_old
own = next(one for one in blas_trials.trials() if one.kernels)
used = blas.preload()
import os
print(json.dumps([own.kernels, own.flops_per_s, used.kernels, used.flops_per_s, "OPENBLAS_CORETYPE" in os.environ]))
"""
    if "Haswell" not in {one.kernels for one in blas_trials.trials()}:
        pytest.skip("this processor has not got what newer kernels need")
    before, slow, kernels, fast, is_set = json.loads(in_a_process("import json" + code, tmp_path))
    assert before in ("Prescott", "Katmai") and kernels in ("SkylakeX", "Haswell") and fast > 1.5 * slow
    assert not is_set


@needs_openblas
def test_the_users_kernels_are_used_and_what_they_cost_is_said(tmp_path: Path) -> None:
    code = "print(blas.preload().kernels, '|', blas.advice())"
    kernels, said = in_a_process(code, tmp_path, OPENBLAS_CORETYPE="Prescott").split(" | ")
    assert kernels in ("Prescott", "Katmai")
    if "Haswell" in {one.kernels for one in blas_trials.trials()}:
        assert said.startswith("OPENBLAS_CORETYPE=Prescott is set: without it")
    best = in_a_process("print(blas.preload().kernels)", tmp_path).strip()
    alone = "used = blas.preload(); blas.trials = lambda: (used,); print(blas.advice())"  # no other is a trifle faster
    assert in_a_process(alone, tmp_path, OPENBLAS_CORETYPE=best) == "None\n"


def test_a_clock_that_counts_too_little_makes_no_library_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([1.0 + 0.002 * i - (0.0015 if i == 4 else 0.0) for i in range(1000)])
    monkeypatch.setattr(sgemm, "time", SimpleNamespace(thread_time=lambda: next(times)))
    library: Any = SimpleNamespace(cblas_sgemm=lambda *_: None)
    assert sgemm.flops_per_s(library) == pytest.approx(2 * sgemm.M * sgemm.N * sgemm.K / 0.002)


@needs_openblas
def test_what_is_chosen_here_is_about_as_fast_as_the_best() -> None:
    trials = blas_trials.trials.__wrapped__()
    again = [found for _ in range(3) for one in trials if (found := blas_trials.trial(one.library, one.asked))]
    chosen = blas.choose(trials, VARIABLE in os.environ)
    speed = max(one.flops_per_s for one in again if one.identity == chosen.identity)
    assert VARIABLE in os.environ or speed >= 0.9 * max(one.flops_per_s for one in again)


@needs_openblas
def test_mlx_that_was_imported_first_keeps_its_own_and_that_is_said(tmp_path: Path) -> None:
    said = in_a_process("import mlx.core; print(blas.preload(), blas.blas_is_missing(), blas.advice())", tmp_path)
    assert said.startswith("None True mlx was imported before")


@needs_openblas
def test_a_library_that_cannot_be_given_to_mlx_is_named(tmp_path: Path) -> None:
    code = """
def fails(chosen):
    raise OSError
blas._loaded = fails
print(blas.advice())
"""
    said = in_a_process(code, tmp_path)
    assert blas_trials.libraries()[0] in said and "cannot be loaded for MLX" in said and "imported before" not in said


@needs_openblas
def test_a_resumed_run_takes_what_it_had(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    found = blas_trials.trials.__wrapped__()
    slower = min(found, key=lambda one: one.flops_per_s)
    anew = in_a_process("print(blas.preload().kernels)", tmp_path).strip()  # by what is remembered from now on
    for content, expected in (
        (json.dumps({"blas": [None, slower.identity]}), str(slower.kernels)),
        ('{"blas": {}}', anew),
        ("{", anew),
    ):
        (tmp_path / RUN).write_text(content)
        code = f"from pathlib import Path; blas.take_again(Path({str(tmp_path / RUN)!r}), 1); "
        used = in_a_process(code + "print(blas.preload().kernels)", tmp_path).strip()
        assert used == expected


def test_a_run_that_multiplies_otherwise_than_before_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    settings: dict[str, Any] = {"model": "demo", "dataset": "demo", "num_examples": 8, "max_steps": 1, "verbose": True}
    monkeypatch.setattr(record, "preload", lambda: OLD)
    mlxmath.sft(**settings)
    assert json.loads((tmp_path / "adapters" / RUN).read_text())["blas"] == [OLD.identity]
    mlxmath.sft(**settings | {"max_steps": 2}, resume=True)
    assert "until now" not in capsys.readouterr().err
    monkeypatch.setattr(record, "preload", lambda: NEW)
    mlxmath.sft(**settings | {"max_steps": 3}, resume=True)
    said = capsys.readouterr().err
    assert "/lib/a/libopenblas.so.0 with kernels for Prescott, from here on by /lib/a/libopenblas.so.0 with" in said


def test_ranks_that_multiply_by_different_libraries_say_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Gathering(record.Ranks):
        def gather(self, name: str, value: Any) -> list[Any]:
            return [value, other]

    monkeypatch.setattr(record, "preload", lambda: OLD)
    device = record.DeviceInfo("cpu", "", 0, "float32", "")
    other: Any = OLD.identity
    assert record.blas_of_ranks(None, device, Gathering()) == [OLD.identity] * 2
    assert capsys.readouterr().err == ""
    other = None
    record.blas_of_ranks(None, device, Gathering())
    assert (
        "different libraries: /lib/a/libopenblas.so.0 with kernels for Prescott, MLX's own BLAS"
        in capsys.readouterr().err
    )
