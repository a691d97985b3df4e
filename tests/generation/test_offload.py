"""Answers of a model whose blocks stay on the disk: those of the model in memory, each block read once for all rows."""

import gc
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlxmath.commands import chat, serve
from mlxmath.config.schema import LoraConfig, RuntimeConfig
from mlxmath.errors import InputError, MlxmathError
from mlxmath.generation.engine import Sampling, generate_batch, stream
from mlxmath.generation.placing import stays_on_disk
from mlxmath.models import served as serving
from mlxmath.models.calls import standing_in
from mlxmath.models.load import load_model
from mlxmath.models.lora.adapter import adapter_config, load_adapter, save_config, save_weights
from mlxmath.models.lora.inject import adapter_arrays, inject
from mlxmath.models.offload import HEAD
from mlxmath.models.served import Served
from mlxmath.runtime.device import DeviceInfo
from tests.generation.words import tokenizer
from tests.helpers import invoke, json_lines, succeed
from tests.models import architectures
from tests.models.folders import LLAMA, deep, folder_of

__all__ = ["tokenizer"]

CONFIGS = {
    "llama": LLAMA,
    "qwen2, tied": LLAMA | {"model_type": "qwen2", "tie_word_embeddings": True},
    **{name: architectures.config_of(name) for name in ("gemma3_text", "mixtral", "qwen3_5", "falcon_h1", "gpt_oss")},
}
GREEDY = Sampling(10)
RNG = np.random.default_rng(0)
PROMPTS = [RNG.integers(3, 60, size=length).tolist() for length in (5, 17, 9, 9, 30, 2)]


def both(folder: Path) -> tuple[Any, Served]:
    return load_model(folder, "float32").model, Served(folder, "float32")


@pytest.mark.parametrize(
    ("name", "bits", "dtype"),
    [
        ("llama", None, mx.float32), ("llama", 4, mx.bfloat16), ("qwen2, tied", 8, mx.float32),
        ("gemma3_text", None, mx.float32), ("mixtral", None, mx.float32), ("qwen3_5", None, mx.float32),
        ("falcon_h1", None, mx.float32), ("gpt_oss", None, mx.float32),
    ],
)  # fmt: skip
def test_answers_are_those_of_the_model_in_memory(
    tmp_path: Path, tokenizer: TokenizerWrapper, name: str, bits: int | None, dtype: mx.Dtype
) -> None:
    inside, served = both(folder_of(tmp_path / "model", CONFIGS[name], bits, dtype))
    expected = generate_batch(inside, tokenizer, PROMPTS, GREEDY, concurrency=4, logprobs=True)
    found = generate_batch(served.model, tokenizer, PROMPTS, GREEDY, concurrency=4, logprobs=True)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.tokens, ours.finish_reason) == (theirs.tokens, theirs.finish_reason)
        np.testing.assert_allclose(ours.logprobs, theirs.logprobs, atol=1e-4)
    assert len({completion.tokens for completion in found}) > 1
    for drawn in (GREEDY, Sampling(10, temperature=1.0, seed=3)):
        assert list(stream(served.model, tokenizer, PROMPTS[1], drawn)) == list(
            stream(inside, tokenizer, PROMPTS[1], drawn)
        )
    served.close()


def counted(served: Served) -> Counter[int]:
    """How often each unit is read from now on."""
    counts: Counter[int] = Counter()
    store: Any = served.offloaded
    read = store._read

    def counting(unit: int, spare: Any) -> list[mx.array]:
        counts[unit] += 1
        return read(unit, spare)

    store._read = counting
    return counts


def test_a_step_reads_each_block_once_for_all_answers(tmp_path: Path, tokenizer: TokenizerWrapper) -> None:
    _, served = both(folder_of(tmp_path / "model", LLAMA))
    generate_batch(served.model, tokenizer, PROMPTS, Sampling(2))  # whatever is tried is tried
    counts, reads, sizes = counted(served), [], []
    store: Any = served.offloaded

    def on_step(count: int) -> None:
        if store._next:
            store._next[1].result()  # the next step's first block, which another thread reads
        reads.append(dict(counts))
        sizes.append(count)
        counts.clear()

    generate_batch(served.model, tokenizer, PROMPTS, Sampling(8), on_step=on_step)
    assert sizes[1:4] == [len(PROMPTS)] * 3
    assert reads[1:4] == [{0: 1, 1: 1, 2: 1, 3: 1, HEAD: 1}] * 3
    assert len(store._held) + bool(store._next) == 2
    served.close()


