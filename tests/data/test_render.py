"""The loss mask is exact, and the prompt's ids are those of inference, for every kind of tokenizer."""

import json
import random
from pathlib import Path
from typing import Any

import mlx_lm
import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

from mlxmath.config.schema import ModelConfig
from mlxmath.data.codec import Pair, codec_of, load_tokenizer
from mlxmath.data.render import adds_bos, encode_prompt, render
from mlxmath.data.templates import TEMPLATES, Segment, Text, get_template, joined
from mlxmath.errors import InputError, MlxmathError
from mlxmath.generation.model import load_generation_tokenizer
from mlxmath.weights.convert import ensure_model
from mlxmath.weights.tokenizer import name_plain_class, opened
from tests.data.material import BUILDERS, built, byte_level, modern_split, rows_of, sentencepiece_bpe
from tests.models import architectures

DEMO_MODEL = Path(__file__).parents[2] / "mlxmath" / "demo" / "model"
PROMPTS = [
    "You are a tutor.\n\n### Problem:\nx\n\n### Solution:\n",
    "Q: </s> or <s>?\n",
    "x",
    "ends in a space ",
    "\n\n",
    *(joined(get_template(name).prompt("Natalia sold 5 clips.")) for name in TEMPLATES if name != "chat"),
]
COMPLETIONS = [
    "Natalia sold 5 clips.", "\n\nfoo", " lead", "  two", "\n", "5+3", "é中😀", "</s> end <s>", "<|im_end|>x", "#### 5",
    "$\\frac{1}{2}$", "\t a", "a",
]  # fmt: skip


def text(prompt: str, completion: str) -> Text:
    return Segment(prompt, False), Segment(completion, True)


def random_text(rng: random.Random) -> str:
    parts = ["\n", "\n\n", " ", "  ", "</s>", "<s>", "ab", "Sold ", "12", "$", "=", "é", "中", ":\n", "{solution}"]
    return "".join(rng.choice(parts) for _ in range(rng.randint(1, 8)))


@pytest.mark.parametrize("name", BUILDERS)
def test_row_is_prompt_as_at_inference_then_completion_then_eos(name: str) -> None:
    tokenizer = built(name)
    rng = random.Random(3)
    pairs = [(p, c) for p in PROMPTS for c in COMPLETIONS]
    pairs += [(random_text(rng), random_text(rng)) for _ in range(300)]
    rendered, num_failed = render(tokenizer, [text(*pair) for pair in pairs])
    assert num_failed == 0
    rows = rows_of(rendered)
    assert len(rows) == len(pairs)
    codec = codec_of(tokenizer)
    control = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    for (prompt, completion), (tokens, mask) in zip(pairs, rows, strict=True):
        start = encode_prompt(tokenizer, prompt)
        assert tokens[: len(start)] == start
        assert mask == [0] * len(start) + [1] * (len(tokens) - len(start)) or not start
        assert tokens[-1] == tokenizer.eos_token_id and mask[-1] == 1
        text_ids = tokens[len(codec.prefix) : -1]
        assert not control & set(text_ids), (prompt, completion)
        assert codec.decode(text_ids).lstrip(" ") == codec.decode(codec.encode(prompt + completion)).lstrip(" ")


@pytest.mark.parametrize("name", BUILDERS)
def test_completion_ids_are_the_rest_of_the_whole_text_where_that_begins_with_the_prompt(name: str) -> None:
    tokenizer = built(name)
    codec = codec_of(tokenizer)
    template = get_template("tutor")
    pairs = [
        Pair(joined(template.prompt(f"Tom has {n} clips.")), f"He has {n}+3 = {n + 3}.\n#### {n + 3}")
        for n in range(30)
    ]
    for (prompt, completion, _), ids in zip(pairs, codec.encode_pairs(pairs), strict=True):
        assert ids is not None
        assert codec.encode(prompt) == ids[0]
        assert codec.encode(prompt + completion) == ids[0] + ids[1]


def test_merge_over_the_boundary_leaves_the_prompt_alone() -> None:
    tokenizer = byte_level(regex=False)
    codec = codec_of(tokenizer)
    prompt, completion = "### Solution:\n", "\nShe sold"
    assert codec.encode(prompt + completion)[: len(codec.encode(prompt))] != codec.encode(prompt), "no merge to test"
    (tokens, mask), *_ = rows_of(render(tokenizer, [text(prompt, completion)])[0])
    start = codec.encode(prompt)
    assert tokens[: len(start)] == start
    assert codec.decode(tokens[len(start) : -1]) == completion
    assert mask == [0] * len(start) + [1] * (len(tokens) - len(start))


