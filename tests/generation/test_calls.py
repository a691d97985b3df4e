"""Answers with calls: what a tool writes stands where the call ends, and is the same alone, in a batch and streamed."""

from collections.abc import Sequence
from typing import Any

import pytest
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlxmath.errors import InputError
from mlxmath.generation import calls as calling
from mlxmath.generation import lanes
from mlxmath.generation.engine import Completion, Sampling, generate_batch, stream
from mlxmath.generation.kept import KeptPrefix
from mlxmath.tools.calculator import calculate
from mlxmath.tools.forms import Tool, by_tool
from mlxmath.tools.run import check
from tests.conftest import make_tiny_llama
from tests.generation.spelled import PROGRAM, SIGNS, spelled

PROMPTS = [[16], [17, 16], [5, 6, 7], [16, 17, 16, 17], [3, 3], [8], [16], [0, 1, 2, 3, 4, 5, 6], [9], [10], [11]]
DRAWING = Sampling(40, temperature=1.0)
SEEDS = [*range(100, 100 + len(PROMPTS))]


@pytest.fixture(scope="module")
def tokenizer() -> TokenizerWrapper:
    return spelled()


@pytest.fixture(scope="module")
def model() -> Any:
    """Random: all tokens are about equally likely, whole calls among them."""
    return make_tiny_llama(vocab_size=len(SIGNS))


def fake_python(tool: Tool, answers: Sequence[Sequence[str]]) -> list[str | None]:
    """What programs print, without a process."""
    return [f"{6 * 7}\n{len(calls)}" if tool == "python" else calculate(calls[-1]) for calls in answers]


@pytest.mark.parametrize("tool", ["calculator", "python"])
def test_alone_in_a_batch_and_streamed_are_the_same(
    model: Any, tokenizer: TokenizerWrapper, tool: Tool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calling, "run_all", fake_python)
    together = generate_batch(model, tokenizer, PROMPTS, DRAWING, seeds=SEEDS, concurrency=4, tool=tool, logprobs=True)
    assert sum(any(one.by_tool) for one in together) > 3  # calls occur
    plain = generate_batch(model, tokenizer, PROMPTS, DRAWING, seeds=SEEDS, concurrency=4)
    for prompt, seed, found, without in zip(PROMPTS, SEEDS, together, plain, strict=True):
        (alone,) = generate_batch(model, tokenizer, [prompt], DRAWING, seeds=[seed], tool=tool)
        assert (alone.tokens, alone.text, alone.by_tool) == (found.tokens, found.text, found.by_tool)
        assert len(found.by_tool) == len(found.tokens) <= DRAWING.max_new_tokens
        first = found.by_tool.index(True) if any(found.by_tool) else len(found.tokens)
        assert found.tokens[:first] == without.tokens[:first]  # up to there nothing is changed
        spans = by_tool(tool, found.text)
        texts = [found.text[start:end] for start, end in spans]
        assert all(text.endswith(">>" if tool == "calculator" else "```\n") for text in texts)
        for start, end in spans:
            assert found.text[start:end] == ("84>>" if tool == "calculator" else written(found.text[:start]))
        if found.finish_reason == "stop":
            given = "".join(SIGNS[t] for t, is_given in zip(found.tokens, found.by_tool, strict=True) if is_given)
            assert given == "".join(texts)


def written(before: str) -> str:
    """What the tool writes behind a text."""
    return f"\n```output\n42\n{before.count('```python')}\n```\n"


def test_the_answers_beside_one_that_calls_are_what_they_are_without(model: Any, tokenizer: TokenizerWrapper) -> None:
    plain = generate_batch(model, tokenizer, PROMPTS, DRAWING, seeds=SEEDS, concurrency=6)
    found = generate_batch(model, tokenizer, PROMPTS, DRAWING, seeds=SEEDS, concurrency=6, tool="calculator")
    without = [i for i, one in enumerate(found) if not any(one.by_tool)]
    assert without and [found[i].tokens for i in without] == [plain[i].tokens for i in without]


