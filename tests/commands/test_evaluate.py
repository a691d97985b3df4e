"""`evaluate` and `report` as a user runs them, on the bundled model."""

import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import mlx.core as mx
import pytest

from benchmarks.common import ring_hostfile
from mlxmath.commands.evaluate import main
from mlxmath.errors import MlxmathError
from mlxmath.evaluation import ask
from mlxmath.evaluation.contestants import Contestant
from mlxmath.grading import grade
from tests.helpers import ENVIRONMENT, command, invoke, json_lines, run, start, succeed, wait_until

QUICK = ("--limit", "24", "--max-tokens", "40")


@pytest.fixture
def folder(debug_run: Path, tmp_path: Path) -> Path:
    """The converted model, an adapter, and another adapter of half its strength."""
    for name in ("mlx_model", "adapters"):
        shutil.copytree(debug_run / name, tmp_path / name, ignore=shutil.ignore_patterns("checkpoints"))
    shutil.copytree(tmp_path / "adapters", tmp_path / "weaker")
    path = tmp_path / "weaker" / "adapters.safetensors"
    arrays = mx.load(str(path))
    mx.save_safetensors(str(path), {k: v / 2 if k.endswith("lora_b") else v for k, v in arrays.items()})
    return tmp_path


def only_run(folder: Path) -> Path:
    (found,) = (folder / "evaluation_results").iterdir()
    return found


def samples(run_folder: Path) -> list[dict]:
    return [
        {k: v for k, v in row.items() if k not in ("seconds", "checksum")}
        for row in json_lines(run_folder / "samples.jsonl")
    ]


def figures(run_folder: Path) -> dict:
    """results.json without what depends on the clock."""
    results = json.loads((run_folder / "results.json").read_text())
    del results["checksum"]
    for found in results["contestants"].values():
        del found["seconds"], found["tokens_per_second"]
    return results


def test_compare_writes_everything_and_report_rebuilds_it(folder: Path) -> None:
    result = succeed(folder, "evaluate", "--compare", *QUICK)
    assert "McNemar" in result.stderr and json.loads(result.stdout)["report.html"].endswith("/report.html")
    made = only_run(folder)
    assert {p.name for p in made.iterdir()} == {
        "settings.json", "samples.jsonl", "results.json", "report.html", "model_card.md", "accuracy.png", "answers.png",
        "groups.png",
    }  # fmt: skip
    rows, before = samples(made), figures(made)
    assert [row["contestant"] for row in rows] == ["base"] * 24 + ["tuned"] * 24
    right = [sum(row["correct"] for row in rows if row["contestant"] == name) for name in ("base", "tuned")]
    assert [before["contestants"][name]["accuracy"]["right"] for name in ("base", "tuned")] == right
    assert before["comparisons"][0]["difference"] == pytest.approx((right[1] - right[0]) / 24)
    assert "| base |" in (made / "model_card.md").read_text()
    for name in ("results.json", "report.html", "accuracy.png"):
        (made / name).unlink()
    succeed(folder, "report", str(made), "--regrade")
    assert figures(made) == before and samples(made) == rows
    assert (made / "report.html").stat().st_size > 20_000 and (made / "accuracy.png").exists()


def test_killed_and_resumed_is_the_same_and_other_settings_do_not_mix(folder: Path) -> None:
    sampled = ("--no-adapter", "--limit", "60", "--max-tokens", "60", "--temperature", "0.7", "--concurrency", "4")
    process = start(folder, "evaluate", *sampled, "--run-name", "killed", log=folder / "log")
    path = folder / "evaluation_results" / "killed" / "samples.jsonl"
    wait_until(lambda: path.exists() and path.read_bytes().count(b"\n") >= 20, seconds=90)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    written = path.read_bytes()
    assert 20 <= written.count(b"\n") < 60
    path.write_bytes(written + b'{"contestant": "base", "id": "de')
    refused = run(folder, "evaluate", *sampled, "--run-name", "killed")
    assert refused.returncode == 2 and "--resume" in refused.stderr
    for change, name in ((("--seed", "1"), "seed"), (("--template", "plain"), "template")):
        mixed = run(folder, "evaluate", *sampled, "--run-name", "killed", "--resume", *change)
        assert mixed.returncode == 2 and "other settings" in mixed.stderr and name in mixed.stderr
    resumed = succeed(folder, "evaluate", *sampled, "--run-name", "killed", "--resume")
    assert "answers are there already; 1 lines left out" in resumed.stderr
    succeed(folder, "evaluate", *sampled, "--run-name", "whole")
    results = folder / "evaluation_results"
    assert samples(results / "killed") == samples(results / "whole")
    assert figures(results / "killed") == figures(results / "whole")