@pytest.mark.parametrize("scheme", ["always", "normalizer"])
def test_no_dummy_space_before_the_completion(scheme: str) -> None:
    tokenizer = sentencepiece_bpe(scheme)
    codec = codec_of(tokenizer)
    alone = codec.encode("sold")
    (ids,) = codec.encode_pairs([Pair("She\n", "sold")])
    assert ids is not None
    assert ids[1] != alone, "the tokenizer adds no dummy space; nothing is tested"
    assert codec.decode(ids[0] + ids[1]) == "She\nsold"


def test_hand_written_mask() -> None:
    tokenizer = built("python")  # one id a character: its code + 4; <s> is 1, </s> is 2
    (tokens, mask), *_ = rows_of(render(tokenizer, [text("Q\n", "42")])[0])
    assert tokens == [1, ord("Q") + 4, ord("\n") + 4, ord("4") + 4, ord("2") + 4, 2]
    assert mask == [0, 0, 0, 1, 1, 1]
    (_, mask), *_ = rows_of(render(tokenizer, [text("Q\n", "42")], train_on_prompt=True)[0])
    assert mask == [0, 1, 1, 1, 1, 1], "nothing precedes the first token, so it is no target"


def test_control_tokens_that_are_not_special_stay_whole() -> None:
    tokenizer = modern_split()
    think = tokenizer.convert_tokens_to_ids("<think>")
    (tokens, _), *_ = rows_of(render(tokenizer, [text("x\n", "<think>a</s>")])[0])
    assert tokens.count(think) == 1
    assert tokens.count(tokenizer.eos_token_id) == 1


def test_the_tokenizer_itself_is_left_as_it_was() -> None:
    tokenizer = modern_split()
    before = tokenizer("a</s>")["input_ids"], len(tokenizer), tokenizer.backend_tokenizer.to_str()
    render(tokenizer, [text("a</s>\n", "b")])
    assert before == (tokenizer("a</s>")["input_ids"], len(tokenizer), tokenizer.backend_tokenizer.to_str())


def test_truncation_and_padding_of_the_tokenizer_do_not_apply() -> None:
    tokenizer = modern_split()
    tokenizer.backend_tokenizer.enable_truncation(4)
    tokenizer.backend_tokenizer.enable_padding(length=9)
    (tokens, _), *_ = rows_of(render(tokenizer, [text("a" * 50 + "\n", "b" * 50)])[0])
    assert codec_of(tokenizer).decode(tokens[1:-1]) == "a" * 50 + "\n" + "b" * 50


def test_beginning_of_text_is_found() -> None:
    assert adds_bos(built("llama 3 split"))
    assert encode_prompt(built("llama 3 split"), "x")[0] == built("llama 3 split").bos_token_id
    assert not adds_bos(built("byte level"))
    assert codec_of(built("sentencepiece normalizer")).prefix == [1], "an end-of-text token that it adds is left out"


def test_a_wrapper_around_the_tokenizer_is_seen_through() -> None:
    class Wrapper:
        def __init__(self, tokenizer: Any) -> None:
            self._tokenizer = tokenizer

        def __getattr__(self, name: str) -> Any:
            return getattr(self._tokenizer, name)

    tokenizer = built("llama 3 split")
    assert codec_of(Wrapper(tokenizer)) is codec_of(tokenizer)
    assert encode_prompt(Wrapper(tokenizer), "x </s>") == encode_prompt(tokenizer, "x </s>")


def test_no_pairs_are_no_rows() -> None:
    rendered, num_failed = render(built("python"), [])
    assert rendered.offsets.tolist() == [0] and len(rendered.tokens) == 0 and num_failed == 0
    assert rendered.tokens.dtype == np.uint32


def test_chat_template_gives_the_ids_of_training() -> None:
    tokenizer = modern_split()
    template = get_template("tutor")
    tokenizer.chat_template = template.chat_template(bos=adds_bos(tokenizer))
    question, solution = "Tom has {3} clips.", "3\n#### 3"
    user = {"role": "user", "content": question}
    ids = tokenizer.apply_chat_template([user], add_generation_prompt=True, return_dict=False)
    assert ids == encode_prompt(tokenizer, template.prompt(question))
    turns = [user, {"role": "assistant", "content": solution}]
    (tokens, _), *_ = rows_of(render(tokenizer, [text(joined(template.prompt(question)), solution)])[0])
    assert tokenizer.apply_chat_template(turns, return_dict=False) == tokens


def test_load_tokenizer() -> None:
    assert load_tokenizer(DEMO_MODEL).eos_token_id is not None


