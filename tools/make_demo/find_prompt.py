"""Search the prompt at which the bundled base model does best, on the validation problems.

Run as `python -m tools.make_demo.find_prompt` after the model is made. Every prompt is asked as it is, and cut where
another problem or a blank line begins, or after the one line that worked examples answer in; a tuned model is then
compared with the base at its best, not at a prompt that the base does not understand. Writes the winner, a prompt
template with its stop strings, to mlxmath/problems/templates/demo-base.toml, and the table of all to
mlxmath/demo/base_prompts.json.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import tomli_w

REPOSITORY = Path(__file__).parents[2]
DEMO = REPOSITORY / "mlxmath" / "demo"
TEMPLATE = REPOSITORY / "mlxmath" / "problems" / "templates" / "demo-base.toml"
TABLE = DEMO / "base_prompts.json"

MAX_TOKENS = 400
"""More than all but a few answers take that nothing cuts."""

TUTOR = (
    "You are a helpful math tutor. Solve the problem step by step and give the final answer at the end.\n\n"
    "### Problem:\n{question}\n\n### Solution:\n"
)
STYLES = {
    "Q: A:": "Q: {question}\nA:",
    "Question: Answer:": "Question: {question}\nAnswer:",
    "plain": "{question}\n",
    "how it is done": "{question}\n\nHere is how it is done.\n",
    "Ask: Reply:": "Ask: {question}\nReply:",
    "short answer": "{question} Answer:",
    "tutor": TUTOR,
}
"""The styles that the base has read, and the tutor's."""

SHOT_KINDS = {
    "2 learned": ("one step", "two steps"),
    "4 new": ("three steps", "comparison", "two products", "backwards"),
}
"""Worked examples before the problem, one of each of these kinds."""


@dataclass(frozen=True)
class Prompt:
    """A prompt template and where its answers are cut."""

    name: str
    prompt: str
    stop: tuple[str, ...]

    @property
    def definition(self) -> dict[str, Any]:
        """As a template's file holds it."""
        return {"prompt": self.prompt, **({"stop": list(self.stop)} if self.stop else {})}


def worked(style: str, row: dict[str, str]) -> str:
    """A problem with its solution in a style of `STYLES`, as an example before the problem that is asked."""
    *steps, _ = row["solution"].split("\n")
    if style == "tutor":
        return TUTOR.format(question=row["problem"]) + row["solution"]
    text = STYLES[style].format(question=row["problem"])
    after = "" if text.endswith("\n") else " "
    if style == "short answer":
        return text + after + row["answer"]
    return text + after + " ".join((*steps, f"The answer is {row['answer']}."))


def prompts(train: list[dict[str, str]]) -> Iterator[Prompt]:
    """Every style alone and after worked examples: cut after one line where the worked examples take one, cut at a new
    problem or a blank line, and as it is.
    """
    examples = {
        kind: next(row for row in train if row["kind"] == kind) for kinds in SHOT_KINDS.values() for kind in kinds
    }
    asked = dict(STYLES)
    for style in (style for style in STYLES if style != "short answer"):  # which has nothing worked to show
        for name, kinds in SHOT_KINDS.items():
            shots = "\n\n".join(worked(style, examples[kind]) for kind in kinds)
            asked[f"{style}, {name}"] = f"{shots}\n\n{STYLES[style]}"
    for name, prompt in asked.items():
        style, *shown = name.split(", ")
        start = STYLES[style].split("{question}")[0].strip()
        if shown and style != "tutor":  # whose worked examples have a line for each step
            yield Prompt(f"{name}, one line", prompt, ("\n",))
        yield Prompt(f"{name}, cut", prompt, ("\n\n", *([f"\n{start}"] if start else [])))
        yield Prompt(name, prompt, ())


def search(model: Path, problems: Path, limit: int | None, folder: Path) -> list[dict[str, Any]]:
    """The share of right answers of each prompt, best first; of equals the one that is listed first."""
    from mlxmath.config.load import settings_from
    from mlxmath.data.templates import template_of
    from mlxmath.evaluation.contestants import Contestant
    from mlxmath.evaluation.runner import evaluate
    from mlxmath.runtime.ranks import Ranks

    rows = [json.loads(line) for line in (DEMO / "problems" / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    contestants, tried = [], list(prompts(rows))
    for number, prompt in enumerate(tried):
        file = folder / f"{number}.toml"
        file.write_text(tomli_w.dumps({**prompt.definition, "completion": "{solution}"}), encoding="utf-8")
        contestants.append(Contestant(prompt.name, model, template=template_of(str(file), "--template-for")))
    values = {
        "benchmark": f"demo={problems}", "max_tokens": MAX_TOKENS, "limit": limit,
        "results_path": str(folder / "results"),
    }  # fmt: skip
    found = evaluate(settings_from(("evaluation",), **values).config, contestants, Ranks(), overwrite=True)
    assert found is not None
    table = []
    for prompt in tried:
        figures = found["contestants"][prompt.name]
        right = {
            kind: f"{each['right']:.0f}/{each['total']}" for kind, each in figures["by"].get("subject", {}).items()
        }
        table.append({"name": prompt.name, "right": round(figures["accuracy"]["right"]), "asked": found["num_problems"],
                      "cut off by the limit": figures["cut_off"], "by kind": right, **prompt.definition})  # fmt: skip
    return sorted(table, key=lambda row: -row["right"])


def main() -> None:
    """Search, write the winner and the table, print the table."""
    parser = argparse.ArgumentParser(description="Search the base model's best prompt on the validation problems.")
    parser.add_argument("--model", type=Path, required=True, help="folder of the converted base model")
    parser.add_argument("--problems", type=Path, default=DEMO / "problems" / "validation.jsonl")
    parser.add_argument("--limit", type=int, help="ask only so many of them")
    parser.add_argument("--write", action="store_true", help="write the winner and the table into the package")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        table = search(chosen.model, chosen.problems, chosen.limit, Path(name))
    for row in table:
        share = row["right"] / row["asked"]
        click.echo(f"{100 * share:5.1f} %  cut off {row['cut off by the limit']:3}  {row['name']:32}  {row['by kind']}")
    if chosen.write:
        best = table[0]
        description = "What the demo's bundled base model, untuned, answers best: found on the validation problems."
        winner = {"description": description, "prompt": best["prompt"], "completion": "{solution}"}
        if "stop" in best:
            winner["stop"] = best["stop"]
        TEMPLATE.write_text(tomli_w.dumps(winner), encoding="utf-8")
        TABLE.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