def test_a_run_that_ends_between_two_models_knows_how_the_first_one_was_decoded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = ("--compare", "--limit", "3", "--max-tokens", "8", "--run-name", "run")
    load = ask.Models.load

    def ended(models: ask.Models, contestant: Contestant) -> object:
        if contestant.adapter:
            raise MlxmathError("ended")
        return load(models, contestant)

    with monkeypatch.context() as patched:
        patched.setattr(ask.Models, "load", ended)
        assert run(folder, "evaluate", *few).returncode == 1
    assert "3 answers are there already" in succeed(folder, "evaluate", *few, "--resume").stderr
    assert [*figures(only_run(folder))["settings"]["decoding"]] == ["base", "tuned"]


def test_majority_ensemble_and_formulas_and_their_effect(folder: Path) -> None:
    succeed(
        folder, "evaluate", "--compare", "--adapter-path", "adapters", "--adapter-path", "weaker", "--vote", "weighted",
        "--samples", "3", "--temperature", "0.7", "--retrieve", "bundled", "--limit", "12", "--max-tokens", "40",
    )  # fmt: skip
    made = only_run(folder)
    found, rows = figures(made), samples(made)
    names = [f"{name}{formulas}" for name in ("base", "adapters", "weaker") for formulas in ("", " + formulas")]
    assert list(found["contestants"]) == names and len(rows) == 6 * 3 * 12
    pairs = [("base", "adapters"), ("base", "weaker"), *((name, f"{name} + formulas") for name in names[::2])]
    assert sorted((c["base"], c["other"]) for c in found["comparisons"]) == sorted(pairs)
    for comparison in found["comparisons"]:
        own = [found["contestants"][comparison[part]]["accuracy"]["value"] for part in ("base", "other")]
        assert comparison["difference"] == pytest.approx(own[1] - own[0]) and comparison["total"] == 12
    tuned = found["contestants"]["adapters"]
    assert set(tuned["pass_at"]) == set(tuned["maj_at"]) == {"1", "2", "3"}
    assert tuned["pass_at"]["1"] == pytest.approx(tuned["accuracy"]["value"])
    assert tuned["pass_at"]["3"] >= tuned["pass_at"]["1"]
    ensemble = found["ensemble"]
    assert set(ensemble["weights"]) == {"adapters", "weaker"}
    *majorities, voted = found["votes"]
    assert [(c["base"], c["other"]) for c in majorities] == [(name, f"{name}, majority of 3") for name in names]
    for vote in majorities:
        own = found["contestants"][vote["base"]]
        assert vote["difference"] == pytest.approx(own["majority"]["value"] - own["accuracy"]["value"])
    best = max(own["accuracy"]["value"] for name, own in found["contestants"].items() if name in ensemble["weights"])
    assert voted["other"] == "ensemble" and voted["base"] in ensemble["weights"]
    assert voted["difference"] == pytest.approx(ensemble["accuracy"]["value"] - best)
    assert tuned["formulas"] == 0 and found["contestants"]["adapters + formulas"]["formulas"] > 0.5
    bare = {row["id"]: row["prompt_tokens"] for row in rows if row["contestant"] == "base"}
    given = [row for row in rows if row["contestant"] == "base + formulas" and row["formulas"]]
    assert given and all(row["prompt_tokens"] > bare[row["id"]] for row in given)
    page = (made / "report.html").read_text()
    for text in ("ensemble", "weighted vote", "maj@k", "pass@k", "retrieved from bundled", "adapters, majority"):
        assert text in page


