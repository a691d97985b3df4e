"""Where answers end: the end tokens of all of a model's files, and a template's stop strings."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlx_lm.utils import load_tokenizer as mlx_lm_load_tokenizer

from mlxmath.config.schema import DistillationConfig, RunConfig, RuntimeConfig
from mlxmath.data.templates import get_template, template_of
from mlxmath.distillation.teacher import LocalTeacher
from mlxmath.errors import InputError, MlxmathError
from mlxmath.generation.engine import (
    Completion,
    Sampling,
    completes_stop,
    cut,
    generate_batch,
    stop_strings,
    stream,
)
from mlxmath.generation.model import load_generation_tokenizer
from mlxmath.training.grpo.prompts import load_prompts
from tests.conftest import make_tiny_llama
from tests.helpers import run, succeed

MODEL = Path(__file__).parents[2] / "mlxmath" / "demo" / "model"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tokenizer and a configuration of nothing else than end tokens."""
    for path in MODEL.glob("*token*.json"):
        shutil.copy(path, tmp_path / path.name)
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def write(folder: Path, name: str, ends: Any) -> None:
    (folder / name).write_text(json.dumps({"eos_token_id": ends}))


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [
        (None, None, {1}),
        (65, None, {1, 65}),
        ([1, 65], 66, {1, 65, 66}),
        (None, [66, 67], {1, 66, 67}),
        ([], 5, {1, 5}),
    ],
)
def test_end_tokens_are_those_of_all_files(folder: Path, config: Any, generation: Any, expected: set[int]) -> None:
    write(folder, "config.json", config)
    write(folder, "generation_config.json", generation)
    ends = load_generation_tokenizer(folder).eos_token_ids
    assert ends == expected
    theirs = generation or config  # what mlx_lm.utils.load gives its tokenizer
    assert ends >= mlx_lm_load_tokenizer(folder, eos_token_ids=theirs).eos_token_ids


