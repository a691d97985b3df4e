"""`gkd` as a user runs it, on the bundled model: it learns the teacher, resumes exactly, refuses by name."""

import json
import shutil
from pathlib import Path

import pytest

from tests.helpers import adapters, events, run, succeed

SMALL = (
    "--model", "demo", "--dtype", "float32", "--dataset", "demo", "--num-examples", "24", "--max-seq-len", "160",
    "--max-completion-length", "16", "--batch-size", "8", "--grad-accumulation-steps", "1", "--learning-rate", "3e-3",
    "--schedule", "constant", "--warmup-ratio", "0", "--save-every", "1", "--teacher", "mlx_model:teacher",
    "--validation-split", "2", "--eval-every", "3", "--max-steps", "6",
)  # fmt: skip


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a teacher, which has learned something, and a student of six steps; not to be changed."""
    folder = tmp_path_factory.mktemp("gkd")
    succeed(
        folder, "train", "--recipe", "demo", "--num-examples", "24", "--max-steps", "6", "--adapter-path", "teacher"
    )
    (folder / "shown.txt").write_text(succeed(folder, "gkd", *SMALL).stderr)
    return folder


def kind(folder: Path, name: str) -> list[dict]:
    return [event for event in events(folder) if event["event"] == name]


def test_the_student_comes_closer_to_its_teacher(taught: Path) -> None:
    steps = kind(taught, "step")
    assert len(steps) == 6 and steps[-1]["divergence"] < 0.5 * steps[0]["divergence"]
    assert steps[0]["loss"] == steps[0]["divergence"] and steps[0]["entropy"] > 0
    drawn = kind(taught, "rollout")
    assert [one["completions"] for one in drawn] == [8] * 2 + [6] + [8] * 2 + [6]
    assert drawn[0]["zero_variance"] is None and set(drawn[0]["rewards"]) == {"correctness"}
    assert [one["step"] for one in kind(taught, "validation")] == [0, 3, 6]
    record = json.loads((taught / "adapters" / "run.json").read_text())
    assert record["status"] == "finished" and record["validation"]["best"].keys() == {"step", "accuracy"}
    assert (taught / "adapters" / "curves.png").read_bytes().startswith(b"\x89PNG")
    shown = (taught / "shown.txt").read_text()
    assert "teacher: mlx_model + teacher, which shares the weights of the base" in shown
    assert "nats a token" in shown and "groups" not in shown


def test_resumed_equals_uninterrupted_and_another_teacher_is_refused(taught: Path, tmp_path: Path) -> None:
    for name in ("mlx_model", "teacher"):
        shutil.copytree(taught / name, tmp_path / name)
    succeed(tmp_path, "gkd", *SMALL, "--max-steps", "3")
    shutil.move(tmp_path / "teacher", tmp_path / "moved")
    moved = ("--teacher", "mlx_model:moved", "--resume")
    assert "step-3" in succeed(tmp_path, "gkd", *SMALL, *moved).stderr
    assert adapters(tmp_path) == adapters(taught)
    refused = run(tmp_path, "gkd", *SMALL, "--teacher", "mlx_model", "--resume")
    assert refused.returncode == 2 and "gkd.teacher was" in refused.stderr


def test_the_datasets_own_solutions_by_the_forward_kl(taught: Path, tmp_path: Path) -> None:
    for name in ("mlx_model", "teacher"):
        shutil.copytree(taught / name, tmp_path / name)
    own = ("--lmbda", "0", "--beta", "0", "--max-completion-length", "96", "--max-seq-len", "256", "--max-steps", "2")
    succeed(tmp_path, "gkd", *SMALL, *own, "--validation-split", "3")
    steps = kind(tmp_path, "step")
    assert not kind(tmp_path, "rollout") and len(steps) == 2
    again = (*own, "--validation-split", "3", "--overwrite", "--teacher-top-k")
    shown = succeed(tmp_path, "gkd", *SMALL, *again, "100000").stderr  # more than there are: all of them
    assert "teacher: mlx_model + teacher" in shown
    for one, other in zip(steps, kind(tmp_path, "step"), strict=True):
        assert other["divergence"] == pytest.approx(one["divergence"], rel=1e-3)
        assert other["entropy"] == pytest.approx(one["entropy"], rel=1e-3)
    trained = adapters(tmp_path)
    (kept,) = (tmp_path / "cache").glob("teacher-*.bin")
    shown = succeed(tmp_path, "gkd", *SMALL, *again, "100000").stderr
    assert "teacher: " not in shown and str(kept.name) in shown and adapters(tmp_path) == trained
    kept.write_bytes(kept.read_bytes()[:-1])
    shown = succeed(tmp_path, "gkd", *SMALL, *again, "100000").stderr
    assert "is damaged, and is made again" in shown and adapters(tmp_path) == trained
    succeed(tmp_path, "gkd", *SMALL, *again, "2")
    assert 0 < kind(tmp_path, "step")[0]["divergence"] < steps[0]["divergence"]
    for arguments, message in (
        (("--teacher", "nowhere"), "nowhere is not a model folder"),
        (("--lora-dropout", "0.1"), "expected 0 where completions are drawn"),
        (("--num-generations", "3"), "no multiple of --num-generations 3"),
        (("--beta", "1.5"), "--beta"),
        (("--teacher-top-k", "2"), "needs --lmbda 0"),
        (("--set", "grpo.beta=0.1"), "the settings of [grpo] have no use"),
    ):
        refused = run(tmp_path, "gkd", *SMALL, *arguments, "--overwrite")
        assert refused.returncode in (1, 2) and message in refused.stderr, refused.stderr
    nobody = tuple(one for one in SMALL if one not in ("--teacher", "mlx_model:teacher"))
    assert "--teacher: name the model" in run(tmp_path, "gkd", *nobody).stderr


def test_a_teacher_with_other_tokens_scores_pieces_of_text(taught: Path, tmp_path: Path) -> None:
    """The same model under other ids says the same of each piece, and a piece of one token is that token."""
    shutil.copytree(taught / "mlx_model", tmp_path / "mlx_model")
    other = shutil.copytree(taught / "mlx_model", tmp_path / "other")
    swap_tokens(other)
    few = ("--max-steps", "2", "--learning-rate", "1e-5", "--temperature", "0.8", "--teacher")
    shown = succeed(tmp_path, "gkd", *SMALL, *few, "other").stderr
    assert "the teacher has other tokens (" in shown and "pieces of text are compared" in shown
    first, second = kind(tmp_path, "step")
    assert abs(first["divergence"]) < 1e-4  # of the student from itself
    assert 0 < abs(second["divergence"]) < 0.1 and first["entropy"] > 0
    refused = run(tmp_path, "gkd", *SMALL, *few, "other", "--beta", "0.5", "--overwrite")
    assert refused.returncode == 2 and "Give --beta 1 and --lmbda 1" in refused.stderr


def swap_tokens(folder: Path) -> None:
    """Two tokens of a model change places, in its tokenizer and its embedding."""
    import mlx.core as mx

    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    one, two = "1", "2"
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    path.write_text(json.dumps(tokenizer))
    for weights in folder.glob("*.safetensors"):
        arrays = mx.load(str(weights))
        for name, array in arrays.items():
            if "embed_tokens" in name or "lm_head" in name:
                rows = [vocabulary[one], vocabulary[two]]
                array[mx.array(rows)] = array[mx.array(rows[::-1])]
        mx.save_safetensors(str(weights), arrays, {"format": "mlx"})
    (folder / "mlxmath.json").unlink()