def test_streamed_pieces_make_the_text(model: Any, tokenizer: TokenizerWrapper) -> None:
    num_calls = 0
    for prompt in PROMPTS:
        *pieces, whole = stream(model, tokenizer, prompt, Sampling(40, temperature=1.0, seed=3), tool="calculator")
        assert isinstance(whole, Completion)
        (batch,) = generate_batch(model, tokenizer, [prompt], Sampling(40, temperature=1.0, seed=3), tool="calculator")
        assert "".join(map(str, pieces)) == whole.text == batch.text
        assert (whole.tokens, whole.by_tool) == (batch.tokens, batch.by_tool)
        num_calls += any(whole.by_tool)
    assert num_calls > 3


def test_a_stop_string_in_a_result_ends_nothing(
    model: Any, tokenizer: TokenizerWrapper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calling, "run_all", lambda _, answers: ["1#2"] * len(answers))
    monkeypatch.setattr(tokenizer, "_stop_strings", ("#",), raising=False)
    found = generate_batch(model, tokenizer, PROMPTS, DRAWING, seeds=SEEDS, tool="calculator")
    assert any("1#2>>" in one.text for one in found)
    for one, prompt, seed in zip(found, PROMPTS, SEEDS, strict=True):
        assert "#" not in one.text.replace("1#2", "")  # the model's own ends the answer
        (alone,) = generate_batch(model, tokenizer, [prompt], DRAWING, seeds=[seed], tool="calculator")
        assert alone.text == one.text
    for prompt, seed in zip(PROMPTS, range(6), strict=False):
        drawing = Sampling(40, temperature=1.0, seed=seed)
        (alone,) = generate_batch(model, tokenizer, [prompt], drawing, tool="calculator")
        *pieces, whole = stream(model, tokenizer, prompt, drawing, tool="calculator")
        assert isinstance(whole, Completion) and (whole.text, whole.tokens) == (alone.text, alone.tokens)
        assert "".join(map(str, pieces)) == whole.text


def test_an_answer_has_no_more_calls_than_allowed(
    model: Any, tokenizer: TokenizerWrapper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(calling.MOST_CALLS, "calculator", 2)
    found = generate_batch(model, tokenizer, PROMPTS, Sampling(60, 1.0), seeds=SEEDS, tool="calculator")
    counts = [one.text.count("<<12*7=84>>") for one in found]
    assert max(counts) == 2
    assert any(one.text.count("<<12*7=") > 2 for one in found)


def test_a_real_program_is_run(model: Any, tokenizer: TokenizerWrapper) -> None:
    try:
        check("python")
    except InputError as error:
        pytest.skip(str(error))
    found = generate_batch(model, tokenizer, PROMPTS[:3], DRAWING, seeds=SEEDS[:3], tool="python")
    assert any(f"{PROGRAM}\n```output\n42\n```\n" in one.text for one in found)


def test_lanes_go_on_with_results_as_one_decoder_does(
    model: Any, tokenizer: TokenizerWrapper, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts, seeds = PROMPTS * 2, range(2 * len(PROMPTS))
    found = []
    for cores in (1, 2):
        monkeypatch.setattr(lanes, "num_usable_cores", lambda cores=cores: cores)
        lanes._threads.cache_clear()
        found.append(generate_batch(model, tokenizer, prompts, DRAWING, seeds=seeds, tool="calculator"))
    lanes._threads.cache_clear()
    assert sum(any(one.by_tool) for one in found[0]) > 6
    assert [(one.tokens, one.by_tool) for one in found[0]] == [(one.tokens, one.by_tool) for one in found[1]]


def test_an_answer_goes_on_from_what_an_earlier_one_has_left(model: Any, tokenizer: TokenizerWrapper) -> None:
    kept, sampling = KeptPrefix(model), Sampling(30, temperature=1.0, seed=4)
    *_, first = stream(model, tokenizer, [16, 17, 5], sampling, kept, "calculator")
    assert isinstance(first, Completion)
    longer = [16, 17, 5, *first.tokens, 8, 9]
    *_, found = stream(model, tokenizer, longer, sampling, kept, "calculator")
    *_, anew = stream(model, tokenizer, longer, sampling, tool="calculator")
    assert found == anew