def test_rounds_end_when_it_is_decided_and_go_on_after_a_kill(folder: Path) -> None:
    path = folder / "weaker" / "adapters.safetensors"
    mx.save_safetensors(str(path), {k: 99 * v + 1 for k, v in mx.load(str(path)).items()})  # right never
    asked = ("--compare", "--adapter-path", "weaker", "--until-decided", "--first-round", "24", "--max-tokens", "40")
    said = succeed(folder, "evaluate", *asked).stderr
    made = only_run(folder)
    found, rows = figures(made), samples(made)
    (comparison,) = found["comparisons"]
    assert comparison["until_decided"] == {"smallest": 5, "decision": "worse"}
    assert comparison["high"] < 0 and comparison["p_value"] <= 0.05 and comparison["fixed"] == 0
    num = found["num_problems"]
    assert num in (36, 54, 81, 121) and [row["contestant"] for row in rows] == ["base"] * num + ["tuned"] * num
    assert f"after {num} problems: tuned is worse than base" in said and "after 24 problems: no difference" in said
    page = (made / "report.html").read_text()
    assert "confidence sequence" in page and "McNemar" not in page
    lines = (made / "samples.jsonl").read_bytes().splitlines(keepends=True)
    (made / "samples.jsonl").write_bytes(b"".join(lines[::3]) + lines[1][:40])
    succeed(folder, "evaluate", *asked, "--resume")
    assert figures(made) == found and samples(made) == rows
    succeed(folder, "report", str(made))
    assert figures(made) == found


def test_a_model_reads_the_answers_of_others(folder: Path) -> None:
    asked = ("--adapter-path", "adapters", "--adapter-path", "weaker", "--vote", "synthesize", "--limit", "6")
    asked += ("--max-tokens", "24", "--vote-model", "mlx_model")
    succeed(folder, "evaluate", *asked)
    made = only_run(folder)
    found, rows = figures(made), samples(made)
    assert [row["contestant"] for row in rows] == ["adapters"] * 6 + ["weaker"] * 6 + ["ensemble"] * 6
    assert list(found["contestants"]) == ["adapters", "weaker"] and found["ensemble"]["vote"] == "synthesize"
    by_id: dict[str, list[str]] = {}
    for row in rows:
        by_id.setdefault(row["id"], []).append(row["question" if row["contestant"] == "ensemble" else "response"])
    for first, second, read in by_id.values():
        assert first.strip() in read and second.strip() in read
    right = sum(row["correct"] for row in rows if row["contestant"] == "ensemble")
    assert found["ensemble"]["accuracy"]["right"] == right
    (compared,) = found["votes"]
    best = max(found["contestants"][label]["accuracy"]["value"] for label in ("adapters", "weaker"))
    assert compared["other"] == "ensemble" and compared["difference"] == pytest.approx(right / 6 - best)
    assert "read by mlx_model" in (made / "report.html").read_text()
    lines = (made / "samples.jsonl").read_bytes().splitlines(keepends=True)
    (made / "samples.jsonl").write_bytes(b"".join(lines[:-2]))
    said = succeed(folder, "evaluate", *asked, "--resume").stderr
    assert "16 answers are there already" in said and "ensemble: 2 answers to demo" in said
    assert figures(made) == found and samples(made) == rows
    succeed(folder, "evaluate", *asked[:-2], "--resume")  # another reader
    assert "read by mlx_model + adapters" in (made / "report.html").read_text()


