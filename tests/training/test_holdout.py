"""The same problems are held out for every method, and none of them is trained on."""

import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlxmath.config.schema import DataConfig, LoraConfig, ModelConfig, RunConfig
from mlxmath.config.training import TrainingConfig
from mlxmath.data.codec import load_tokenizer
from mlxmath.data.dedup import normalise
from mlxmath.data.load import TrainingData, held_out, load_pairs, load_rows
from mlxmath.data.pairs import Pairs
from mlxmath.errors import InputError
from mlxmath.training.checkpoint import Checkpoint, Position, check_settings
from mlxmath.training.grpo.prompts import Prompts, load_prompts
from mlxmath.training.record import fixed_settings
from tests.data.material import write_lines

DEMO_MODEL = Path(__file__).parents[2] / "mlxmath" / "demo" / "model"
TOKENIZER = load_tokenizer(DEMO_MODEL)
NUM = 40
LONG, WITHOUT_ANSWER = {4, 14, 15}, {5, 9, 10}
"""Problems that fine-tuning leaves out, for their solution is too long, and that reinforcement learning leaves out."""

Sides = tuple[set[int], set[int]]
"""Numbers of the problems that are trained on, and of those that are held out."""


def question(number: int, variant: int) -> str:
    """One of four spellings of a problem; the number of apples tells which problem it is."""
    text = f"Tom has {number} apples and buys two more. How many has he now?"
    return (text, text.upper(), text.replace(" and", ",  and"), text.replace("apples", "Apples"))[variant % 4]


def solutions() -> list[dict[str, Any]]:
    """Four solutions a problem, those of one problem not together."""
    return [
        {
            "problem": question(number, variant),
            "solution": "so " * (150 * (number in LONG)) + f"we add {variant} times: {number} + 2 apples.",
            "answer": "" if number in WITHOUT_ANSWER else str(number + 2),
        }
        for variant in range(4)
        for number in range(NUM)
    ]


def pairs() -> list[dict[str, Any]]:
    return [
        {
            "prompt": question(number, variant),
            "chosen": f"{number} + 2, way {variant}",
            "rejected": f"no idea {variant}",
        }
        for variant in range(4)
        for number in range(NUM)
    ]


def chats() -> list[dict[str, Any]]:
    """The same first question with other instructions, answers and later turns."""
    return [
        {
            "messages": [
                {"role": "system", "content": f"Way {variant}."},
                {"role": "user", "content": question(number, variant)},
                {"role": "assistant", "content": "First we count."},
                {"role": "user", "content": f"Go on, {variant}."},
                {"role": "assistant", "content": "We add two."},
            ]
        }
        for variant in range(4)
        for number in range(NUM)
    ]


def config(path: str, folder: Path, amount: float, **changes: Any) -> RunConfig:
    data = {"dataset": path, "cache_dir": str(folder / "cache"), "max_seq_len": 128, "overflow": "drop",
            "decontaminate": ()}  # fmt: skip
    training = {"validation_split": amount, "batching": changes.pop("batching", "bucket"), "seed": 3}
    made = RunConfig(
        model=ModelConfig(model="demo", mlx_path=str(DEMO_MODEL)),
        data=DataConfig(**data | changes), training=TrainingConfig(**training),
    )  # fmt: skip
    return made.model_copy(update={"grpo": made.grpo.model_copy(update={"max_completion_length": 16})})


def numbers(texts: Iterable[str]) -> set[int]:
    """Which problems the texts are of."""
    found = [re.search(r"tom has (\d+) apples", " ".join(text.lower().split())) for text in texts]
    assert all(found)
    return {int(match[1]) for match in found if match}


def of_rows(material: TrainingData) -> Sides:
    """By what the tokens say."""
    sides = []
    for part in (material.train, material.held_out):
        assert part is not None
        rows = part.rows if isinstance(part, Pairs) else part
        sides.append(numbers(TOKENIZER.decode(rows.row(i)[0].tolist()) for i in range(len(rows))))
    return sides[0], sides[1]


def of_prompts(material: Prompts) -> Sides:
    return numbers(p.question for p in material.prompts), numbers(p.question for p in material.held_out)


def sft(folder: Path, amount: float, **changes: Any) -> Sides:
    path = write_lines(folder / "solutions.jsonl", solutions())
    return of_rows(load_rows(config(path, folder, amount, **changes), DEMO_MODEL))


def chunked(folder: Path, amount: float) -> Sides:
    """A row that is a later chunk holds no question, so that only first chunks can be read; none is on both sides."""
    path = write_lines(folder / "solutions.jsonl", solutions())
    made = config(path, folder, amount, overflow="chunk", max_seq_len=64)
    material = load_rows(made, DEMO_MODEL)
    sides = [part.rows.sources[part.ids] % NUM for part in (material.train, material.held_out)]  # type: ignore[union-attr]
    return set(sides[0].tolist()), set(sides[1].tolist())


def preferences(folder: Path, amount: float, *, scored: bool, **changes: Any) -> Sides:
    path = write_lines(folder / "pairs.jsonl", pairs())
    return of_rows(load_pairs(config(path, folder, amount, **changes), DEMO_MODEL, scored=scored))


