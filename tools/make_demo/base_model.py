"""The base model of the demo: a Llama of two million parameters, trained from scratch."""

import math
import re
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from tools.make_demo.base_tokenizer import BOS, EOS, MAX_POSITIONS, PAD, write_json
from tools.make_demo.story import WordProblem

MODEL_SHAPE: dict[str, Any] = {
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "head_dim": 32,
    "max_position_embeddings": MAX_POSITIONS,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "mlp_bias": False,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "attention_dropout": 0.0,
}


def batches(tokenizer: Tokenizer, texts: Iterator[str], rows: int, length: int) -> Iterator[torch.Tensor]:
    """Windows of `length` tokens cut from the documents, which are joined by the end token."""
    (eos,) = tokenizer.encode(EOS).ids
    stream: list[int] = []
    while True:
        while len(stream) < rows * length:
            for encoding in tokenizer.encode_batch(list(islice(texts, 256))):
                stream += encoding.ids
                stream.append(eos)
        yield torch.tensor(stream[: rows * length]).view(rows, length)
        del stream[: rows * length]


@torch.inference_mode()
def complete(
    model: LlamaForCausalLM, tokenizer: Tokenizer, prompts: Sequence[str], max_new_tokens: int = 100
) -> list[str]:
    """Greedy continuations, up to the end token."""
    eos, pad = tokenizer.token_to_id(EOS), tokenizer.token_to_id(PAD)
    completions = []
    for start in range(0, len(prompts), 100):
        rows = [encoding.ids for encoding in tokenizer.encode_batch(list(prompts[start : start + 100]))]
        width = max(map(len, rows))
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        output = model.generate(  # type: ignore[misc]
            input_ids=ids, attention_mask=mask, max_new_tokens=max_new_tokens, do_sample=False,
            eos_token_id=eos, pad_token_id=pad,
        )  # fmt: skip
        for row in output[:, width:].tolist():
            completions.append(tokenizer.decode(row[: row.index(eos)] if eos in row else row))
    return completions


def extract_answer(completion: str) -> str | None:
    """The number after "answer is" or "Answer:", else the last one, of the text before the first blank line."""
    text = completion.lstrip().split("\n\n")[0]
    if found := re.search(r"(?:answer is|Answer:)\s*(-?\d+)", text):
        return found[1]
    numbers = re.findall(r"-?\d+", text)
    return numbers[-1] if numbers else None


def accuracies(model: LlamaForCausalLM, tokenizer: Tokenizer, problems: Sequence[WordProblem]) -> dict[str, str]:
    """Right answers to plain questions, by kind of problem: `right/asked`."""
    model.eval()
    texts = complete(model, tokenizer, [f"Q: {p.problem}\nA:" for p in problems], max_new_tokens=72)
    model.train()
    right: dict[str, list[bool]] = {}
    for text, problem in zip(texts, problems, strict=True):
        right.setdefault(problem.kind, []).append(extract_answer(text) == str(problem.answer))
    return {kind: f"{sum(hits)}/{len(hits)}" for kind, hits in sorted(right.items())}


def train_base(
    tokenizer: Tokenizer, texts: Iterator[str], fresh: Sequence[WordProblem], steps: int, rows: int, length: int
) -> LlamaForCausalLM:
    """Train a Llama from scratch: Muon for the matrices of the layers, AdamW for everything else."""
    vocabulary = tokenizer.get_vocab_size()
    model = LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, **MODEL_SHAPE))
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "layers" in name]
    others = [p for name, p in model.named_parameters() if p.ndim < 2 or "layers" not in name]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=4e-3, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=4e-3, weight_decay=0.01, betas=(0.9, 0.95)),
    ]
    warm_up = min(50, steps // 5)

    def factor(step: int) -> float:
        """Linear warm-up, a constant stretch, and a linear descent over the last 60 %."""
        return min((step + 1) / (warm_up + 1), max(0.02, (steps - step) / (0.6 * steps)), 1.0)

    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, factor) for optimizer in optimizers]
    started, seen = time.time(), 0
    model.train()
    for step, ids in enumerate(islice(batches(tokenizer, texts, rows, length), steps)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
            logits = model.lm_head(hidden)
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        seen += ids.numel()
        if not math.isfinite(loss.item()):
            raise RuntimeError(f"the loss is {loss.item()} at step {step}")
        if (step + 1) % 25 == 0 or step + 1 == steps:
            speed = seen / (time.time() - started)
            progress = f"step {step + 1}/{steps}  loss {loss.item():.4f}  {seen / 1e6:.2f}M tokens"
            print(f"{progress}  {speed:.0f}/s", flush=True)
        if (step + 1) % max(1, steps // 3) == 0:
            print(f"right answers to fresh problems: {accuracies(model, tokenizer, fresh)}", flush=True)
    return model


def write_model(model: LlamaForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the configuration and two float16 shards with their index, as large models are published.

    The head is the embedding, so it is left out.
    """
    eos, pad, bos = (tokenizer.token_to_id(token) for token in (EOS, PAD, BOS))
    write_json(
        folder / "config.json",
        {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": tokenizer.get_vocab_size(),
            **MODEL_SHAPE,
            "rope_theta": 10000.0,
            "rope_scaling": None,
            "bos_token_id": bos,
            "eos_token_id": eos,
            "pad_token_id": pad,
            "torch_dtype": "float16",
            "use_cache": True,
        },
    )
    write_json(folder / "generation_config.json", {
        "bos_token_id": bos, "eos_token_id": eos, "pad_token_id": pad, "do_sample": False,
    })  # fmt: skip
    tensors = {
        name: tensor.detach().to(torch.float16).contiguous().clone()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"
    }
    total = sum(tensor.nbytes for tensor in tensors.values())
    shards: list[dict[str, torch.Tensor]] = [{}, {}]
    filled = 0
    for name, tensor in tensors.items():
        shards[0 if filled < total / 2 else 1][name] = tensor
        filled += tensor.nbytes
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"pytorch_model-{number:05d}-of-{len(shards):05d}.bin"
        torch.save(shard, folder / file)
        weight_map |= dict.fromkeys(shard, file)
    write_json(folder / "pytorch_model.bin.index.json", {
        "metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items())),
    })  # fmt: skip