@pytest.mark.parametrize("alone", [False, True])
def test_prompts_are_read_in_large_parts(
    tmp_path: Path, tokenizer: TokenizerWrapper, monkeypatch: pytest.MonkeyPatch, alone: bool
) -> None:
    _, served = both(folder_of(tmp_path / "model", LLAMA))
    prompts = [RNG.integers(3, 60, size=101).tolist() for _ in range(1 if alone else 8)]
    generate_batch(served.model, tokenizer, [*prompts[:1], PROMPTS[0]], Sampling(1))
    counts = counted(served)
    sampling = Sampling(1)
    found = []
    for part, parts in ((serving.PROMPT_TOKENS, 1), (50 if alone else 400, 2)):
        for home in ("generation.decode", "models.cpu_decoding"):
            monkeypatch.setattr(f"mlxmath.{home}.PROMPT_TOKENS", part)
        counts.clear()
        if alone:
            found.append(list(stream(served.model, tokenizer, prompts[0], sampling))[-1:])
        else:
            found.append(generate_batch(served.model, tokenizer, prompts, sampling))
        assert counts[1] == parts + 1  # the first token is another pass
    assert found[0] == found[1]
    served.close()


def test_few_weights_are_in_memory(tmp_path: Path, tokenizer: TokenizerWrapper) -> None:
    folder = folder_of(tmp_path / "model", LLAMA | {"num_hidden_layers": 12, "intermediate_size": 4096})
    weights = (folder / "model.safetensors").stat().st_size
    before, served = mx.get_active_memory(), Served(folder, "float32")
    short = [PROMPTS[0], PROMPTS[-1]]
    generate_batch(served.model, tokenizer, short, GREEDY)  # whatever is tried is tried
    mx.reset_peak_memory()
    generate_batch(served.model, tokenizer, short, GREEDY)
    assert mx.get_peak_memory() - before < 0.25 * weights
    served.close()
    gc.collect()
    for _ in range(50):  # MLX's own thread lets go of what it computed last when it comes to it
        if mx.get_active_memory() - before < 0.02 * weights:
            break
        time.sleep(0.1)
    else:
        pytest.fail(f"{mx.get_active_memory() - before:,} of {weights:,} bytes are still there")


def adapter_of(folder: Path, out: Path, *, full: bool = False) -> Path:
    model = load_model(folder, "float32").model
    config = LoraConfig(rank=4, targets=("q_proj", "down_proj"))
    keys = inject(model, config).keys
    for number, array in enumerate(adapter_arrays(model).values()):
        array[:] = 0.3 * mx.random.normal(array.shape, key=mx.random.key(number))
    out.mkdir()
    save_config(out, adapter_config(config, keys, full=full))
    save_weights(out / "adapters.safetensors", model)
    return out


def test_an_adapter_may_come_after_the_base_has_answered(tmp_path: Path, tokenizer: TokenizerWrapper) -> None:
    folder = folder_of(tmp_path / "model", LLAMA)
    adapter = adapter_of(folder, tmp_path / "adapter")
    inside, served = both(folder)
    found = []
    for model in (inside, served.model):
        base = generate_batch(model, tokenizer, PROMPTS, GREEDY)
        load_adapter(model, adapter)
        found.append((base, generate_batch(model, tokenizer, PROMPTS, GREEDY)))
    assert found[0] == found[1] and found[0][0] != found[0][1]
    served.close()


