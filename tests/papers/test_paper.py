"""What is written for a paper: right figures, and LaTeX that compiles whatever names hold."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from mlxmath.errors import InputError, MlxmathError
from mlxmath.papers import latex
from mlxmath.papers.facts import read_facts
from mlxmath.papers.tables import tables_of
from mlxmath.papers.write import statements_of, write_paper
from mlxmath.runtime.sealed import sealed_json
from tests.helpers import REPOSITORY
from tests.papers.tex import check

ODD = (
    r"a_b & 50% of $x^2$ ~ #1 {\input{/etc/passwd}} \write18{touch owned} %^^M --rank ?` “q” 中 é € <b> | \\ ±−×→ '"
    '"'
)
RUN = REPOSITORY / "tests" / "fixtures" / "v0_1_0" / "lora"


def evaluation(folder: Path, label: str = "tuned") -> Path:
    """results.json as an evaluation writes it, of what is read here."""
    found = lambda right: {"value": right / 40, "low": right / 50, "high": right / 35, "right": right, "total": 40}  # noqa: E731
    by = {"benchmark": {"one": found(12), ODD: found(21)}}
    sealed_json(folder / "results.json", {
        "settings": {
            "benchmarks": [
                {"name": name, "num_problems": 20, "revision": "sha256:12", "problems": "ab"} for name in ("one", ODD)
            ],
            "contestants": [
                {"label": name, "model": "m1", "adapter": "a1", "asked_in": ODD} for name in ("base", label)
            ],
            "samples": 1, "temperature": 0.0, "seed": 0, "template": "tutor", "mlxmath": "0.1.0",
        },
        "contestants": {"base": {"accuracy": found(9), "by": by}, label: {"accuracy": found(21), "by": by}},
        "comparisons": [{"base": "base", "other": label, "difference": 0.3, "low": 0.1, "high": 0.46, "p_value": 0.0042,
                         "fixed": 13, "broken": 1, "total": 40, "by": {}}],
    })  # fmt: skip
    return folder


def swept(folder: Path, label: str = "rank=4") -> Path:
    """sweep.json likewise."""

    def one(number: int, name: str, value: float) -> dict[str, Any]:
        pair = {"estimate": 0.07, "low": 0.02, "high": 0.12} if number > 1 else None
        run = {"seed": 0, "folder": f"x/adapters/0{number}", "commands": [f"mlxmath train {ODD}"],
               "history": [[0, 2.0], [4, value]]}  # fmt: skip
        return {"number": number, "label": name, "values": {}, "held_out": value, "spread": None,
                "accuracy": None, "steps": 4, "is_whole": True, "difference": pair, "answers_difference": None,
                "runs": [run]}  # fmt: skip

    sealed_json(folder / "sweep.json", {
        "configurations": [one(1, "base", 1.25), one(2, label, 1.32)], "search": "ablation", "metric": "loss",
        "seeds": [0], "against": 1, "best": 1, "ranked_by": "held-out loss",
    })  # fmt: skip
    return folder


@pytest.fixture
def odd(tmp_path: Path) -> list[Path]:
    """A run, an evaluation and a sweep whose names hold all that TeX has a meaning for."""
    folders = [tmp_path / f"{kind} {ODD.replace('/', ':')}"[:120] for kind in ("run", "evaluation", "sweep")]
    shutil.copytree(RUN, folders[0])
    record = json.loads((folders[0] / "run.json").read_text())
    record.pop("checksum", None)
    record |= {"method": "train", "versions": {"mlxmath": "1", ODD: ODD}}
    record["config"]["data"] |= {"dataset": ODD, "template": "中" * 300}
    record["origin"] |= {"data.dataset": "option", "data.template": "option"}
    sealed_json(folders[0] / "run.json", record)
    for folder in folders[1:]:
        folder.mkdir()
    evaluation(folders[1], ODD)
    swept(folders[2], ODD)
    return folders


def test_names_are_text_whatever_they_hold(odd: list[Path], tmp_path: Path) -> None:
    written = write_paper(odd, tmp_path / "paper")
    texts = {file.name: file.read_text() for file in written if file.suffix == ".tex"}
    assert {"paper.tex", "settings.tex", "cost.tex", "accuracy.tex", "ablation.tex", "reproduce.tex"} <= texts.keys()
    for name, text in texts.items():
        check(text)
        assert text.count(r"\input") == (text.count("\n\\input{") if name == "paper.tex" else 0)
    assert not any("\\write" in text for text in texts.values())
    assert r"\textbackslash{}write18\{touch owned\}" in texts["ablation.tex"]
    markdown = (tmp_path / "paper" / "paper.md").read_text()
    assert "<b>" not in markdown.replace("`", "") or "&lt;b>" in markdown


def test_escapes_of_every_sign_are_text() -> None:
    for number in [*range(0x20, 0x250), 0x2212, 0x4E2D, 0x1F600, 0x202E, 0xFB01]:
        text = latex.escaped(f"a{chr(number)}b")
        check(text)
        assert text.startswith("a") and text.endswith("b")
        check(latex.code(f"a{chr(number)}b"))
    assert latex.escaped("--rank 50 % −1") == r"-{}-rank 50 \% $-$1"
    assert latex.escaped("ﬁ 中") == r"fi [U+4E2D]\allowbreak{}"


def test_the_checker_sees_what_tex_would_stumble_over() -> None:
    for wrong in (r"\write18{x}", "{", "a & b # c", "50 % of", r"\begin{table}", r"\input{/etc/passwd}", "$x", "x^2"):
        with pytest.raises(AssertionError):
            check(wrong)
    with pytest.raises(AssertionError):
        check("\\begin{tabular}{@{}lr@{}}\n a & b & c \\\\\n\\end{tabular}")


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex (Debian's texlive-latex-recommended)")
def test_the_tables_compile(odd: list[Path], tmp_path: Path) -> None:
    write_paper(odd, tmp_path / "paper")
    found = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "paper.tex"],
        cwd=tmp_path / "paper", capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    log = found.stdout.decode("utf-8", "replace")
    assert found.returncode == 0, log[-3000:]
    assert "Missing character" not in log and (tmp_path / "paper" / "paper.pdf").read_bytes().startswith(b"%PDF")
    assert not (tmp_path / "paper" / "owned").exists()


def test_the_tables_say_what_was_recorded(tmp_path: Path) -> None:
    for name in ("e", "s"):
        (tmp_path / name).mkdir()
    shutil.copytree(RUN, tmp_path / "r")
    log = [{"event": "step", "step": n, "smoothed_loss": 2 - n / 9, "seconds": 1.5} for n in range(1, 5)]
    (tmp_path / "r" / "events.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in log))
    folders = [tmp_path / "r", evaluation(tmp_path / "e"), swept(tmp_path / "s")]
    write_paper(folders, tmp_path / "paper")
    text = (tmp_path / "paper" / "paper.md").read_text()
    record = json.loads((RUN / "run.json").read_text())
    assert f"| {record['adapter']['num_trainable']:,} |" in text and f"| {record['steps']:,} |" in text
    assert "(greedy; evaluation e)" in text and "(sweep s; 1 seed)" in text
    assert "52.5 % (42.0 to 60.0)" in text and "+30.0 (+10.0 to +46.0) | 0.004 | 13 | 1 |" in text
    assert "| rank=4 | 4 | 1.3200 | +0.0700 (+0.0200 to +0.1200) |" in text
    assert "| base | 4 | 1.2500 | reference |" in text
    assert record["data"]["fingerprint"] in text and "seed: 0" in text
    assert "not recorded by the version that made it" in text, "0.1.0 did not say which command it was"
    assert "the system tells nobody the energy" in text and " Wh |" not in text
    pictures = sorted(path.name for path in (tmp_path / "paper" / "figures").glob("*.pdf"))
    assert pictures == ["accuracy.pdf", "sweep.pdf", "training.pdf"]
    again = {path: path.read_bytes() for path in (tmp_path / "paper").rglob("*") if path.is_file()}
    write_paper(folders, tmp_path / "paper")
    assert {path: path.read_bytes() for path in (tmp_path / "paper").rglob("*") if path.is_file()} == again


def test_settings_of_every_method_stand_in_the_tables(tmp_path: Path) -> None:
    for method, values in {"gkd": {"beta": 0.5, "lmbda": 0.25}, "dpo": {"beta": 0.1}, "train": {}}.items():
        shutil.copytree(RUN, tmp_path / method)
        record = json.loads((tmp_path / method / "run.json").read_text())
        record.pop("checksum", None)
        section = "sft" if method == "train" else method
        record["config"][section] = values or {"label_smoothing": 0.125}
        record["origin"] |= {f"{section}.{name}": "option" for name in record["config"][section]}
        sealed_json(tmp_path / method / "run.json", record | {"method": method})
    write_paper([tmp_path / name for name in ("gkd", "dpo", "train")], tmp_path / "paper")
    text = (tmp_path / "paper" / "tables" / "differences.md").read_text()
    assert "| gkd.beta | lmbda | dpo.beta | label_smoothing |" in text
    assert "| gkd | 0.5 | 0.25 | – | – |" in text and "| train | – | – | – | 0.125 |" in text


def test_intervals_are_named_by_how_they_were_made(tmp_path: Path) -> None:
    (tmp_path / "e").mkdir()
    evaluation(tmp_path / "e")
    found = json.loads((tmp_path / "e" / "results.json").read_text())
    found.pop("checksum")

    def caption(**settings: Any) -> str:
        sealed_json(tmp_path / "e" / "results.json", found | {"settings": found["settings"] | settings})
        return tables_of(read_facts([tmp_path / "e"]))[-1].caption

    one, several = caption(), caption(samples=4, temperature=0.7)
    assert "95 % intervals (Newcombe's) and the exact McNemar test's p." in one
    assert "adjusted Wald ones where it counts by its share of right answers" in several
    assert "fixed, broken and the exact McNemar test's p are of the majority's answers." in several
    decided = caption(until_decided=5.0)
    assert "95 % confidence sequences and p that hold whenever one stops" in decided and "McNemar" not in decided


def test_each_sweeps_runs_have_its_own_commands(tmp_path: Path) -> None:
    for name in ("one", "other"):
        shutil.copytree(RUN, tmp_path / name / "adapters" / "01")
        swept(tmp_path / name)
        found = json.loads((tmp_path / name / "sweep.json").read_text())
        found.pop("checksum")
        found["configurations"][0]["runs"][0]["commands"] = [f"mlxmath train --recipe {name}"]
        sealed_json(tmp_path / name / "sweep.json", found)
    shutil.copytree(RUN, tmp_path / "01")
    told = statements_of(read_facts([tmp_path / name for name in ("01", "one", "other")]))
    commands = [value for _, lines in told for name, value, _ in lines if name == "command"]
    assert commands[1:] == ["mlxmath train --recipe one", "mlxmath train --recipe other"]
    assert "not recorded" in commands[0], "it is of no sweep"


def test_files_of_others_are_not_touched(tmp_path: Path) -> None:
    out = tmp_path / "paper"
    (out / "tables").mkdir(parents=True)
    (out / "tables" / "mine.tex").write_text("mine")
    (out / "paper.tex").write_text("mine")
    with pytest.raises(InputError, match="paper.tex is there and was not written by"):
        write_paper([RUN], out)
    assert (out / "paper.tex").read_text() == "mine" and not (out / "paper.json").exists()
    (out / "paper.tex").unlink()
    written = write_paper([RUN], out)
    (tmp_path / "e").mkdir()
    others = write_paper([evaluation(tmp_path / "e")], out)
    assert (out / "tables" / "mine.tex").read_text() == "mine" and all(file.exists() for file in others)
    assert not (out / "tables" / "cost.tex").exists() and out / "tables" / "cost.tex" in written


def test_energy_is_told_where_all_processes_told_it(tmp_path: Path) -> None:
    shutil.copytree(RUN, tmp_path / "run")
    events = tmp_path / "run" / "events.jsonl"

    def wattage(*lines: dict) -> float | None:
        events.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return read_facts([tmp_path / "run"]).runs[0].joules

    start, resume = ({"event": kind, "step": 0} for kind in ("start", "resume"))
    end = {"event": "end", "step": 4, "joules": {"GPU 0": 3000.0, "processor 0": 600.0}}
    assert wattage(start, end) == 3600.0 and wattage(start, end, resume, end) == 7200.0
    assert wattage(start, resume, end) is None, "a killed process told nothing"
    assert wattage(start, end | {"joules": None}) is None and wattage(start) is None


def test_folders_of_something_else_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no run\.json, results\.json or sweep\.json"):
        write_paper([tmp_path], tmp_path / "paper")
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(MlxmathError, match="settings is missing"):
        write_paper([tmp_path], tmp_path / "paper")
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(MlxmathError, match="results.json"):
        write_paper([tmp_path], tmp_path / "paper")