def together(folder: Path, *arguments: str) -> list[tuple[str, str]]:
    """Standard output and standard error of a command on two ranks."""
    hosts = ring_hostfile(folder, 2)
    processes = [
        subprocess.Popen(
            command(*arguments), cwd=folder, env=ENVIRONMENT | {"MLX_RANK": str(rank), "MLX_HOSTFILE": str(hosts)},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert outputs[0][0] and not outputs[1][0]  # only the first one reports
    return outputs


def test_varied_problems_are_compared_with_the_published_ones(folder: Path) -> None:
    asked = ("--compare", "--perturb", "numbers", "--limit", "8", "--max-tokens", "30", "--run-name", "varied")
    result = succeed(folder, "evaluate", *asked)
    made = folder / "evaluation_results" / "varied"
    rows, found = samples(made), figures(made)
    labels = ["base", "base, numbers varied", "tuned", "tuned, numbers varied"]
    assert [row["contestant"] for row in rows] == [label for label in labels for _ in range(8)]
    published, varied = ({row["id"]: row for row in rows if row["contestant"] == label} for label in labels[2:])
    assert published.keys() == varied.keys()
    for one, other in ((published[i], varied[i]) for i in published):
        assert one["question"] != other["question"]
        assert re.sub(r"\d+", "#", one["question"]) == re.sub(r"\d+", "#", other["question"])
        assert other["correct"] == grade(other["response"], other["gold"]).correct
    pairs = [(c["base"], c["other"], c["varied"], c["total"]) for c in found["comparisons"]]
    assert pairs == [
        ("base", labels[1], "numbers", 8), ("base", "tuned", None, 8), ("tuned", labels[3], "numbers", 8),
    ]  # fmt: skip
    assert "with numbers varied" in " ".join(result.stderr.split())
    page = (made / "report.html").read_text()
    assert all(row["question"].split("?")[0][:40] in page for row in (*published.values(), *varied.values()))
    again = run(folder, "evaluate", *asked, "--seed", "1", "--resume")
    assert again.returncode == 2 and "other settings" in again.stderr, "another seed is another variation"


def test_two_processes_share_the_work_or_the_model_and_find_the_same(folder: Path) -> None:
    shared = together(folder, "evaluate", *QUICK, "--run-name", "shared")
    together(folder, "evaluate", *QUICK, "--run-name", "spread", "--shard", "tensor")
    succeed(folder, "evaluate", *QUICK, "--run-name", "alone")
    results = folder / "evaluation_results"
    assert samples(results / "shared") == samples(results / "spread") == samples(results / "alone")
    assert not list((results / "shared").glob("samples.rank*"))
    assert "12 answers" in shared[0][1] and not shared[1][1]


def test_a_model_spread_over_two_processes_answers_a_prompt(folder: Path) -> None:
    ask = ("infer", "--prompt", "What is 12 + 7?", "--temperature", "0", "--json", "--max-new-tokens", "24")
    (output, said), _ = together(folder, *ask, "--shard", "tensor")
    alone = json.loads(succeed(folder, *ask).stdout)
    assert json.loads(output) | {"seconds": 0} == alone | {"seconds": 0}
    assert "spread over 2 processes by tensor" in said


def test_there_must_be_processes_to_spread_a_model_over(folder: Path) -> None:
    refused = run(folder, "infer", "--prompt", "1 + 1", "--shard", "tensor")
    assert refused.returncode == 2 and "mlx.launch -n 2" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--benchmark", "gsm8"), 2, "did you mean 'gsm8k'"),
        (("--benchmark", "nowhere.jsonl"), 2, "--benchmark: nowhere.jsonl does not exist"),
        (("--seed", "-5"), 2, "--seed"),
        (("--seed", "9" * 20), 2, "--seed"),
        (("--samples", "2"), 2, "--temperature"),
        (("--vote", "weighted"), 2, "at least two tuned models"),
        (("--weights", "1,2"), 2, "needs --vote weighted"),
        (("--vote", "synthesize"), 2, "one answer to a problem"),
        (("--vote-model", "x"), 2, "needs --vote synthesize"),
        (("--vote", "synthesize", "--samples", "2", "--temperature", "1", "--vote-model", "nowhere"), 1, "nowhere"),
        (("--until-decided",), 2, "nothing to decide between"),
        (("--until-decided", "--samples", "2", "--temperature", "1"), 2, "takes neither --samples nor --vote"),
        (("--adapter-path", "nowhere"), 1, "nowhere holds no adapter"),
        (("--mlx-path", "nowhere"), 1, "nowhere is not a model folder"),
        (("--adapter-path", "adapters", "--adapter-path", "adapters"), 2, "given twice"),
        (("--no-adapter", "--compare"), 2, "--no-adapter excludes"),
        (("--retrieve", "nowhere.jsonl"), 2, "--retrieve: nowhere.jsonl does not exist"),
        (("--run-name", "../up"), 2, "--run-name"),
        (("--template", "chad"), 2, "no template 'chad'"),
        (("--compare", "--template-for", "bsae=chat"), 2, "did you mean 'base'"),
        (("--template-for", "tuned"), 2, "expected MODEL=TEMPLATE"),
        (("--template-for", "tuned=chat,tuned=plain"), 2, "expected MODEL=TEMPLATE, each model once"),
        (("--template-for", "tuned=chad"), 2, "--template-for: no template 'chad'"),
        (("--template-for", "tuned=no.toml"), 2, "--template-for: no.toml does not exist"),
        (("--no-adapter", "--template-for", "base=adapter"), 2, "needs an adapter"),
    ],
)
def test_bad_input(
    debug_run: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(debug_run)
    result = invoke(main, *arguments, code=code)
    assert message in result.output and "Traceback" not in result.output
    assert not (debug_run / "evaluation_results").exists()


def plain_base(folder: Path, name: str) -> None:
    """A copy of the model whose tokenizer has no chat template."""
    shutil.copytree(folder / "mlx_model", folder / name)
    path = folder / name / "tokenizer_config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "chat_template"}))


def asked_in(folder: Path, *arguments: str) -> dict[str, str]:
    """The template that each model is asked in, by the lines of the run."""
    said = succeed(folder, "evaluate", "--limit", "2", "--max-tokens", "3", "--overwrite", *arguments).stderr
    return dict(re.findall(r"^(.+): 2 answers to demo, .* template ([\w-]+)", said, re.MULTILINE))


def test_each_model_is_asked_in_its_own_template(folder: Path) -> None:
    path = folder / "weaker" / "adapter_config.json"
    record = json.loads(path.read_text())
    other = {"prompt": "Question: {question}\n", "completion": "{solution}", "chat": False, "stop": ["\n\n"]}
    path.write_text(json.dumps(record | {"template": "other", "template_definition": other}))
    both = ("--compare", "--adapter-path", "adapters", "--adapter-path", "weaker")
    own = {"base": "chat", "adapters": "tutor", "weaker": "other"}
    assert asked_in(folder, *both) == own
    assert asked_in(folder, *both, "--template", "plain") == dict.fromkeys(own, "plain")
    assert asked_in(folder, *both, "--template-for", "base=adapter") == own | {"base": "tutor"}
    (folder / "best.toml").write_text('prompt = "Q: 1 + 1?\\nA: 2\\n\\nQ: {question}\\nA:"\nstop = ["\\n\\n"]')
    named = ("--template-for", "base=best.toml,weaker=plain", "--run-name", "named")
    assert asked_in(folder, *both, *named) == own | {"base": "best", "weaker": "plain"}
    written = json.loads((folder / "evaluation_results" / "named" / "settings.json").read_text())["contestants"]
    assert written[0]["template"]["stop"] == ["\n\n"] and len({one["fingerprint"] for one in written}) == 3
    for row in samples(folder / "evaluation_results" / "named"):
        assert row["contestant"] != "base" or "\n\n" not in row["response"]
    plain_base(folder, "bare")
    bare = asked_in(folder, "--compare", "--against", "bare")
    assert bare == {"base": "chat", "tuned": "tutor", "bare": "tutor"}
    (folder / "config.toml").write_text('[data]\ntemplate = "plain"\n[evaluation]\ntemplate_for = []\n')
    assert asked_in(folder, "--no-adapter", "--mlx-path", "bare", "--config", "config.toml") == {"base": "plain"}
    formulas = asked_in(folder, *both[:3], "--retrieve", "bundled", "--template-for", "base=plain")
    assert formulas == {"base": "plain", "base + formulas": "plain", "tuned": "tutor", "tuned + formulas": "tutor"}
