"""The tokenizer of the demo's base model, and its chat template."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

TUTOR_PROMPT = (
    "You are a helpful math tutor. Solve the problem step by step and give the final answer at the end.\n\n"
    "### Problem:\n{problem}\n\n### Solution:\n"
)
"""The package's default template."""

EOS, PAD, BOS = "</s>", "<pad>", "<s>"
SPECIAL_TOKENS = (BOS, EOS, PAD)
VOCABULARY_SIZE = 1024
MAX_POSITIONS = 1024

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


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write `value` indented, with a final newline."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
