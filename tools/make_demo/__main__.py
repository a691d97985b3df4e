"""Make every file of the bundled demo from nothing: problems, tokenizer, corpus, and a base model trained on it.

Run as `python -m tools.make_demo` in the repository (needs torch, transformers and tokenizers, which the package itself
does not); the same machine gives the same bytes again. The base model reads arithmetic in plain styles - questions with
worked answers, running prose, drills, exercise sheets without answers, the tutor's template - but sees only problems
of two kinds worked. The bundled problems are of four more kinds, which need more steps or another way of putting steps
together. That is what fine-tuning then teaches.
"""

import argparse
import json
import os
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that wait leave the cores to others

import torch

from tools.make_demo.base_model import train_base, write_model
from tools.make_demo.base_tokenizer import train_tokenizer, write_tokenizer
from tools.make_demo.corpus import documents
from tools.make_demo.story import WordProblem
from tools.make_demo.word_problems import KINDS, make_problem_sets, problem_stream

DEMO = Path(__file__).parents[2] / "mlxmath" / "demo"


def write_problems(path: Path, problems: Sequence[WordProblem]) -> None:
    """Write one JSON object a line."""
    path.write_text("".join(json.dumps(p.record()) + "\n" for p in problems), encoding="utf-8")


def main() -> None:
    """Read the options and make the demo."""
    parser = argparse.ArgumentParser(description="Regenerate the bundled demo: problems, tokenizer and base model.")
    parser.add_argument("--steps", type=int, default=850, help="training steps of the base model")
    parser.add_argument("--rows", type=int, default=16, help="windows a step")
    parser.add_argument("--length", type=int, default=256, help="tokens a window")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=DEMO, help="folder for problems/ and model/")
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(True)
    problems_folder, model_folder = options.out / "problems", options.out / "model"
    for folder in (problems_folder, model_folder):
        folder.mkdir(parents=True, exist_ok=True)

    sets = make_problem_sets()
    for name, problems in (("train", sets.train), ("validation", sets.validation), ("test", sets.test)):
        write_problems(problems_folder / f"{name}.jsonl", problems)
    tokenizer = train_tokenizer(list(islice(documents(77), 6000)))
    write_tokenizer(tokenizer, model_folder)

    texts = documents(1000 + options.seed)
    fresh = list(islice(problem_stream(5, dict.fromkeys(KINDS, 1), held_out=True), 200))
    model = train_base(tokenizer, texts, fresh, options.steps, options.rows, options.length)
    write_model(model, tokenizer, model_folder)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
