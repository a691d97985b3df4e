"""Files and options of others may be anything: the answer is one line and exit code 1 or 2, and nothing is written."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from tests.commands.damage import (
    ADAPTER,
    CONFIG,
    CONVERT,
    DEEP,
    DIGITS,
    DISTILL,
    GOOD,
    INFER,
    MANY_DIGITS,
    MEGABYTE,
    OF_GGUF,
    PLAN,
    SETTINGS,
    TOKENIZER,
    TRAIN,
    TUNED,
    WEIGHTS,
    Case,
    added,
    changed,
    flipped,
    gguf,
    header,
    holding,
    nothing,
    of_peft,
    overlapping,
    put,
    repeated,
)
from tests.helpers import run
from tests.weights.handmade import llama_folder

CASES = [
    *(  # options
        Case(f"an option {label}", nothing, (*command, option, value), 2, option)
        for label, value, command, option in (
            ("in Latin-1", "caf\udce9", TRAIN[:2], "--adapter-path"),
            ("in Latin-1, a prompt", "caf\udce9", INFER[:2], "--prompt"),
            ("of 400 digits", DIGITS, INFER, "--max-new-tokens"),
            ("of 5,000 digits", MANY_DIGITS, INFER, "--max-new-tokens"),
            ("without end", "1e400", INFER, "--temperature"),
            ("that is no number", "nan", INFER, "--top-p"),
            ("of 400 digits, a setting", DIGITS, TRAIN, "--lora-rank"),
            ("of a megabyte", MEGABYTE, TRAIN, "--lora-rank"),
            ("of a megabyte, a recipe", MEGABYTE, ("train",), "--recipe"),
            ("of a megabyte, a choice", MEGABYTE, TRAIN, "--dtype"),
            ("of a megabyte, a revision", MEGABYTE, CONVERT, "--revision"),
            ("that is a deep setting", f"lora.rank={DEEP}", TRAIN, "--set"),
            ("that is a setting of 5,000 digits", f"lora.rank={MANY_DIGITS}", TRAIN, "--set"),
            ("that is a setting of 5,000 hexadecimal digits", f"lora.rank=0x{'f' * 5_000}", TRAIN, "--set"),
            ("that is half a character", "data.dataset=\"a\\u0000b\"", TRAIN, "--set"),
            ("with a name of a megabyte", f"{MEGABYTE}=1", TRAIN, "--set"),
            ("of 400 digits, a size", f"{DIGITS}GB", PLAN, "--memory"),
            ("that is deep", DEEP, DISTILL, "--teacher-extra"),
            ("with a number of 5,000 digits", f'{{"a": {MANY_DIGITS}}}', DISTILL, "--teacher-extra"),
        )
    ),
    Case("a name of 300 letters", nothing, (*CONVERT[:1], "--model", "n" * 300), 1, "nnn"),
    *(  # TOML
        Case(f"a file of settings {label}", put("c.toml", content), (*TRAIN, "--config", "c.toml"), 2, named)
        for label, content, named in (
            ("that is deep", f"a = {DEEP}", "c.toml"),
            ("that is not UTF-8", b"[lora]\nrank = '\xff'", "c.toml"),
            ("with a name of 100,000 parts", f"a{'.a' * 100_000} = 1", "c.toml"),
            ("with 20,000 lines", "[lora]" + "\n" * 20_000 + "rank = 'x'", "lora.rank"),
            ("with 400 digits", f"[lora]\nrank = {DIGITS}", "lora.rank"),
            ("with 5,000 digits", f"[lora]\nrank = {MANY_DIGITS}", "c.toml"),
            ("with a name of a megabyte", f"[lora]\n{MEGABYTE} = 1", "c.toml"),
            ("with a value of a megabyte", f"[lora]\nrank = '{MEGABYTE}'", "lora.rank"),
        )
    ),
    *(  # config.json, before any weight is loaded
        Case(f"config.json {label}", put(CONFIG, content), INFER, 1, "config.json")
        for label, content in (
            ("a list", "[]"), ("deep", DEEP), ("of 5,000 digits", MANY_DIGITS), ("not UTF-8", b"\xff"), ("empty", ""),
            ("of an unheard type", '{"model_type": "' + MEGABYTE + '"}'),
        )
    ),
    *(
        Case(f"config.json: {name} {str(value)[:20]}", changed(CONFIG, **{name: value}), INFER, 1, "")
        for name, value in (
            ("hidden_size", 10**400), ("hidden_size", 0), ("hidden_size", "many"), ("hidden_size", [1]),
            ("num_hidden_layers", 10**12), ("num_hidden_layers", -1), ("num_attention_heads", 0),
            ("vocab_size", 1e300), ("intermediate_size", 0), ("rms_norm_eps", "x"), ("rope_theta", [1]),
            ("rope_scaling", 5), ("rope_scaling", {"rope_type": "llama3", "factor": 8.0}),
            ("tie_word_embeddings", [1]), ("eos_token_id", 10**400), ("model_type", [1]),
        )
    ),
    *(
        Case(f"config.json quantized by {str(value)[:40]}", changed("source/config.json", **{key: value}), CONVERT,
             code, "")
        for key, value, code in (
            ("quantization_config", {"quant_method": "bitsandbytes", "load_in_4bit": True}, 2),
            ("quantization_config", {"quant_method": "gptq", "bits": 4}, 2),
            ("quantization_config", {"quant_method": "awq", "bits": 4, "group_size": 10**30}, 2),
            ("quantization_config", {"quant_method": "fp8", "weight_block_size": 5}, 2),
            ("quantization_config", {"quant_method": "compressed-tensors", "format": 5, "config_groups": []}, 2),
            ("quantization_config", [1], 2),
            ("quantization", {"bits": 4, "group_size": 0}, 2),
            ("quantization", {"bits": 10**30, "group_size": 64}, 2),
        )
    ),
    Case("config.json for plan: hidden_size of 400 digits", changed("source/config.json", hidden_size=10**400), PLAN, 1,
         "hidden_size"),
    *(
        Case(f"config.json quantized, for {command[0]}: {str(value)[:40]}", changed(name, quantization=value), command,
             1, "config.json")
        for name, command in ((CONFIG, INFER), ("source/config.json", PLAN))
        for value in (
            {"bits": 4, "group_size": 64, "model.layers.0.self_attn.q_proj": {"bits": 4, "group_size": 0}},
            {"quant_method": "mxfp4", "modules_to_not_convert": 5},
            {"quant_method": "mxfp4", "ignore": [5]},
        )
    ),
    *(
        Case(f"config.json of 900 lists, for {command[0]}",
             put(name, '{"model_type": "llama", "x": ' + "[" * 900 + "]" * 900 + "}"), command, 1, "config.json")
        for name, command in ((CONFIG, INFER), ("source/config.json", PLAN), ("source/config.json", CONVERT))
    ),
    *(  # a tokenizer's files
        Case(f"{name.partition('/')[2]}: {content[:20]!r}", put(name, content), INFER, 1, "mlx_model")
        for name in (TOKENIZER, SETTINGS)
        for content in ("[]", DEEP, b"\xff", "null")
    ),
    *(
        Case(f"tokenizer.json: {name} {str(value)[:20]}", changed(TOKENIZER, **{name: value}), INFER, 1, "mlx_model")
        for name, value in (
            ("model", None), ("model__vocab", {"1": 1 << 31}), ("model__vocab", {"1": -1}),
            ("model__vocab", {"1": "x"}), ("added_tokens", "x"), ("pre_tokenizer", "x"), ("decoder", []),
        )
    ),
    Case("a tokenizer without tokens", changed(TOKENIZER, model__vocab={}, model__merges=[]), INFER, 1, "tokenizer"),
    Case("a token beyond the embedding", added(1024), INFER, 1, "1024"),
    Case("a token beyond all sense", added(10**12), INFER, 1, TOKENIZER),
    *(
        Case(f"tokenizer_config.json: {name} {str(value)[:20]}", changed(SETTINGS, **{name: value}), INFER, 1,
             "mlx_model")
        for name, value in (("model_max_length", "x"), ("tokenizer_class", [1]))
    ),
    Case("generation_config.json: deep", put("mlx_model/generation_config.json", DEEP), INFER, 1, "generation_config"),
    *(  # adapter_config.json
        Case(f"adapter_config.json {label}", put(ADAPTER, content), TUNED, 1, ADAPTER)
        for label, content in (("a list", "[]"), ("text", '"x"'), ("deep", DEEP), ("not UTF-8", b"\xff"))
    ),
    Case("rank 1e400", put(ADAPTER, '{"num_layers": 4, "lora_parameters": {"rank": 1e400, "scale": 1}}'), TUNED, 1,
         "rank"),
    *(
        Case(f"adapter_config.json: {name} {str(value)[:20]}", changed(ADAPTER, **{name: value}), TUNED, 1, "")
        for name, value in (
            ("lora_parameters__rank", 10**400), ("lora_parameters__scale", 10**400), ("lora_parameters", []),
            ("lora_parameters__keys", [MEGABYTE]), ("num_layers", 10**400), ("fine_tune_type", []),
            ("base_fingerprint", MEGABYTE), ("base_fingerprint", [1]),
        )
    ),
    *(
        Case(f"adapter_config.json: template {str(value)[:20]}", changed(ADAPTER, template=value), TUNED, 2, ADAPTER)
        for value in (5, MEGABYTE)
    ),
    *(
        Case(f"PEFT's adapter_config.json: {name[:20]} {str(value)[:20]}", of_peft(**{name: value}), TUNED, 1, ADAPTER)
        for name, value in (
            ("r", 10**400), ("r", 1e400), ("lora_alpha", "x"), ("rank_pattern", {"((": 1}), ("peft_type", [1]),
            (MEGABYTE, 1), ("modules_to_save", MEGABYTE), ("use_dora", 5),
        )
    ),
    *(  # the adapter's weights
        Case(f"an adapter that holds {value}, for {command[0]}", holding(value), command, 1, WEIGHTS)
        for value in (np.nan, 1e38)
        for command in (TUNED, (*TRAIN, "--init-adapter", "adapters"), ("export", "--to", "peft", "--export-path", "x"))
    ),
    *(
        Case(f"an adapter's header: {content[:40]!r}", put(WEIGHTS, content), TUNED, 1, WEIGHTS)
        for content in (
            b"", b"\xff" * 64, header("[]"), header(DEEP),
            header('{"a":{"dtype":"F32","shape":[1000000000,1000000000],"data_offsets":[0,4]}}'),
        )
    ),
    # a source's weights
    Case("a .bin of a repeated number", repeated, CONVERT, 1, "pytorch_model.bin"),
    Case("a .bin of another bit", flipped, CONVERT, 1, "checksum"),
    Case("a .bin cut off", lambda folder: put("source/pytorch_model.bin", (folder / "source/pytorch_model.bin")
                                              .read_bytes()[:5_000])(folder), CONVERT, 1, "pytorch_model.bin"),
    Case("tensors on one place", overlapping, CONVERT, 1, "source"),
    Case("a model without weights", lambda folder: (folder / "source/pytorch_model.bin").unlink(), CONVERT, 1,
         "source"),
    Case("a GGUF file cut off", gguf(lambda data: data[: len(data) // 2]), OF_GGUF, 1, "m.gguf"),
    Case("a GGUF file of 2^60 tensors", gguf(lambda data: data[:8] + b"\xff" * 7 + b"\x0f" + data[16:]), OF_GGUF, 1,
         "m.gguf"),
    # prompts and rows
    Case("a prompt beyond the model's context", nothing, (*INFER[:2], "--prompt", "1+1 " * 2_000), 2, "context"),
    Case("rows of half characters", put("rows.jsonl", '{"problem": "a \\ud800 b", "answer": "2"}\n'),
         (*TRAIN, "--dataset", "rows.jsonl"), 1, "rows.jsonl"),
    Case("rows nested too deeply", put("rows.jsonl", f'{{"problem": {DEEP}'), (*TRAIN, "--dataset", "rows.jsonl"), 1,
         "rows.jsonl"),
    Case("rows that are not UTF-8", put("rows.jsonl", b'{"problem": "\xff", "answer": "2"}\n'),
         (*TRAIN, "--dataset", "rows.jsonl"), 1, "rows.jsonl"),
]  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llama_folder(tmp_path_factory.mktemp("hostile") / "source")


@pytest.fixture
def folder(tmp_path: Path, debug_run: Path, source: Path) -> Path:
    """What the cases damage. Weights are links: a case that changes them puts a file of its own there."""
    for name in ("mlx_model", "adapters"):
        (tmp_path / name).mkdir()
        for path in (debug_run / name).iterdir():
            if path.is_file():
                (os.link if path.suffix == ".safetensors" else shutil.copy)(path, tmp_path / name / path.name)
    shutil.copytree(source, tmp_path / "source")
    put("rows.jsonl", GOOD + "\n")(tmp_path)
    return tmp_path


def contents(folder: Path) -> Mapping[Path, tuple[int, int]]:
    """All files, with what tells that one was written; but for the cache of tokens, which is good for the next run."""
    return {
        path: (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*") if "cache" not in path.parts
    }


@pytest.mark.parametrize("case", CASES, ids=[case.label for case in CASES])
def test_one_line_and_nothing_written(case: Case, folder: Path) -> None:
    case.damage(folder)
    before = contents(folder)
    result = run(folder, *case.command)
    *_, last = result.stderr.strip().splitlines()
    assert result.returncode == case.code, result.stderr[-1_000:]
    assert last.lower().startswith("error: ") and case.named in last
    assert "defect" not in result.stderr and "Traceback" not in result.stderr
    assert len(result.stderr) < 10_000
    assert contents(folder) == before


def test_a_row_of_5000_digits_ends_nothing(folder: Path) -> None:
    """In a problem, its solution or its answer."""
    rows = [
        {"problem": f"What is {MANY_DIGITS} + 1?", "solution": f"It is {MANY_DIGITS}.\n#### {MANY_DIGITS}"},
        {"problem": "What is 1 + 1?", "solution": f"#### {MANY_DIGITS}"},
        {"problem": "What is 1 + 2?", "solution": "1 + 2 = 3\n#### 3"},
    ]
    put("rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))(folder)
    result = run(
        folder, "evaluate", "--no-adapter", "--benchmark", "rows.jsonl", "--max-tokens", "2", "--results-path", "r"
    )
    assert result.returncode == 0, result.stderr[-1_000:]


def test_a_prompt_that_is_not_utf8(folder: Path) -> None:
    result = run(folder, *INFER[:2], stdin=b"\xff\xfe")
    assert result.returncode == 1 and "not UTF-8" in result.stderr and "defect" not in result.stderr


def test_a_problem_beyond_all_contexts(folder: Path) -> None:
    put("rows.jsonl", json.dumps({"problem": "1 + 1 " * 20_000, "answer": "2"}) + "\n")(folder)
    result = run(folder, "evaluate", "--no-adapter", "--benchmark", "rows.jsonl", "--results-path", "r")
    assert result.returncode == 2 and "context ends at 1,024" in result.stderr
