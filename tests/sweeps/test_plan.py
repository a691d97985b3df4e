"""Which runs a file asks for."""

import re
import shlex
from pathlib import Path

import pytest

from mlxmath.config.load import settings_from
from mlxmath.errors import InputError
from mlxmath.sweeps.file import read_sweep
from mlxmath.sweeps.plan import Plan, plan_of
from tests.helpers import REPOSITORY

TRAIN = """
[train]
recipe = "debug"
training.validation_split = 4
training.max_steps = 80
"""


def plan(tmp_path: Path, text: str, base: str = TRAIN) -> Plan:
    before, _, after = text.partition("---")
    (tmp_path / "sweep.toml").write_text(f"{before}{base}{after}")
    return plan_of(read_sweep(tmp_path / "sweep.toml"), tmp_path / "out")


def labels(found: Plan) -> list[str]:
    return [one.label for one in found.configurations]


def test_a_grid_has_every_combination_with_every_seed(tmp_path: Path) -> None:
    found = plan(tmp_path, 'seeds = [3, 5]\n---[vary]\nlora.rank = [2, 4]\ndata.template = ["tutor", "demo-base"]\n')
    assert labels(found) == [f"rank={r} template={t}" for r in (2, 4) for t in ("tutor", "demo-base")]
    assert [run.seed for run in found.configurations[0].runs] == [3, 5]
    folders = [run.folder for one in found.configurations for run in one.runs]
    assert len(set(folders)) == 8 and all(folder.parent == tmp_path / "out" / "adapters" for folder in folders)


def test_a_command_line_says_what_a_run_is(tmp_path: Path) -> None:
    """It is what a person would type: the command itself reads the same settings out of it."""
    sources = '[{dataset = "demo", count = 3}, {dataset = "more \\"rows\\".jsonl", weight = 0.5}]'
    found = plan(tmp_path, f"seeds = [7]\n---[vary]\nlora.alpha = [3.5]\ndata.sources = [{sources}]\n")
    (stage,) = found.configurations[0].runs[0].stages
    words = shlex.split(stage.command)
    assert words[:2] == ["mlxmath", "train"]
    given = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    config = settings_from(recipe="debug", set=given, seed=7).config
    assert config.lora.alpha == 3.5 and [one.weight for one in config.data.sources] == [None, 0.5]
    assert config.data.sources[1].dataset == 'more "rows".jsonl'
    assert words[words.index("--seed") + 1] == "7" and "--row-losses" in words
    assert words[words.index("--adapter-path") + 1] == str(stage.folder)


def test_random_draws_lie_in_their_ranges_and_repeat(tmp_path: Path) -> None:
    text = (
        'search = "random"\nruns = 40\nseed = 9\n---[vary]\nlora.rank = {low = 2, high = 9}\n'
        "training.learning_rate = {low = 1e-5, high = 1e-2, log = true}\n"
    )
    found = plan(tmp_path, text)
    rates, ranks = (
        [one.values[name] for one in found.configurations] for name in ("training.learning_rate", "lora.rank")
    )
    assert len(found.configurations) == 40 and len(set(labels(found))) == 40
    assert all(1e-5 <= rate <= 1e-2 for rate in rates) and all(type(rank) is int and 2 <= rank <= 9 for rank in ranks)
    assert 10 <= sum(rate < 3.16e-4 for rate in rates) <= 30, "half of them lie in the lower half by logarithm"
    assert labels(plan(tmp_path, text)) == labels(found)
    assert labels(plan(tmp_path, text.replace("seed = 9", "seed = 8"))) != labels(found)


def test_an_ablation_changes_one_thing_at_a_time(tmp_path: Path) -> None:
    found = plan(
        tmp_path,
        'search = "ablation"\n---[vary]\nlora.rank = [8, 4]\ndata.template = ["tutor", "demo-base"]\n'
        '[[variant]]\nname = "wide"\nlora.rank = 16\nlora.alpha = 32.0\n',
    )
    assert labels(found) == ["base", "rank=4", "template=demo-base", "wide"]
    wide = found.configurations[-1].values
    assert (wide["lora.rank"], wide["lora.alpha"], wide["data.template"]) == (16, 32.0, "tutor")


def test_stages_go_on_from_one_another_and_are_run_once(tmp_path: Path) -> None:
    grpo = '[grpo]\nrecipe = "demo-grpo"\ntraining.validation_split = 4\n'
    vary = '[vary]\nstages = [["train", "grpo"], ["train"]]\ngrpo.training.learning_rate = [1e-4]\n'
    evaluate = '[evaluate]\nevaluation.benchmark = ["demo"]\n'
    with pytest.raises(InputError, match="a held-out loss of train or a share of right answers cannot be ranked"):
        plan(tmp_path, f'search = "ablation"\n---{grpo}{vary}')
    text = f'search = "ablation"\n---{grpo}{vary}{evaluate}'
    both, alone = (one.runs[0].stages for one in plan(tmp_path, text).configurations)
    assert [stage.method for stage in both] == ["train", "grpo"] and alone == both[:1]
    words = shlex.split(both[1].command)
    assert words[words.index("--init-adapter") + 1] == str(both[0].folder)
    assert "training.learning_rate=0.0001" in words and "training.learning_rate=0.0001" not in both[0].arguments