WRONG = ["65", [1, "65"], -1, [1, None], 1.5, True, {"a": 1}]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        *(("generation_config.json", json.dumps({"eos_token_id": wrong}), "eos_token_id: expected the number of a")
          for wrong in WRONG),
        ("generation_config.json", "{", "generation_config"),
        ("generation_config.json", "[1]", "generation_config"),
        ("tokenizer.json", "{", "tokenizer.json is not readable JSON"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_one_clear_error(folder: Path, name: str, text: str, said: str) -> None:
    (folder / name).write_text(text)
    with pytest.raises(MlxmathError, match=said):
        load_generation_tokenizer(folder)


@pytest.fixture
def model() -> Any:
    """Random weights over the demo's vocabulary, sharpened so that greedy choices are clear."""
    model = make_tiny_llama(vocab_size=1024)
    model.lm_head.weight = model.lm_head.weight * 8
    return model


def test_generation_stops_at_the_second_end_token(folder: Path, model: Any) -> None:
    prompts = [[5, 6, 7], [8], [9, 10]]
    free = generate_batch(model, load_generation_tokenizer(folder), prompts, Sampling(12))
    end = free[0].tokens[4]
    write(folder, "generation_config.json", [1, end])
    tokenizer = load_generation_tokenizer(folder)
    for prompt, before, after in zip(
        prompts, free, generate_batch(model, tokenizer, prompts, Sampling(12)), strict=True
    ):
        place = before.tokens.index(end) if end in before.tokens else None
        assert after.tokens == before.tokens[:place]
        assert (after.finish_reason == "stop") == (place is not None or before.finish_reason == "stop")
        *_, streamed = stream(model, tokenizer, prompt, Sampling(12))
        assert isinstance(streamed, Completion) and streamed.tokens == after.tokens
    assert end in free[0].tokens


def test_cut() -> None:
    assert cut("a\n\nb Q: c", ("Q:", "\n\n")) == ("a", True)
    assert cut("a\nb", ("Q:", "\n\n")) == ("a\nb", False)
    assert cut("a", ()) == ("a", False)


def test_a_stop_string_is_seen_where_each_token_is_a_byte() -> None:
    tokenizer: Any = SimpleNamespace(decode=lambda tokens: bytes(tokens).decode("utf-8", "replace"))
    stop = "下一个问题和它的解答如下所示："
    tokens = [*f"42\n{stop}".encode()]
    assert completes_stop(tokenizer, tokens, (stop,)) and not completes_stop(tokenizer, tokens[:-1], (stop,))


def test_an_answer_is_cut_at_the_first_stop_string_and_ends_there(folder: Path, model: Any) -> None:
    prompts = [[5, 6, 7], [8], [9, 10]]
    tokenizer = load_generation_tokenizer(folder)
    free = generate_batch(model, tokenizer, prompts, Sampling(24))
    texts = [completion.text for completion in free]
    stops = (texts[0][9:13], texts[1][5:7])  # across tokens, too
    (folder / "mine.toml").write_text(f'prompt = "{{question}}"\nstop = {json.dumps(stops)}')
    template = template_of(str(folder / "mine.toml"), "--template")
    tokenizer = load_generation_tokenizer(folder, template)
    assert stop_strings(tokenizer) == stops and template.definition["stop"] == list(stops)
    found = generate_batch(model, tokenizer, prompts, Sampling(24), concurrency=2)
    for prompt, before, after in zip(prompts, free, found, strict=True):
        text, has_stop = cut(before.text, stops)
        assert after.text == text
        assert after.finish_reason == ("stop" if has_stop else before.finish_reason)
        if has_stop:  # no token is drawn after the one that completes the stop string
            assert not any(stop in tokenizer.decode(after.tokens[:-1]) for stop in stops)
            assert len(after.tokens) < 24
        *pieces, whole = stream(model, tokenizer, prompt, Sampling(24))
        assert isinstance(whole, Completion)
        assert whole.finish_reason == after.finish_reason
        # mlx_lm's streaming decoder may show a token's text with the next token only
        assert after.tokens in ((whole.tokens, whole.tokens[:-1]) if has_stop else (whole.tokens,))
        assert "".join(map(str, pieces)) == whole.text and whole.text.lstrip() == after.text.lstrip()
    assert cut(texts[0], stops)[1] and cut(texts[1], stops)[1]


def test_a_template_without_stop_strings_is_written_down_as_before(folder: Path) -> None:
    path = folder / "one.toml"
    assert "stop" not in get_template("tutor").definition
    path.write_text('prompt = "{question}"\nstop = "Q:"')
    assert template_of(str(path), "--template").stop_strings == ("Q:",)
    for wrong in ('""', '["a", ""]', "5", "[1]"):
        path.write_text(f'prompt = "{{question}}"\nstop = {wrong}')
        with pytest.raises(InputError, match=r"one\.toml: stop"):
            template_of(str(path), "--template")


def test_a_converted_model_ends_where_its_source_does(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(MODEL, source)
    succeed(tmp_path, "convert", "--model", str(source), "--mlx-path", "first")
    ask = ("infer", "--mlx-path", "first", "--no-adapter", "--prompt", "What is 2 + 2?", "--json", "--temperature", "0")
    free = json.loads(succeed(tmp_path, *ask).stdout)
    end = free["tokens"][2]
    write(source, "generation_config.json", [1, end])
    succeed(tmp_path, "convert", "--model", str(source), "--mlx-path", "second")
    ended = json.loads(succeed(tmp_path, *ask[:2], "second", *ask[3:]).stdout)
    assert ended["tokens"] == free["tokens"][: free["tokens"].index(end)] and ended["finish_reason"] == "stop"
    raw = json.loads(succeed(tmp_path, *ask[:2], "second", *ask[3:], "--raw").stdout)
    assert end not in raw["tokens"]
    (tmp_path / "second" / "generation_config.json").write_text('{"eos_token_id": "x"}')
    refused = run(tmp_path, *ask[:2], "second", *ask[3:])
    assert refused.returncode == 1 and "eos_token_id" in refused.stderr and "Traceback" not in refused.stderr


def test_a_teacher_and_a_grpo_run_end_there_too(folder: Path) -> None:
    config = RunConfig.model_validate({"data": {"dataset": "demo", "num_examples": 3, "decontaminate": ()},
                                       "grpo": {"max_completion_length": 16}})  # fmt: skip
    write(folder, "generation_config.json", [1, 65])
    assert load_prompts(config, folder).tokenizer.eos_token_ids == {1, 65}
    asked = DistillationConfig(teacher=str(folder))
    assert LocalTeacher(asked, RuntimeConfig()).identity["end_tokens"] == [65]
    write(folder, "generation_config.json", 1)
    assert "end_tokens" not in LocalTeacher(asked, RuntimeConfig()).identity
