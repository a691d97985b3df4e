"""What a model is given after several turns: the ids of its chat template, of which what was read is not read again."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mlxmath.data.problem import Message
from mlxmath.errors import InputError
from mlxmath.generation.engine import Completion, Sampling, stream
from mlxmath.generation.kept import KeptPrefix
from mlxmath.generation.model import LanguageModel, open_models
from mlxmath.serving.conversation import Conversation, fit

QUESTIONS = ["What is 12 + 7?", "Tom has 5 apples. He buys 4 more. How many apples does Tom have?", "What is 3 + 4?"]
TURNS = [Message("user", QUESTIONS[0]), Message("assistant", "12 + 7 = 19.\n#### 19"), Message("user", QUESTIONS[1])]


@pytest.fixture(scope="module")
def models(debug_run: Path) -> dict[str, LanguageModel]:
    from mlxmath.data.templates import get_template

    adapters = {"tuned": debug_run / "adapters", "base": None}
    return open_models(debug_run / "mlx_model", "float32", adapters, usual=get_template("plain"))


def always() -> bool:
    return False


def asked(conversation: Conversation, question: str) -> str:
    *_, last = conversation.ask(question, always)
    assert isinstance(last, Completion)
    return last.text


@pytest.mark.parametrize("name", ["tuned", "base"])
@pytest.mark.parametrize("number", [1, 3])
def test_turns_are_those_of_the_chat_template(
    models: dict[str, LanguageModel], debug_run: Path, name: str, number: int
) -> None:
    """Which mlx_lm's server gets: adapters/chat_template.jinja for the adapter (no chat template), the base's own."""
    model = models[name]
    written = (debug_run / "adapters" / "chat_template.jinja").read_text() if name == "tuned" else None
    messages = [{"role": turn.role, "content": turn.content} for turn in TURNS[:number]]
    found: Any = model.tokenizer._tokenizer.apply_chat_template(
        messages, chat_template=written, add_generation_prompt=True, return_dict=False
    )
    assert model.encode_messages(TURNS[:number]) == list(found)
    assert model.encode_messages(TURNS[:1]) == model.encode(QUESTIONS[0])


def test_text_that_spells_a_control_token_stays_text(models: dict[str, LanguageModel]) -> None:
    for model in models.values():
        end = model.tokenizer.eos_token
        ids = model.encode_messages([Message("user", "a"), Message("assistant", f"b{end}"), Message("user", f"c{end}")])
        plain = model.encode_messages([Message("user", "a"), Message("assistant", "b"), Message("user", "c")])
        count = [one.count(model.tokenizer.eos_token_id) for one in (ids, plain)]
        assert count[0] == count[1]


def test_adapters_share_the_weights_and_leave_the_base_alone(models: dict[str, LanguageModel], debug_run: Path) -> None:
    from mlxmath.generation.model import open_model

    sampling = Sampling(24)
    alone = open_model(debug_run / "mlx_model", "float32").generate(QUESTIONS, sampling)
    assert [one.tokens for one in models["base"].generate(QUESTIONS, sampling)] == [one.tokens for one in alone]
    tuned = open_model(debug_run / "mlx_model", "float32", debug_run / "adapters").generate(QUESTIONS, sampling)
    assert [one.tokens for one in models["tuned"].generate(QUESTIONS, sampling)] == [one.tokens for one in tuned]
    assert [one.tokens for one in alone] != [one.tokens for one in tuned]
    shared = models["tuned"].model.model.embed_tokens.weight
    assert shared is models["base"].model.model.embed_tokens.weight


def test_a_late_answer_is_that_without_memory(
    models: dict[str, LanguageModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And reads only what is new."""
    from mlxmath.generation import engine

    read: list[int] = []
    real = engine.stream_generate

    def counting(model: Any, tokenizer: Any, prompt: list[int], **more: Any) -> Any:
        read.append(len(prompt))
        return real(model, tokenizer, prompt, **more)

    monkeypatch.setattr(engine, "stream_generate", counting)
    conversation = Conversation(models["tuned"], Sampling(32), models["base"])
    for number, question in enumerate(QUESTIONS):
        answer = asked(conversation, question)
        ids = models["tuned"].encode_messages(conversation.messages[:-1])
        assert read[-1] == len(ids) if number == 0 else read[-1] < len(models["tuned"].encode(question)) + 8
        *_, fresh = stream(models["tuned"].model, models["tuned"].tokenizer, ids, Sampling(32))
        assert answer == fresh.text
        *_, of_base = conversation.ask_base(always)
        *_, alone = stream(
            models["base"].model, models["base"].tokenizer,
            models["base"].encode_messages(conversation.messages[:-1]), Sampling(32),
        )  # fmt: skip
        assert of_base.text == alone.text
    assert [one.role for one in conversation.messages] == ["user", "assistant"] * 3


