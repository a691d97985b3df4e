"""Samples on disk: damaged and foreign lines never count, other settings are refused."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from mlxmath.errors import InputError, MlxmathError
from mlxmath.evaluation.report import write_report
from mlxmath.evaluation.samples import claim, note_decoding, read_samples, read_settings, save_samples
from tests.evaluation.make import sample, settings


def test_half_written_foreign_and_repeated_lines(tmp_path: Path) -> None:
    whole = [sample(number=i) for i in range(3)]
    save_samples(tmp_path / "samples.jsonl", [*whole, replace(whole[0], fingerprint="another"), whole[1]])
    with (tmp_path / "samples.jsonl").open("ab") as file:
        file.write(b'\xff\n{"contestant": "base", "id": "b/9", "resp')
    save_samples(tmp_path / "samples.rank-1.jsonl", [sample(number=7)])
    found, left_out = read_samples(tmp_path, {"base": "f-base"})
    assert [s.id for s in found] == ["b/0", "b/1", "b/2", "b/7"]
    assert found[:3] == whole and left_out == 3


def test_lines_of_other_types_never_count(tmp_path: Path) -> None:
    good = asdict(sample())
    changes: list[dict[str, object]] = [
        {"contestant": ["base"]}, {"sample": "0"}, {"correct": 1}, {"seconds": None}, {"response": 5}, {"id": "b"},
        {"completion_tokens": 1.5}, {"level": 3}, {"id": "b/" + "9" * 5000},
        {"response": "half a character: \ud800"},
    ]  # fmt: skip
    hostile = [5, None, [], [good], "text", {"contestant": ["base"]}, *(good | change for change in changes)]
    lines = [*map(json.dumps, hostile), "[" * 100_000, '{"a":' * 100_000, "1" * 10_000, "{" + " " * 2_000_000]
    (tmp_path / "samples.jsonl").write_text("\n".join([*lines, json.dumps(good)]) + "\n")
    assert read_samples(tmp_path, {"base": "f-base"}) == ([sample()], len(lines))


def test_a_folder_belongs_to_one_evaluation(tmp_path: Path) -> None:
    mine, other = settings("base"), settings("base")
    other["contestants"][0]["fingerprint"] = "g"
    other["contestants"][0]["seed"] = 1
    claim(tmp_path, mine, resume=False, overwrite=False)
    save_samples(tmp_path / "samples.jsonl", [sample()])
    claim(tmp_path, mine, resume=True, overwrite=False)
    for refused, resume, said in (
        (mine, False, "--resume"),
        (other, True, "other settings .*seed"),
        (settings("base", "tuned"), True, "contestants: base there, base, tuned here"),
    ):
        with pytest.raises(InputError, match=said):
            claim(tmp_path, refused, resume=resume, overwrite=False)
    assert read_samples(tmp_path, {"base": "f-base"})[0]
    claim(tmp_path, other, resume=False, overwrite=True)
    assert read_samples(tmp_path, {"base": "f-base"}) == ([], 0)
    moved = settings("base")
    moved["contestants"][0] |= {"fingerprint": "g", "folder": "elsewhere", "asked_in": "another name"}
    claim(tmp_path, moved, resume=True, overwrite=False)

    save_samples(tmp_path / "samples.jsonl", [replace(sample(), fingerprint="g")])
    for damaged in (b"[1]", (tmp_path / "settings.json").read_bytes().replace(b'"seed": 0', b'"seed": 3')):
        (tmp_path / "settings.json").write_bytes(damaged)
        with pytest.raises(InputError, match=r"without whole settings\.json"):
            claim(tmp_path, other, resume=False, overwrite=False)
        with pytest.raises(InputError, match="holds answers of another evaluation alone"):
            claim(tmp_path, mine, resume=True, overwrite=False)
        claim(tmp_path, other, resume=True, overwrite=False)
        assert read_samples(tmp_path, {"base": "g"})[0]


def test_answers_without_settings_are_nobody_elses_to_remove(tmp_path: Path) -> None:
    save_samples(tmp_path / "samples.jsonl", [sample()])
    (tmp_path / "samples-of-mine.jsonl").write_text("mine")
    with pytest.raises(InputError, match=r"holds answers \(samples.jsonl\) without whole settings.json"):
        claim(tmp_path, settings("base"), resume=False, overwrite=False)
    claim(tmp_path, settings("base"), resume=True, overwrite=False)
    assert read_samples(tmp_path, {"base": "f-base"}) == ([sample()], 0)
    claim(tmp_path, settings("base"), resume=False, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["samples-of-mine.jsonl", "settings.json"]


def test_an_evaluation_of_an_earlier_version_is_reported_but_not_resumed(tmp_path: Path) -> None:
    old = settings("base", "tuned", format=2)
    (tmp_path / "settings.json").write_text(json.dumps(old))
    save_samples(tmp_path / "samples.jsonl", [sample(label, i, "1") for label in ("base", "tuned") for i in range(3)])
    for resume in (True, False):
        with pytest.raises(InputError, match="earlier version, which asked all models in one template"):
            claim(tmp_path, settings("base", "tuned"), resume=resume, overwrite=False)
    found = write_report(tmp_path)
    assert found["settings"] == old and found["comparisons"][0]["total"] == 3
    for name in ("report.html", "model_card.md"):
        assert "template tutor" in (tmp_path / name).read_text()
    claim(tmp_path, settings("base", "tuned"), resume=False, overwrite=True)
    assert read_samples(tmp_path, {"base": "f-base"}) == ([], 0)


def test_how_answers_were_decoded_is_kept_over_a_resumption(tmp_path: Path) -> None:
    claim(tmp_path, settings("base", "tuned"), resume=False, overwrite=False)
    note_decoding(tmp_path, {"base": "64 at a time"})
    claim(tmp_path, settings("base", "tuned"), resume=True, overwrite=False)
    note_decoding(tmp_path, {"tuned": "1 at a time"})
    assert read_settings(tmp_path)["decoding"] == {"base": "64 at a time", "tuned": "1 at a time"}


def test_a_vote_may_count_for_nothing(tmp_path: Path) -> None:
    """As `--weights` allows it."""
    told = settings("one", "other", vote="weighted", voters=["one", "other"], weights=[1.0, 0.0])
    claim(tmp_path, told, resume=False, overwrite=False)
    save_samples(tmp_path / "samples.jsonl", [sample("one", answer="1"), sample("other", answer="2")])
    found = write_report(tmp_path)
    assert found["ensemble"]["weights"] == {"one": 1.0, "other": 0.0} and found["ensemble"]["accuracy"]["value"] == 1.0


@pytest.mark.parametrize(
    "change",
    [
        {"contestants": [5]}, {"contestants": "abc"}, {"contestants": [{"label": "base"}]}, {"samples": "2"},
        {"contestants": [{"label": ["a"], "fingerprint": "x", "against": None}]}, {"benchmarks": {}},
        {"contestants": [{"label": "a", "fingerprint": "x", "against": "nobody"}]}, {"device": {"name": 3}},
        {"benchmarks": [{}]}, {"temperature": None}, {"format": 1}, {"samples": True}, {"samples": 0},
        {"temperature": 10**400}, {"decoding": {"base": 1}}, {"voters": ["nobody"]}, {"vote": "majority"},
        {"weights": ["x"]}, {"benchmarks": [{"name": "b", "max_tokens": "x"}]}, {"benchmarks": ["b"]},
        {"contestants": [{"label": "a", "fingerprint": "x", "against": None, "asked_in": []}]},
        {"vote": "loud"}, {"vote": "equal"}, {"vote": "equal", "voters": ["base", "nobody"]},
        {"vote": "equal", "voters": ["base", "base"], "weights": [1.0]}, {"vote": ["equal"]},
        {"vote": "weighted", "voters": ["base", "base"], "weights": [1.0, "2"]},
        {"vote": "weighted", "voters": ["base", "base"], "weights": [1.0, -1.0]},
        {"vote": "weighted", "voters": ["base", "base"], "weights": [0.0, 0.0]},
    ],
)  # fmt: skip
def test_damaged_settings_are_one_error(tmp_path: Path, change: dict[str, object]) -> None:
    (tmp_path / "settings.json").write_text(json.dumps(settings("base") | change))
    with pytest.raises(MlxmathError, match=r"settings\.json is damaged"):
        read_settings(tmp_path)


def test_what_is_no_evaluation_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no evaluation"):
        read_settings(tmp_path)


@pytest.mark.parametrize("name", ["$\\frac{$", "[/b]", ":warning:", "a\x1b[31m\x1b]0;b\x07\n"])
def test_names_that_look_like_formulas_markup_or_escapes_are_shown_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    labels = ("base", f"tuned {name}")
    (tmp_path / "settings.json").write_text(json.dumps(settings(*labels)))
    groups = [{"subject": part, "level": part} for part in (name, "other")]
    made = [sample(label, i, str(i), **groups[i]) for label in labels for i in range(2)]
    save_samples(tmp_path / "samples.jsonl", made)
    assert write_report(tmp_path)["num_problems"] == 2
    error = capsys.readouterr().err
    assert "\x1b" not in error and "tuned " + name.partition("\x1b")[0] in error
    assert (tmp_path / "groups.png").stat().st_size