def test_a_methods_own_settings_vary(tmp_path: Path) -> None:
    found = plan(tmp_path, "---[vary]\nsft.label_smoothing = [0.0, 0.1]\n")
    assert labels(found) == ["label_smoothing=0", "label_smoothing=0.1"]
    gkd = '[gkd]\nrecipe = "debug"\ngkd.teacher = "mlx_model:adapters"\ntraining.validation_split = 4\n'
    stages = [one.runs[0].stages[0] for one in plan(tmp_path, "---[vary]\ngkd.beta = [0.5, 1.0]\n", gkd).configurations]
    assert [stage.arguments[0] for stage in stages] == ["gkd"] * 2 and "gkd.beta=0.5" in stages[0].arguments


def test_rungs_are_those_of_successive_halving(tmp_path: Path) -> None:
    vary = "[vary]\nlora.rank = [1, 2, 3, 4, 5, 6, 7, 8]\n"
    found = plan(tmp_path, f"---{vary}[halving]\n")
    assert found.rungs == (10, 20, 40, None) and found.keep == (8, 4, 2, 1)
    found = plan(tmp_path, f"---{vary}[halving]\nfactor = 4\nrungs = 3\n")
    assert found.rungs == (5, 20, None) and found.keep == (8, 2, 1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("---[vary]\nlora.rnk = [1]\n", "vary.lora.rnk: unknown setting; did you mean 'lora.rank'?"),
        ("---[vary]\nlora.rank = [1, 0]\n", "lora.rank"),
        ("---[vary]\ngrpo.beta = [0.1]\n", "vary.grpo.beta: has no use in train"),
        ("---[vary]\ntraining.validation_metric = ['loss', 'answers']\n", "cannot be ranked among each other"),
        ("---[vary]\ntraining.seed = [1, 2]\n", "seeds = [0, 1, 2]"),
        ("---[vary]\ntraining.adapter_path = ['a']\n", "the sweep sets it itself"),
        ("---[vary]\nlora.rank = {low = 1, high = 3}\n", 'search = "random"'),
        ('search = "random"\nruns = 2\n---[vary]\nlora.alpha = {low = 0.0, high = 3.0, log = true}\n', "above 0"),
        ('search = "random"\n---[vary]\nlora.rank = [1]\n', "runs: is missing"),
        ("---[vary]\nlora.rank = 4\n", "expected a list of values"),
        ("---[vary]\nstages = [['grpo']]\n", "expected some of the tables train"),
        ("seeds = [1, 1]\n---", "each once"),
        ("srch = 'grid'\n---", "srch: unknown; did you mean 'search'?"),
        ("---[halving]\nrungs = 9\n", "80 steps are too few for 9 rungs"),
        ("---[vary]\nlora.rank = [1, 2]\ntraining.max_steps = [4, 8]\n[halving]\n", "same training.max_steps"),
        ("---[[variant]]\nlora.rank = 2\n", "expected a table with a name"),
        (f"seeds = {list(range(300))}\n---[vary]\nlora.rank = [1, 2, 3, 4]\n", "1,200 runs"),
        ("---[evaluate]\nevaluation.benchmark = ['gsm8']\n", "there is no 'gsm8'"),
        ("---[evaluate]\nevaluation.benchmark = ['gsm8k=nowhere.jsonl']\n", "nowhere.jsonl does not exist"),
        ("---[evaluate]\nmodel.mlx_path = 'other'\n", "expected that of all runs"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_before_anything_begins(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(InputError) as found:
        plan(tmp_path, text)
    assert expected in str(found.value) and "sweep.toml" in str(found.value)


def test_runs_that_measure_nothing_cannot_be_compared(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to compare the runs by"):
        plan(tmp_path, "---[vary]\nlora.rank = [1, 2]\n", '[train]\nrecipe = "debug"\n')
    with pytest.raises(InputError, match="says nothing to run"):
        plan(tmp_path, "---[vary]\nlora.rank = [1, 2]\n", "")


def test_the_pages_file_and_the_example_are_understood(tmp_path: Path) -> None:
    (text,) = re.findall(
        r"^```toml\n(.*?)^```", (REPOSITORY / "docs" / "sweep.md").read_text(), re.MULTILINE | re.DOTALL
    )
    (tmp_path / "sweep.toml").write_text(text)
    found = plan_of(read_sweep(tmp_path / "sweep.toml"), tmp_path)
    assert len(found.configurations) == 4 and found.rungs == (120, 240, None)
    example = plan_of(read_sweep(REPOSITORY / "examples" / "ablations.toml"), tmp_path)
    assert labels(example) == ["base", "train", "rank=4", "template=demo-base", "half of the problems"]
    assert example.evaluation and not example.is_measured
