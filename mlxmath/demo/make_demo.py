"""Make every file of the bundled demo from nothing: problems, tokenizer, corpus, and a base model trained on it.

Run as `python -m mlxmath.demo.make_demo` (needs torch, transformers and tokenizers, which the package itself does
not). The base model reads arithmetic only in plain styles - questions with worked answers, running prose, drills,
exercise sheets without answers - and never in the tutor format. So it can do the arithmetic, but asked in the tutor
format it continues the document, most often with the next exercise. That is what fine-tuning then changes.
"""

import argparse
import json
import math
import random
import re
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

from mlxmath.demo.word_problems import WordProblem, make_problem_sets, problem_stream

TUTOR_PROMPT = (
    "You are a helpful math tutor. Solve the problem step by step and give the final answer at the end.\n\n"
    "### Problem:\n{problem}\n\n### Solution:\n"
)
"""The format the base model never sees; its words only help to choose the tokenizer's merges."""

EOS, PAD, BOS = "</s>", "<pad>", "<s>"
SPECIAL_TOKENS = (BOS, EOS, PAD)
VOCABULARY_SIZE = 1024
MAX_POSITIONS = 1024

MODEL_SHAPE: dict[str, Any] = {
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 5,
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

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'user' -%}"
    "{{- "
    + " ~ message['content'] ~ ".join("'" + part.replace("\n", "\\n") + "'" for part in TUTOR_PROMPT.split("{problem}"))
    + " -}}"
    "{%- elif message['role'] == 'assistant' -%}"
    "{{- message['content'] ~ eos_token -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
)
"""Every user message becomes a tutor prompt, every assistant message the solution after it with its end token."""

# ---------------------------------------------------------------------------------------------------- corpus

_LABELS = ("Exercise", "Task", "Question", "Homework", "Card", "Item", "Quiz", "Puzzle", "Number", "Page")
_ORDERS = (
    "Work these out at home.",
    "You may use paper and a pencil.",
    "Show how you worked. Write the result on the line.",
    "These are for the whole class. Take your time and check your work.",
    "Read each question with care. You have one hour.",
    "Here are some questions about numbers for you to try. Do as many as you can.",
    "Solutions are on the last page. Problem sheets are handed in on Friday.",
    "Problem sheet for the week. Solutions come on Monday.",
    "You are ready for the next page. Try all of these and hand them in at the end.",
)


_ASKED = (
    ("Q: {p}\nA: {w}", 5),
    ("Question: {p}\nAnswer: {w}", 3),
    ("{p}\n{w}", 3),
    ("{p}\n\nHere is how it is done.\n{w}", 2),
    ("Ask: {p}\nReply: {w}", 2),
)
_CLOSINGS = (
    "The answer is {}.",
    "So the answer is {}.",
    "The answer is {}.",
    "It is {}.",
    "Result: {}",
    "That makes {}.",
)


def _worked_questions(rng: random.Random, problems: Iterator[WordProblem]) -> str:
    """Questions, each answered in worked sentences, laid out in one of several ways."""
    layout = rng.choices([text for text, _ in _ASKED], weights=[share for _, share in _ASKED])[0]
    closing, between = rng.choice(_CLOSINGS), rng.choice((" ", " ", "\n"))
    pairs = [
        layout.format(p=p.problem, w=between.join((*p.steps, closing.format(p.answer))))
        for p in islice(problems, rng.randint(1, 4))
    ]
    return "\n\n".join(pairs)


def _prose(rng: random.Random, problems: Iterator[WordProblem]) -> str:
    """Stories that work the numbers out as they go, nobody asking."""
    between = rng.choice((" ", " ", "\n"))
    told = [between.join((p.context, *p.steps) if p.context else p.steps) for p in islice(problems, rng.randint(1, 4))]
    return "\n\n".join(told)


def _drill(rng: random.Random, problems: Iterator[WordProblem]) -> str:
    """Bare equations."""
    del problems
    lines = []
    for _ in range(rng.randint(6, 20)):
        operation = rng.choice("++--*/")
        if operation in "+-":
            a = rng.randint(2, 97)
            b = rng.randint(2, 99 - a) if operation == "+" else rng.randint(1, a - 1)
            result = a + b if operation == "+" else a - b
        else:
            while True:
                a, b = rng.randint(2, 12), rng.randint(2, 12)
                if a * b <= 99:
                    break
            result = a * b
            if operation == "/":
                a, result = result, a
        lines.append(f"{a} {operation} {b} = {result}")
    return rng.choice(("\n", ". ", ", ")).join(lines)


def _one_topic(rng: random.Random, problems: Iterator[WordProblem]) -> Iterator[WordProblem]:
    """The stream itself or, for most sheets, only its problems of the first one's kind."""
    first = next(problems)
    if rng.random() < 0.3:
        return chain([first], problems)
    return chain([first], (p for p in problems if p.scenario == first.scenario))


def _numbered_sheet(rng: random.Random, problems: Iterator[WordProblem]) -> str:
    """A sheet of numbered exercises without answers."""
    sheet = _one_topic(rng, problems)
    first = rng.randint(1, 30)
    between = rng.choice(("\n", "\n\n"))
    lines = [f"{number}. {p.problem}" for number, p in enumerate(islice(sheet, rng.randint(3, 8)), first)]
    order = rng.choice((f"{rng.choice(_ORDERS)}\n\n", ""))
    return order + between.join(lines)