def test_weights_that_are_used_outside_of_their_block_are_no_zeros(tmp_path: Path, tokenizer: TokenizerWrapper) -> None:
    _, served = both(folder_of(tmp_path / "model", LLAMA))
    norm = served.model.model.norm
    call = type(norm).__call__
    other = served.model.layers[1].mlp.down_proj
    with (
        standing_in(norm, lambda x: call(norm, x) + other.weight.sum()),
        pytest.raises(MlxmathError, match=r"--offload on: .* uses weights of its blocks in other places"),
    ):
        generate_batch(served.model, tokenizer, PROMPTS[:1], GREEDY)
    served.close()


def test_where_a_model_stays(tmp_path: Path) -> None:
    config = LLAMA | {"num_hidden_layers": 64, "hidden_size": 256, "intermediate_size": 1024}
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = 4 * 64 * (256 * (256 + 2 * 128 + 256) + 3 * 256 * 1024)
    lora = {"num_layers": -1, "lora_parameters": {"rank": 2, "scale": 1.0}}  # as older mlx_lm wrote it, of no type
    forms = {name: lora | {"fine_tune_type": name} for name in ("full", "dora")}
    for name, form in {**forms, "lora": lora}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text(json.dumps(form))
    full, dora = tmp_path / "full", tmp_path / "dora"

    def stays(offload: str, memory: float, adapter: Path | None = None, *, spread: bool = False) -> bool:
        device = DeviceInfo("cpu", "D", int(memory), "float32", "")
        return stays_on_disk(RuntimeConfig(offload=offload), tmp_path, device, adapter, spread=spread)

    assert stays("auto", 0.9 * weights) and not stays("auto", 1.3 * weights)
    assert not stays("off", 0.5 * weights) and stays("on", 9 * weights)
    assert not stays("auto", 0.5 * weights, full) and not stays("auto", 0.5 * weights, spread=True)
    assert stays("auto", 0.5 * weights, tmp_path / "lora") and not stays("auto", 0.5 * weights, dora)
    for arguments, said in (((full,), "whole blocks"), ((dora,), "DoRA"), ((), "--shard")):
        with pytest.raises(InputError, match=f"--offload on: .*{said}"):
            stays("on", weights, *arguments, spread=not arguments)


@pytest.mark.parametrize(
    ("main", "ending"),
    [(chat.main, ()), (serve.main, ("--port", "0", "--idle-minutes", "0.01"))],
    ids=["chat", "serve"],
)
def test_commands_that_hold_the_model_in_memory_refuse_one_that_does_not_fit(
    prepared: Path, main: Any, ending: tuple[str, ...]
) -> None:
    limit = str(deep(prepared, 40) / 2 / 1e9)
    for options, told in (
        (("--set", "runtime.offload=on"), "runtime.offload = on: "), (("--memory-limit-gb", limit), "deep fills "),
    ):  # fmt: skip
        result = invoke(main, "--mlx-path", str(prepared / "deep"), "--no-adapter", *ending, *options, code=2)
        assert told in result.output and "`mlxmath infer`" in result.output


def test_commands_answer_from_the_disk_where_a_model_does_not_fit(prepared: Path) -> None:
    limit = str(deep(prepared, 40) / 2 / 1e9)
    asked = ("--mlx-path", "deep", "--no-adapter")
    evaluate = ("evaluate", *asked, "--benchmark", "demo", "--limit", "6", "--max-tokens", "6")
    infer = ("infer", *asked, "--prompt", "What is 12 + 7?", "--max-new-tokens", "6", "--json")
    rows, texts = [], []
    for name, options in (("disk", ("--memory-limit-gb", limit)), ("memory", ("--offload", "off"))):
        result = succeed(prepared, *evaluate, "--run-name", name, *options)
        answer = succeed(prepared, *infer, *options)
        for each in (result, answer):
            assert ("stay on the disk (--offload)" in each.stderr) == (name == "disk")
        samples = json_lines(prepared / "evaluation_results" / name / "samples.jsonl")
        rows.append(sorted((row["id"], row["response"]) for row in samples))
        texts.append(json.loads(answer.stdout)["tokens"])
    assert rows[0] == rows[1] and len(rows[0]) == 6 and texts[0] == texts[1]
