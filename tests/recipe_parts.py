"""What a recipe needs, in small: random models of each architecture, and rows with the datasets' real columns."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from tests.data.chat_templates import LLAMA3, ZEPHYR
from tests.data.material import byte_level, modern_split, sentencepiece_bpe

_SIZES = {
    "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128, "num_attention_heads": 4,
    "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "max_position_embeddings": 4096, "rope_theta": 10000.0,
}  # fmt: skip
_ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {"tie_word_embeddings": False}),
    "llama 3.2": (
        "LlamaForCausalLM",
        {
            "tie_word_embeddings": True,
            "max_position_embeddings": 131072,
            "rope_scaling": {
                "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
        },
    ),
    "qwen2": ("Qwen2ForCausalLM", {"tie_word_embeddings": False}),
    "mistral": ("MistralForCausalLM", {"tie_word_embeddings": False, "sliding_window": 4096}),
}  # fmt: skip


def _tiny_llama_tokenizer() -> Any:
    tokenizer = sentencepiece_bpe("normalizer")
    tokenizer.chat_template = ZEPHYR
    return tokenizer


def _llama_3_tokenizer() -> Any:
    tokenizer = modern_split()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|start|>", "<|head|>", "<|eot|>"]})
    tokenizer.chat_template = LLAMA3
    return tokenizer


PARTS: dict[str, tuple[str, Callable[[], Any]]] = {
    "deepseek-math-7b": ("llama", lambda: byte_level(regex=True, bos=True)),
    "deepseek-math-7b-base": ("llama", lambda: byte_level(regex=True, bos=True)),
    "r1-distill-qwen-1.5b": ("qwen2", modern_split),
    "tinyllama-1.1b": ("llama", _tiny_llama_tokenizer),
    "mistral-7b": ("mistral", lambda: sentencepiece_bpe("first")),
    "llama-3.2-3b-sft": ("llama 3.2", _llama_3_tokenizer),
}
"""Of each recipe: the architecture of its model, and a tokenizer like its model's."""


def write_model(folder: Path, recipe: str) -> Path:
    """A random two-block model like the recipe's, in Hugging Face form."""
    from mlx_lm.models import llama, qwen2

    architecture, tokenizer_of = PARTS[recipe]
    name, changes = _ARCHITECTURES[architecture]
    tokenizer = tokenizer_of()
    model_type = name.removesuffix("ForCausalLM").lower()
    config = {
        "architectures": [name], "model_type": model_type, "torch_dtype": "float32", "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, **_SIZES, **changes,
    }  # fmt: skip
    module: Any = qwen2 if model_type == "qwen2" else llama
    mx.random.seed(3)
    model = module.Model(module.ModelArgs.from_dict(config))
    folder.mkdir()
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())), {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer.save_pretrained(folder)
    return folder


NUM_ROWS = 16
_QUESTIONS = [f"Tom has {n} clips and buys {n + 3} more for {n % 7 + 1} dollars. How many?" for n in range(NUM_ROWS)]
_ANSWERS = [str(2 * n + 3) for n in range(NUM_ROWS)]
_SOLUTIONS = [f"He has {n}+{n + 3} = {2 * n + 3} clips." for n in range(NUM_ROWS)]
_THOUGHTS = [f"<think>\nSo {n} and {n + 3}.\n</think>\n\n{text}" for n, text in enumerate(_SOLUTIONS)]
_LEVELS = ("easy", "medium", "hard", "very hard")


def _rows(make: Callable[[int], dict[str, Any]]) -> list[dict[str, Any]]:
    return [make(n) for n in range(NUM_ROWS)]


REPOSITORIES: dict[str, list[dict[str, Any]]] = {
    "open-r1/OpenR1-Math-220k": _rows(
        lambda n: {
            "problem": _QUESTIONS[n], "solution": _SOLUTIONS[n], "answer": _ANSWERS[n], "problem_type": "Algebra",
            "question_type": "math-word-problem", "source": "olympiads", "uuid": f"u{n}",
            "is_reasoning_complete": [True, True], "generations": [_THOUGHTS[n], "<think>\n"],
            "correctness_math_verify": [True, False], "correctness_llama": None if n % 2 else [True, False],
            "messages": [
                {"role": "user", "content": _QUESTIONS[n]}, {"role": "assistant", "content": _THOUGHTS[n]},
            ],
        }
    ),
    "Magpie-Align/Magpie-Reasoning-V2-250K-CoT-Deepseek-R1-Llama-70B": _rows(
        lambda n: {
            "instruction": _QUESTIONS[n], "response": _THOUGHTS[n] if n % 5 else "<think>\nI do not know",
            "input_quality": "good" if n % 11 == 1 else "excellent", "difficulty": _LEVELS[n % 4], "uuid": f"u{n}",
            "task_category": "Planning" if n % 13 == 1 else "Math",
        }
    ),
    "PrimeIntellect/NuminaMath-QwQ-CoT-5M": _rows(
        lambda n: {
            "problem_id": f"p{n}", "prompt": _QUESTIONS[n], "response": _SOLUTIONS[n], "ground_truth": _ANSWERS[n],
            "correct": n % 3 > 0,
        }
    ),
    "AI-MO/NuminaMath-CoT": _rows(
        lambda n: {
            "source": ("orca_math", "synthetic_math", "olympiads")[n % 3], "problem": _QUESTIONS[n],
            "solution": _SOLUTIONS[n],
            "messages": [
                {"role": "user", "content": _QUESTIONS[n]}, {"role": "assistant", "content": _SOLUTIONS[n]},
            ],
        }
    ),
    "openai/gsm8k": _rows(
        lambda n: {
            "question": f"Ann {_QUESTIONS[n]}",
            "answer": f"He has {n}+{n + 3} = <<{n}+{n + 3}={2 * n + 3}>>.\n#### {2 * n + 3}",
        }
    ),
    "reasoning-machines/gsm-hard": _rows(
        lambda n: {
            "input": f"Eva {_QUESTIONS[n]}",
            "code": f'def solution():\n    """{_QUESTIONS[n]}"""\n    result = {n} + {n + 3}\n    return result',
            "target": float(2 * n + 3),
        }
    ),
    "EleutherAI/hendrycks_math": _rows(
        lambda n: {
            "problem": _QUESTIONS[n], "level": f"Level {n % 5 + 1}", "type": "Algebra",
            "solution": f"{_SOLUTIONS[n]} So $\\boxed{{{_ANSWERS[n]}}}$.",
        }
    ),
}  # fmt: skip
"""What the stand-in for the hub holds: each dataset's real columns, awkward rows included."""