def _labelled_sheet(rng: random.Random, problems: Iterator[WordProblem]) -> str:
    """Exercises under headings, one after the other, without answers."""
    sheet = _one_topic(rng, problems)
    number = rng.randint(1, 30)
    mark = rng.choice(("", "", "## ", "#### "))
    label = rng.choice(_LABELS)
    style = rng.choice(("{label} {number}:", "{label} {number}", "{label}:", "{number}"))
    parts = [
        f"{mark}{style.format(label=label, number=n)}\n{p.problem}"
        for n, p in enumerate(islice(sheet, rng.randint(3, 8)), number)
    ]
    return "\n\n".join([*([rng.choice(_ORDERS)] if rng.random() < 0.7 else []), *parts])


def _short_answers(rng: random.Random, problems: Iterator[WordProblem]) -> str:
    """Questions with the bare result: the work is not shown."""
    lines = [f"{p.problem} Answer: {p.answer}" for p in islice(problems, rng.randint(2, 6))]
    return rng.choice(("\n", "\n\n")).join(lines)


_Style = Callable[[random.Random, Iterator[WordProblem]], str]
_STYLES: tuple[tuple[_Style, int], ...] = (
    (_worked_questions, 30),
    (_prose, 24),
    (_drill, 14),
    (_numbered_sheet, 7),
    (_labelled_sheet, 13),
    (_short_answers, 3),
)
"""Every plain style with its share of the documents."""


def documents(seed: int, exclude: Collection[str]) -> Iterator[str]:
    """The pretraining corpus, document by document, without any problem whose normalised text is in `exclude`."""
    rng = random.Random(seed)
    problems = problem_stream(seed + 1, exclude)
    styles, shares = [style for style, _ in _STYLES], [share for _, share in _STYLES]
    while True:
        yield rng.choices(styles, weights=shares)[0](rng, problems)


# ------------------------------------------------------------------------------------------------- tokenizer


def train_tokenizer(texts: Sequence[str]) -> Tokenizer:
    """Byte-level BPE; every digit is a token of its own, and an operator takes the spaces around it along."""
    tokenizer = Tokenizer(models.BPE())
    pattern = r"\d| [-+*/=] |#+ ?| ?[A-Za-z]+|\n+|[^\sA-Za-z\d]|\s"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def write_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json and the configuration that names its class, its special tokens and the chat template."""
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": BOS,
            "eos_token": EOS,
            "pad_token": PAD,
            "model_max_length": MAX_POSITIONS,
            "clean_up_tokenization_spaces": False,
            "chat_template": CHAT_TEMPLATE,
        },
    )
    write_json(folder / "special_tokens_map.json", {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD})


# -------------------------------------------------------------------------------------------------- training


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
    """The number after `####`, else after "answer is" or "Answer:", else the last one."""
    for pattern in (r"####\s*(-?\d+)", r"(?:answer is|Answer:)\s*(-?\d+)"):
        if found := re.search(pattern, completion):
            return found[1]
    numbers = re.findall(r"-?\d+", completion)
    return numbers[-1] if numbers else None


def accuracies(model: LlamaForCausalLM, tokenizer: Tokenizer, problems: Sequence[WordProblem]) -> dict[str, float]:
    """Exact answers on held-out problems: worked answers to plain questions, and the tutor format."""
    model.eval()
    plain = complete(model, tokenizer, [f"Q: {p.problem}\nA:" for p in problems])
    tutor = complete(model, tokenizer, [TUTOR_PROMPT.format(problem=p.problem) for p in problems])
    model.train()
    right = {
        style: [extract_answer(text) == str(p.answer) for text, p in zip(texts, problems, strict=True)]
        for style, texts in (("plain", [text.split("\n")[0] for text in plain]), ("tutor", tutor))
    }
    return {style: sum(hits) / len(hits) for style, hits in right.items()}


def train_base(
    tokenizer: Tokenizer, texts: Iterator[str], held_out: Sequence[WordProblem], steps: int, rows: int, length: int
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
        if (step + 1) % max(1, steps // 6) == 0 or step + 1 == steps:
            print(f"held-out exact answers: {accuracies(model, tokenizer, held_out)}", flush=True)
    return model


# --------------------------------------------------------------------------------------------------- writing


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write `value` indented, with a final newline."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_problems(path: Path, problems: Sequence[WordProblem]) -> None:
    """Write one JSON object a line."""
    path.write_text("".join(json.dumps(p.record()) + "\n" for p in problems), encoding="utf-8")


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


def main() -> None:
    """Read the options and make the demo."""
    parser = argparse.ArgumentParser(description="Regenerate the bundled demo: problems, tokenizer and base model.")
    parser.add_argument("--steps", type=int, default=1150, help="training steps of the base model")
    parser.add_argument("--rows", type=int, default=32, help="windows a step")
    parser.add_argument("--length", type=int, default=256, help="tokens a window")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder for problems/ and model/")
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(True)
    problems_folder, model_folder = options.out / "problems", options.out / "model"
    for folder in (problems_folder, model_folder):
        folder.mkdir(parents=True, exist_ok=True)

    sets = make_problem_sets(0)
    for name, problems in (("train", sets.train), ("validation", sets.validation), ("test", sets.test)):
        write_problems(problems_folder / f"{name}.jsonl", problems)
    held_out = sets.normalised_questions()

    sample = list(islice(documents(77, held_out), 6000)) + [TUTOR_PROMPT.replace("{problem}", "")] * 2000
    tokenizer = train_tokenizer(sample)
    write_tokenizer(tokenizer, model_folder)

    texts = documents(1000 + options.seed, held_out)
    model = train_base(tokenizer, texts, sets.test, options.steps, options.rows, options.length)
    write_model(model, tokenizer, model_folder)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