def test_folder_without_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no tokenizer \(expected tokenizer.json"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [('{"x', "is not readable JSON"), ('{"x": 1}', "cannot be loaded"), ("[]", "expected a table")],
)
def test_damaged_tokenizer(tmp_path: Path, content: str, said: str) -> None:
    for name in ("config.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((DEMO_MODEL / name).read_bytes())
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(MlxmathError, match=said):
        load_tokenizer(tmp_path)


def test_tokenizer_without_end_of_text(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((DEMO_MODEL / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(MlxmathError, match="names no end-of-text token"):
        load_tokenizer(tmp_path)


def digits_apart() -> Tokenizer:
    """A byte-level BPE that cuts numbers into digits, as SmolLM2's and DeepSeek's."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|endoftext|>", "<s>", "<|im_end|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    backend.train_from_iterator(["He has 12 pens. He has 2024 pens."] * 20, trainer)
    return backend


@pytest.mark.parametrize("name", ["GPT2Tokenizer", "Qwen2Tokenizer", "PreTrainedTokenizerFast"])
def test_text_is_cut_as_tokenizer_json_says_whatever_class_is_named(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    backend = digits_apart()
    backend.save(str(tmp_path / "tokenizer.json"))
    settings = {"tokenizer_class": name, "eos_token": "<|endoftext|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    text = "He has 12 pens. He has 2024."
    tokenizer = load_tokenizer(tmp_path)
    assert encode_prompt(tokenizer, text) == tokenizer.encode(text) == backend.encode(text).ids
    (tmp_path / "config.json").write_text("{}")
    assert encode_prompt(load_generation_tokenizer(tmp_path), text) == backend.encode(text).ids
    assert (name in capsys.readouterr().err) == (name != "PreTrainedTokenizerFast")


QUESTIONS = (
    "He has 12 pens. He has 2024.", "Weng earns $12 an hour.\n\nShe worked 50 minutes: 0.2 x 50 = 10.", "  it's\t5% ",
)  # fmt: skip


@pytest.mark.parametrize(
    "settings",
    [
        {"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>", "padding_side": "left"},
        {"tokenizer_class": "GPT2Tokenizer", "bos_token": "<s>", "eos_token": "<|endoftext|>", "add_bos_token": True},
        {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "model_max_length": 2048},
        {"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>", "additional_special_tokens": ["<|im_end|>"]},
    ],
)  # fmt: skip
def test_a_converted_folder_gives_the_ids_of_tokenizer_json_to_everyone(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    backend = digits_apart()
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": "{{ 'hi' }}"}))
    before = AutoTokenizer.from_pretrained(str(tmp_path))
    assert any(before.encode(q, add_special_tokens=False) != backend.encode(q).ids for q in QUESTIONS)
    name_plain_class(tmp_path)
    after = AutoTokenizer.from_pretrained(str(tmp_path))
    for question in QUESTIONS:
        assert after.encode(question, add_special_tokens=False) == backend.encode(question).ids
        assert after.decode(after.encode(question, add_special_tokens=False)) == question
    for name in ("special_tokens_map", "all_special_ids", "chat_template", "padding_side", "model_max_length"):
        assert getattr(after, name) == getattr(before, name), name
    assert after.encode("a") == before.encode("a"), "a beginning of text as before"
    assert after.model_input_names == before.model_input_names
    assert opened(tmp_path, lambda: after)[1] is None
    written = (tmp_path / "tokenizer_config.json").read_bytes()
    name_plain_class(tmp_path)
    assert (tmp_path / "tokenizer_config.json").read_bytes() == written


def test_a_class_that_changes_nothing_stays(tmp_path: Path) -> None:
    backend = digits_apart()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.save(str(tmp_path / "tokenizer.json"))
    text = json.dumps({"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>"})
    (tmp_path / "tokenizer_config.json").write_text(text)
    name_plain_class(tmp_path)
    assert (tmp_path / "tokenizer_config.json").read_text() == text


def test_convert_writes_the_class_and_the_folder_is_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = architectures.write("llama", tmp_path / "source")
    backend = digits_apart()
    backend.save(str(source / "tokenizer.json"))
    (source / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>"})
    )
    config = ModelConfig(model=str(source), mlx_path=str(tmp_path / "out"))
    ensure_model(config)
    assert "names PreTrainedTokenizerFast instead of GPT2Tokenizer" in capsys.readouterr().err
    ensure_model(config)
    assert "is valid" in capsys.readouterr().err
    _, served = mlx_lm.load(str(tmp_path / "out"))
    for question in QUESTIONS:
        assert served.encode(question, add_special_tokens=False) == backend.encode(question).ids
