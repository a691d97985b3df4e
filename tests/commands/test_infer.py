"""`infer` as a user runs it, and that a served chat is prompted as in training."""

import json
import shutil
from pathlib import Path

import pytest

from tests.helpers import run, succeed

QUESTION = ("--prompt", "What is 12 + 7?")


def answer(folder: Path, *arguments: str, stdin: str = "") -> dict:
    return json.loads(succeed(folder, "infer", "--json", "--max-new-tokens", "24", *arguments, stdin=stdin).stdout)


def test_it_answers_and_differs_from_the_base(debug_run: Path) -> None:
    tuned = answer(debug_run, *QUESTION, "--temperature", "0")
    base = answer(debug_run, *QUESTION, "--temperature", "0", "--no-adapter")
    assert tuned["text"] and tuned["text"] != base["text"]
    assert (tuned["adapter"], base["adapter"]) == ("adapters", None)


def test_greedy_repeats_itself_and_seeds_decide_samples(debug_run: Path) -> None:
    greedy = [answer(debug_run, *QUESTION, "--temperature", "0", "--seed", seed)["tokens"] for seed in ("1", "2")]
    assert greedy[0] == greedy[1]
    sampled = [answer(debug_run, *QUESTION, "--temperature", "2", "--seed", s)["tokens"] for s in ("1", "1", "2")]
    assert sampled[0] == sampled[1] != sampled[2]


def test_text_goes_to_stdout_alone_and_the_prompt_may_come_from_stdin(debug_run: Path) -> None:
    options = ("--temperature", "0", "--max-new-tokens", "24")
    streamed = succeed(debug_run, "infer", *options, stdin="What is 12 + 7?\n")
    assert streamed.stdout == answer(debug_run, *QUESTION, "--temperature", "0")["text"] + "\n"
    assert "tok/s" in streamed.stderr


def test_the_template_is_the_trainings_and_raw_leaves_it_out(debug_run: Path) -> None:
    from mlxmath.data.templates import get_template, joined

    templated = answer(debug_run, *QUESTION, "--temperature", "0")
    prompt = joined(get_template("tutor").prompt("What is 12 + 7?"))
    raw = answer(debug_run, "--prompt", prompt, "--raw", "--temperature", "0")
    assert (raw["tokens"], raw["prompt_tokens"]) == (templated["tokens"], templated["prompt_tokens"])
    assert (templated["template"], raw["template"]) == ("tutor", None)
    bare = answer(debug_run, *QUESTION, "--raw", "--temperature", "0")
    assert bare["prompt_tokens"] < raw["prompt_tokens"]


def test_the_chat_template_beside_the_adapter_prompts_as_training_did(debug_run: Path) -> None:
    from mlxmath.data.codec import load_tokenizer
    from mlxmath.data.render import encode_prompt
    from mlxmath.data.templates import get_template

    tokenizer = load_tokenizer(debug_run / "mlx_model")
    chat = [{"role": "user", "content": "What is 12 + 7?"}]
    expected = encode_prompt(tokenizer, get_template("tutor").prompt("What is 12 + 7?"))
    written = (debug_run / "adapters" / "chat_template.jinja").read_text()
    for template in (None, written):  # the demo model's own, and ours
        encoded = tokenizer.apply_chat_template(chat, chat_template=template, add_generation_prompt=True)
        assert list(encoded["input_ids"] if hasattr(encoded, "keys") else encoded) == expected


def test_an_answer_is_that_of_the_measurement_unless_something_else_is_asked_for(
    debug_run: Path,
    tmp_path: Path,
) -> None:
    found = [json.loads(succeed(debug_run, "infer", "--json", *QUESTION, *more).stdout) for more in (
        (), ("--seed", "7"), ("--temperature", "0", "--max-new-tokens", "1024"),
    )]  # fmt: skip
    assert len({tuple(one["tokens"]) for one in found}) == 1 and found[0]["finish_reason"] == "stop"
    from mlxmath.evaluation.benchmarks import load_benchmark

    (tmp_path / "mine.jsonl").write_text('{"problem": "What is 12 + 7?", "answer": "19"}\n')
    assert load_benchmark(str(tmp_path / "mine.jsonl"), None).max_tokens == 1024


def test_a_base_is_asked_in_its_chat_template_and_one_without_in_the_settings(
    debug_run: Path,
    tmp_path: Path,
) -> None:
    shutil.copytree(debug_run / "mlx_model", tmp_path / "mlx_model")
    base = ("--no-adapter", *QUESTION)
    assert answer(tmp_path, *base)["template"] == "chat"
    path = tmp_path / "mlx_model" / "tokenizer_config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "chat_template"}))
    assert answer(tmp_path, *base)["template"] == "tutor"
    assert answer(tmp_path, *base, "--template", "plain")["template"] == "plain"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--adapter-path", "nowhere"), 1, "nowhere holds no adapter"),
        (("--mlx-path", "nowhere"), 1, "nowhere is not a model folder"),
        (("--prompt", " "), 2, "--prompt is empty"),
        (("--temperature", "-1"), 2, "--temperature"),
        (("--top-p", "1.5"), 2, "--top-p"),
        (("--max-new-tokens", "0"), 2, "--max-new-tokens"),
        (("--template", "tutro"), 2, "did you mean 'tutor'"),
        (("--raw", "--template", "tutor"), 2, "--raw, --template and --template-file exclude each other"),
        (("--backend", "metal"), 2, "--backend metal"),
    ],
)
def test_bad_input(debug_run: Path, arguments: tuple[str, ...], code: int, message: str) -> None:
    if arguments == ("--backend", "metal"):
        from mlxmath.runtime.device import MetalBackend

        if MetalBackend().unavailable() is None:
            pytest.skip("Metal is here")
    result = run(debug_run, "infer", *([] if "--prompt" in arguments else QUESTION), *arguments)
    assert result.returncode == code, result.stderr
    assert message in result.stderr and "Traceback" not in result.stderr
    assert result.stderr.strip().splitlines()[-1].startswith("error: ")


def test_an_adapter_of_another_rank_or_base_is_refused(debug_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(debug_run, folder)
    path = folder / "adapters" / "adapter_config.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"lora_parameters": record["lora_parameters"] | {"rank": 4}}))
    wrong_rank = run(folder, "infer", *QUESTION)
    assert wrong_rank.returncode == 1 and "has shape" in wrong_rank.stderr and "Traceback" not in wrong_rank.stderr
    path.write_text(json.dumps(record | {"base_fingerprint": "0" * 16}))
    wrong_base = run(folder, "infer", *QUESTION)
    assert wrong_base.returncode == 1 and "was trained on another base model" in wrong_base.stderr