def conversations(folder: Path, amount: float) -> Sides:
    path = write_lines(folder / "chats.jsonl", chats())
    template = folder / "chat.toml"
    template.write_text('prompt = "{question}"\nchat = true\n')
    return of_rows(load_rows(config(path, folder, amount, template_file=str(template)), DEMO_MODEL))


def grpo(folder: Path, amount: float, **changes: Any) -> Sides:
    path = write_lines(folder / "solutions.jsonl", solutions())
    return of_prompts(load_prompts(config(path, folder, amount, **changes), DEMO_MODEL))


METHODS: dict[str, Callable[[Path, float], Sides]] = {
    "sft": sft,
    "sft packed": partial(sft, batching="pack"),
    "sft in chunks": chunked,
    "dpo": partial(preferences, scored=False),
    "dpo packed": partial(preferences, scored=False, batching="pack"),
    "reward-model": partial(preferences, scored=True),
    "grpo": grpo,
    "grpo without leaving out": partial(grpo, deduplicate="off"),
}


@pytest.mark.parametrize("amount", [0.2, 6])
def test_every_method_holds_out_the_same_problems_and_trains_on_none(tmp_path: Path, amount: float) -> None:
    found = {name: read(tmp_path, amount) for name, read in METHODS.items()}
    everything = set(range(NUM))
    whole = found["dpo"][1]
    assert whole and (amount < 1 or len(whole) == amount)
    assert whole & LONG and whole & WITHOUT_ANSWER, "the case tells nothing: choose another seed"
    for name, (trained, held) in found.items():
        left_out = {"s": LONG, "g": WITHOUT_ANSWER}.get(name[0], set()) if name != "sft in chunks" else set()
        assert not trained & held, name
        assert held == whole - left_out, name
        assert trained == everything - whole - left_out, name


def test_conversations_are_held_out_by_their_longest_question(tmp_path: Path) -> None:
    trained, held = METHODS["dpo"](tmp_path, 0.2)
    assert conversations(tmp_path, 0.2) == (trained, held)


def test_a_mixture_and_another_order_hold_out_the_same(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "solutions.jsonl", solutions())
    shuffled = write_lines(tmp_path / "other.jsonl", [*reversed(solutions())][:120])
    extra = write_lines(
        tmp_path / "extra.jsonl", [{"problem": question(n, 0), "solution": "s"} for n in range(100, 120)]
    )
    plain = of_rows(load_rows(config(path, tmp_path, 0.2), DEMO_MODEL))
    mixed = config("", tmp_path, 0.2, sources=({"dataset": extra}, {"dataset": shuffled, "count": 100}))
    trained, held = of_rows(load_rows(mixed, DEMO_MODEL))
    assert not trained & held
    seen = (trained | held) & set(range(NUM))
    assert held & set(range(NUM)) == plain[1] & seen and len(seen) > 30


def test_the_rule_by_hand() -> None:
    def mix(number: int) -> int:  # SplitMix64 with Python's integers
        mask = 2**64 - 1
        number = (number + 0x9E3779B97F4A7C15) & mask
        number = ((number ^ (number >> 30)) * 0xBF58476D1CE4E5B9) & mask
        number = ((number ^ (number >> 27)) * 0x94D049BB133111EB) & mask
        return number ^ (number >> 31)

    questions = normalise([question(number, 0) for number in range(NUM)]).texts
    keys = [mix(int(q) ^ mix(7)) for q in questions]
    assert held_out(questions, 0.3, 7).tolist() == [key < int(0.3 * 2**64) for key in keys]
    assert held_out(questions, 5, 7).tolist() == [key in sorted(keys)[:5] for key in keys]
    # of a number, those of problems without a row count
    half = questions[::2]
    assert held_out(half, 5, 7, questions).tolist() == [key in sorted(keys)[:5] for key in keys[::2]]
    lone = np.array([keys.index(max(keys))])
    assert held_out(np.append(questions[lone], questions[:1]), 1, 7, questions).sum() == 1, "at least one"


def test_a_run_that_held_out_by_row_is_refused_with_the_reason() -> None:
    run = RunConfig(training=TrainingConfig(validation_split=0.1), lora=LoraConfig())
    now = fixed_settings(run, "m", "d", "h")
    before = {name: value for name, value in now.items() if name != "hold-out"}
    with pytest.raises(InputError, match=r"--resume: .*hold-out was 'by row, .*' and is 'by the hash of the question'"):
        check_settings(Checkpoint(Path("step-1"), Position(), before), now)
    check_settings(Checkpoint(Path("step-1"), Position(), now), now)
    plain = fixed_settings(RunConfig(), "m", "d")
    del (old := dict(plain))["hold-out"]
    check_settings(Checkpoint(Path("step-1"), Position(), old), plain)


def test_problems_of_another_dataset_that_are_trained_on_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_lines(tmp_path / "solutions.jsonl", solutions())
    other = write_lines(
        tmp_path / "held.jsonl", [{"problem": question(n, 1), "solution": f"{n}", "answer": "1"} for n in (1, 2, 90)]
    )
    for read in (load_rows, load_prompts):
        made = config(path, tmp_path, 0.2)
        changes = {"validation_split": None, "validation_dataset": other}
        made = made.model_copy(update={"training": made.training.model_copy(update=changes)})
        read(made, DEMO_MODEL)
        assert "2 of its 3 problems are in the training data too" in capsys.readouterr().err
