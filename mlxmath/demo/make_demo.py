"""Make every file of the bundled demo from nothing: problems, tokenizer, corpus, and a base model trained on it.

Run as `python -m mlxmath.demo.make_demo` (needs torch, transformers and tokenizers, which the package itself does
not). The base model reads arithmetic only in plain styles - questions with worked answers, running prose, drills,
exercise sheets without answers - and never in the tutor format. So it can do the arithmetic, but asked in the tutor
format it continues the document, most often with the next exercise. That is what fine-tuning then changes.
"""

import argparse
import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import torch

from mlxmath.demo.base_model import train_base, write_model
from mlxmath.demo.base_tokenizer import TUTOR_PROMPT, train_tokenizer, write_tokenizer
from mlxmath.demo.corpus import documents
from mlxmath.demo.story import WordProblem
from mlxmath.demo.word_problems import make_problem_sets


def write_problems(path: Path, problems: Sequence[WordProblem]) -> None:
    """Write one JSON object a line."""
    path.write_text("".join(json.dumps(p.record()) + "\n" for p in problems), encoding="utf-8")


def main() -> None:
    """Read the options and make the demo."""
    parser = argparse.ArgumentParser(description="Regenerate the bundled demo: problems, tokenizer and base model.")
    parser.add_argument("--steps", type=int, default=1150, help="training steps of the base model")
    parser.add_argument("--rows", type=int, default=32, help="windows a step")
    parser.add_argument("--length", type=int, default=256, help="tokens a window")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder for problems/ and model/")
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(True)
    problems_folder, model_folder = options.out / "problems", options.out / "model"
    for folder in (problems_folder, model_folder):
        folder.mkdir(parents=True, exist_ok=True)

    sets = make_problem_sets(0)
    for name, problems in (("train", sets.train), ("validation", sets.validation), ("test", sets.test)):
        write_problems(problems_folder / f"{name}.jsonl", problems)
    held_out = sets.normalised_questions()

    sample = list(islice(documents(77, held_out), 6000)) + [TUTOR_PROMPT.replace("{problem}", "")] * 2000
    tokenizer = train_tokenizer(sample)
    write_tokenizer(tokenizer, model_folder)

    texts = documents(1000 + options.seed, held_out)
    model = train_base(tokenizer, texts, sets.test, options.steps, options.rows, options.length)
    write_model(model, tokenizer, model_folder)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