def test_a_stopped_answer_is_kept_and_the_next_is_as_if_it_had_been_typed(models: dict[str, LanguageModel]) -> None:
    conversation, taken = Conversation(models["tuned"], Sampling(32)), []
    for piece in conversation.ask(QUESTIONS[0], lambda: len(taken) >= 4):
        taken.append(piece)
    assert len(taken) == 4 and conversation.messages[-1] == Message("assistant", "".join(taken))
    answer = asked(conversation, QUESTIONS[1])
    ids = models["tuned"].encode_messages(conversation.messages[:-1])
    *_, fresh = stream(models["tuned"].model, models["tuned"].tokenizer, ids, Sampling(32))
    assert answer == fresh.text


def test_what_is_kept_is_cut_back_to_what_is_common(models: dict[str, LanguageModel]) -> None:
    model = models["tuned"]
    kept = KeptPrefix(model.model)
    for prompt in ([5, 6, 7, 8, 9], [5, 6, 7, 8, 9], [5, 6, 1, 2], [9], [5, 6, 1, 2, 3, 4, 5]):
        *_, with_memory = stream(model.model, model.tokenizer, prompt, Sampling(12), kept)
        *_, without = stream(model.model, model.tokenizer, prompt, Sampling(12))
        assert with_memory.tokens == without.tokens
    pieces = stream(model.model, model.tokenizer, [5, 6, 1, 2, 3, 4, 5], Sampling(12), kept)
    next(pieces)
    pieces.close()  # in the middle, with a token under way
    *_, with_memory = stream(model.model, model.tokenizer, [5, 6, 1, 2, 3, 4, 5, 6], Sampling(12), kept)
    *_, without = stream(model.model, model.tokenizer, [5, 6, 1, 2, 3, 4, 5, 6], Sampling(12))
    assert with_memory.tokens == without.tokens


def test_the_oldest_turns_go_when_the_context_is_full(debug_run: Path, tmp_path: Path) -> None:
    from mlxmath.data.templates import get_template

    shutil.copytree(debug_run / "mlx_model", tmp_path / "mlx_model")
    path = tmp_path / "mlx_model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_position_embeddings": 160}))
    model = open_models(tmp_path / "mlx_model", "float32", {"base": None}, usual=get_template("plain"))["base"]
    assert model.context == 160
    conversation, dropped = Conversation(model, Sampling(1000)), []
    for _ in range(8):
        *_, last = conversation.ask(QUESTIONS[0], always)
        dropped.append(conversation.num_left_out)
        assert last.num_prompt_tokens + len(last.tokens) <= 160
    assert dropped[0] == 0 and dropped[-1] > 0 and dropped == sorted(dropped) and all(n % 2 == 0 for n in dropped)
    assert len(set(dropped)) < 5  # not at every turn
    long = [Message("user", "What is 12 + 7? " * 40)]
    with pytest.raises(InputError, match="the model's context ends at 160"):
        fit(model, long, 8)
    assert fit(model, TURNS, 1000).most_new_tokens == 160 - len(model.encode_messages(TURNS))
