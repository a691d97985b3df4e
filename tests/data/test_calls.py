"""Rows that hold calls: what a tool wrote is no target, token by token, and has the ids that it has while drawing."""

import itertools
import re
from pathlib import Path

import pytest

from mlxmath.config.schema import DataConfig
from mlxmath.data.codec import codec_of, load_tokenizer
from mlxmath.data.mixture import Mixture
from mlxmath.data.prepare import prepare_rows
from mlxmath.data.problem import Problem
from mlxmath.data.render import continuation, encode_prompt, render
from mlxmath.data.templates import Segment, get_template
from mlxmath.data.tokenize import tokenize_pairs, without_results
from mlxmath.tools.forms import Tool, by_tool
from tests.data.material import BUILDERS, built, rows_of, write_lines

PROMPT = "Problem: Natalia sold <<2*3=6>> clips.\n\nSolution:\n"
ANSWERS: dict[Tool, list[str]] = {
    "calculator": [
        "She sold 48/2 = <<48/2=24>>24 clips.\n#### 24",
        "<<12*7=84>>84 and <<84+1=85>>85, <<x=5>>5",
        "<<1/3=0.333333>>",
        "no call <<1+1= here\n<<1+1=2>>2",
    ],
    "python": [
        "Let us see.\n```python\nprint(12*7)\n```\n```output\n84\n```\nIt is \\boxed{84}.",
        "```python\nx = 1\n```\n```output\n\n```\n```python\nprint(x)\n```\n```output\n1\n2\n```",
        "Code:\n```python\nprint(1)\n```\nand no result",
    ],
}
GSM8K = {"question": "How many clips?", "answer": "She sold 48/2 = <<48/2=24>>24 clips.\n#### 24"}


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("tool", ANSWERS)
def test_masks_token_by_token(name: str, tool: Tool) -> None:
    tokenizer = built(name)
    codec = codec_of(tokenizer)
    signs = set("".join(ANSWERS[tool])) - set(" \n")
    lacking = str.maketrans({c: "<unk>" for c in signs if "<unk>" in codec.decode(codec.encode(c))})

    def known(text: str) -> str:
        """With one token for signs in a row that the vocabulary lacks."""
        return re.sub("(<unk>)+", "<unk>", text.translate(lacking))

    texts = [(Segment(PROMPT, False), Segment(answer, True)) for answer in ANSWERS[tool]]
    rendered, num_failed = render(tokenizer, [without_results(text, tool) for text in texts])
    assert num_failed == 0
    start = len(encode_prompt(tokenizer, PROMPT))
    for answer, (tokens, mask) in zip(ANSWERS[tool], rows_of(rendered), strict=True):
        assert mask[:start] == [0] * start and mask[-1] == 1
        shown = [codec.decode(tokens[:end]) for end in range(start, len(tokens))]
        pieces = [after[len(before) :] for before, after in itertools.pairwise(shown)]
        own, given = (
            "".join(piece for piece, is_own in zip(pieces, mask[start:], strict=False) if is_own == kind)
            for kind in (1, 0)
        )
        spans = by_tool(tool, answer)
        assert known(given) == known("".join(answer[low:high] for low, high in spans))
        ends = [0, *(place for span in spans for place in span), len(answer)]
        assert known(own) == known("".join(answer[low:high] for low, high in zip(ends[::2], ends[1::2], strict=True)))


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("tool", ANSWERS)
def test_a_result_has_the_ids_that_it_gets_while_an_answer_is_drawn(name: str, tool: Tool) -> None:
    tokenizer = built(name)
    for answer in ANSWERS[tool]:
        (low, high), *_ = [*by_tool(tool, answer), (0, 0)]
        text = without_results((Segment(answer, True),), tool)
        (tokens, mask), *_ = rows_of(render(tokenizer, [(Segment(PROMPT, False), *text)])[0])
        start = len(encode_prompt(tokenizer, PROMPT))
        first = next((i for i in range(start, len(mask)) if not mask[i]), len(mask))
        end = next((i for i in range(first, len(mask)) if mask[i]), len(mask))
        assert tokens[first:end] == (continuation(tokenizer, answer[:low], answer[low:high]) if high else [])


def test_without_a_tool_every_token_of_an_answer_is_learned_and_marks_are_removed(
    debug_run: Path, tmp_path: Path
) -> None:
    name = write_lines(tmp_path / "rows.jsonl", [GSM8K])
    common = {"dataset": name, "cache_dir": str(tmp_path / "cache"), "max_seq_len": 256, "decontaminate": ()}
    plain, called = (DataConfig(**common, tools=tool) for tool in (None, "calculator"))
    solutions = []
    for config in (plain, called):
        mixture = Mixture(config)
        mixture.choose()
        solutions += [(problem.solution, problem.answer) for problem in mixture]
    assert solutions == [(GSM8K["answer"].replace("<<48/2=24>>", ""), "24"), (GSM8K["answer"], "24")]
    (tokens, mask), (called_tokens, called_mask) = (
        prepare_rows(config, debug_run / "mlx_model").row(0) for config in (plain, called)
    )
    start = int(mask.argmax())
    assert (called_tokens[:start] == tokens[:start]).all() and mask[start:].all()
    given = called_tokens[start:][called_mask[start:] == 0]
    assert load_tokenizer(debug_run / "mlx_model").decode(given.tolist()) == "24>>"


def test_a_tool_and_training_on_prompts_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="leaves tokens out of the loss"):
        DataConfig(train_on_prompt=True, tools="calculator")
    assert DataConfig(tools="python").tools == "python"


def test_pairs_leave_results_out_too() -> None:
    tokenizer = built(next(iter(BUILDERS)))
    pair = Problem("0", "How many?", solution="<<2*3=6>>6", rejected="<<2*4=8>>8 or 9")
    config = DataConfig(tools="calculator", max_seq_len=200)
    ((rows, counts),) = tokenize_pairs([pair], get_template("plain"), config, tokenizer)
    assert counts["output_rows"] == 2
    decode = codec_of(tokenizer).decode
    for (tokens, mask), own in zip(rows_of(rows), ("<<2*3=6", "<<2*4=8 or 9"), strict=True):
        targets = [token for token, is_target in zip(tokens, mask, strict=True) if is_target]
        assert decode(targets[:-1]).strip() == own
