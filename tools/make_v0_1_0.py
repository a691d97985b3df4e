"""`python tools/make_v0_1_0.py`: make tests/fixtures/v0_1_0 again, with version 0.1.0 of mlxmath, from its commit.

0.1.0 is the last commit before the work that CHANGELOG.md lists above it. It is checked out beside this clone, run by
this Python on a model of two small blocks with random weights, and what it wrote is copied without pictures and pages.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.models.llama import Model, ModelArgs
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

ROOT = Path(__file__).resolve().parent.parent
COMMIT = "1eba6d7"
HERE = "@HERE@"
"""In place of the folder in which 0.1.0 ran."""
FIXTURES = ROOT / "tests" / "fixtures" / "v0_1_0"
LEFT_OUT = shutil.ignore_patterns("*.png", "*.svg", "*.html", "*.md", ".lock", "events.jsonl")
NAMES = ("Tom", "Ann", "Sam", "Eve")
TRAIN = (
    "train", "--model", "base", "--dataset", "train.jsonl", "--decontaminate", "none", "--template", "plain",
    "--lora-rank", "2", "--batch-size", "2", "--grad-accumulation-steps", "2", "--learning-rate", "0.01",
    "--max-seq-len", "128", "--save-every", "4", "--keep-checkpoints", "1", "--backend", "cpu", "--workers", "1",
    "--max-batch-tokens", "512",
)  # fmt: skip
QUESTION = ("--prompt", "What is 3 + 4?", "--max-new-tokens", "12", "--temperature", "0", "--json")
RUNS = (
    (*TRAIN, "--adapter-path", "lora", "--max-steps", "4", "--lora-dropout", "0.1"),
    (*TRAIN, "--adapter-path", "lora-six-steps", "--max-steps", "6", "--lora-dropout", "0.1"),
    (*TRAIN, "--adapter-path", "dora", "--max-steps", "4", "--lora-variant", "dora", "--validation-split", "0.25"),
    ("evaluate", "--adapter-path", "lora", "--compare", "--benchmark", "test.jsonl", "--max-tokens", "24",
     "--run-name", "run", "--backend", "cpu"),
    ("infer", "--adapter-path", "lora", *QUESTION),
    ("infer", "--adapter-path", "dora", *QUESTION),
)  # fmt: skip


def write_problems(path: Path, count: int, seed: int) -> None:
    """Sums, with a worked solution and the answer."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        name, a, b = rng.choice(NAMES), rng.randint(1, 60), rng.randint(1, 60)
        solution = f"{name} has {a} + {b} = {a + b}.\n#### {a + b}"
        rows.append({"problem": f"{name} has {a} pens and buys {b}. How many?", "solution": solution})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_base(folder: Path) -> None:
    """A Llama of two blocks with random weights and a byte-level tokenizer, as on the hub."""
    folder.mkdir()
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=272, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    backend.train_from_iterator((folder.parent / "train.jsonl").read_text().splitlines(), trainer)
    backend.save(str(folder / "tokenizer.json"))
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 16, "num_hidden_layers": 2,
        "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1, "rms_norm_eps": 1e-5,
        "vocab_size": backend.get_vocab_size(), "tie_word_embeddings": True, "bos_token_id": 0, "eos_token_id": 1,
        "max_position_embeddings": 512, "rope_theta": 10000.0, "torch_dtype": "float32", "hidden_act": "silu",
    }  # fmt: skip
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    for name, content in (("config.json", config), ("tokenizer_config.json", names)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
    mx.random.seed(0)
    weights = dict(tree_flatten(Model(ModelArgs.from_dict(config)).parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "pt"})


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        old, work = Path(name, "mlxmath-0.1.0"), Path(name, "work")
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(old), COMMIT], check=True)
        try:
            work.mkdir()
            write_problems(work / "train.jsonl", 24, 0)
            write_problems(work / "test.jsonl", 6, 1)
            write_base(work / "base")
            environment = os.environ | {"PYTHONPATH": str(old), "HF_HUB_OFFLINE": "1", "OPENBLAS_NUM_THREADS": "1"}
            answers = {}
            for arguments in RUNS:
                command = [sys.executable, "-m", f"mlxmath.{arguments[0]}", *arguments[1:]]
                print("$ mlxmath", *arguments, flush=True)
                shown = subprocess.run(
                    command, cwd=work, env=environment, check=True, stdout=subprocess.PIPE, text=True
                )
                if arguments[0] == "infer":
                    answers[arguments[2]] = json.loads(shown.stdout)
            (work / "answers.json").write_text(json.dumps(answers, indent=2) + "\n")
        finally:
            subprocess.run([*git, "remove", "--force", str(old)], check=True)
        readme = (FIXTURES / "README.md").read_bytes()
        shutil.rmtree(FIXTURES)
        shutil.copytree(work, FIXTURES, ignore=LEFT_OUT)
        manifest = FIXTURES / "mlx_model" / "mlxmath.json"  # the one file that names a folder from the root on
        manifest.write_text(manifest.read_text().replace(str(work.resolve()), HERE))
        (FIXTURES / "README.md").write_bytes(readme)


if __name__ == "__main__":
    main()
