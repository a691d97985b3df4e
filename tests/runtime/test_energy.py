"""Counters of energy: what passes between two looks, whatever begins anew."""

from pathlib import Path

from mlxmath.runtime.energy import Meter, counters


def package(folder: Path, number: str, microjoules: int) -> Path:
    place = folder / f"intel-rapl:{number}"
    place.mkdir(exist_ok=True)
    (place / "energy_uj").write_text(f"{microjoules}\n")
    (place / "max_energy_range_uj").write_text("1000000000\n")
    return place / "energy_uj"


def test_packages_are_counted_over_their_wraps(tmp_path: Path) -> None:
    file, _ = package(tmp_path, "0", 900_000_000), package(tmp_path, "0:0", 5)
    now = [0.0]
    meter = Meter(counters("cpu", tmp_path), clock=lambda: now[0])
    file.write_text("950000000")
    now[0] = 31.0
    meter.look()
    file.write_text("30000000")  # after a whole range
    assert meter.told() == {"processor 0": 130.0}


def test_a_look_comes_only_now_and_then(tmp_path: Path) -> None:
    file, now = package(tmp_path, "0", 0), [0.0]
    meter = Meter(counters("cpu", tmp_path), clock=lambda: now[0])
    file.write_text("999000000")
    now[0] = 1.0
    meter.look()
    file.write_text("1000000")
    assert meter.told() == {"processor 0": 1.0}, "the first look came too early to be one"


def test_where_nothing_is_told_there_is_no_figure(tmp_path: Path) -> None:
    assert Meter(counters("cpu", tmp_path / "absent")).told() is None
    file = package(tmp_path, "0", 7)
    meter = Meter(counters("cpu", tmp_path))
    file.unlink()
    assert meter.told() is None
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("no number")
    assert Meter(counters("cuda", tmp_path)).told() is None
