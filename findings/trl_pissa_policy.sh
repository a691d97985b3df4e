#!/usr/bin/env bash
# trl 1.16.0, peft 0.21.2: handing DPOTrainer or GRPOTrainer (with beta) a model that carries a PiSSA or OLoRA adapter damages the policy
# before the first step. For the reference they add a second adapter with the first one's configuration and copy the trained numbers
# into it; adding it runs the initialization once more, which takes its directions out of the base that both adapters share. Nothing
# warns, and the first DPO loss is a healthy ln 2, as policy and reference are damaged alike. An adapter of the usual kind is unharmed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0
"$folder/venv/bin/python" -m pip install --quiet trl==1.16.0 peft==0.21.2 transformers==5.24.0 datasets==5.2.0
cat > "$folder/show.py" <<'PYTHON'
import contextlib
import io
import math
import warnings

import datasets
import torch
import transformers
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer

transformers.utils.logging.disable_progress_bar()
datasets.disable_progress_bars()
torch.set_num_threads(1)
vocabulary = ["<pad>", "<eos>", "<unk>", "plus", "is", *map(str, range(40))]
words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
)
sums = [{"prompt": f"{n} plus {n} is ", "chosen": f"{n + n}", "rejected": f"{n}"} for n in range(8)]
tokens = tokenizer(" ".join(row["prompt"] + row["chosen"] for row in sums), return_tensors="pt").input_ids
common = dict(
    output_dir="out", use_cpu=True, bf16=False, report_to=[], disable_tqdm=True, per_device_train_batch_size=8, max_steps=1,
    logging_steps=1, learning_rate=0.0,
)


def adapted(start):
    """A small model with an adapter, its loss on the right sums being far under that of guessing."""
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, initializer_range=0.1, pad_token_id=0, bos_token_id=1, eos_token_id=1,
    ))
    model = get_peft_model(model, LoraConfig(
        r=8, lora_alpha=8, target_modules="all-linear", init_lora_weights=start, task_type="CAUSAL_LM"
    ))
    optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        model(tokens, labels=tokens).loss.backward()
        optimizer.step()
    return model.eval()


def loss(model):
    with torch.no_grad():
        return model.eval()(tokens, labels=tokens).loss.item()


def dpo(model):
    return DPOTrainer(
        model, args=DPOConfig(**common), train_dataset=datasets.Dataset.from_list(sums), processing_class=tokenizer
    )


def grpo(model):
    return GRPOTrainer(
        model, reward_funcs=lambda completions, **_: [0.0] * len(completions), args=GRPOConfig(beta=0.04, **common),
        train_dataset=datasets.Dataset.from_list([{"prompt": row["prompt"]} for row in sums]), processing_class=tokenizer,
    )


for start in (True, "pissa", "pissa_niter_16", "olora"):
    for make in (dpo, grpo):
        model = adapted(start)
        before = loss(model)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            trainer = make(model)
        after = loss(trainer.model)
        told = [str(one.message) for one in said if "base weights" in str(one.message)]
        print(f"{make.__name__}, init_lora_weights={start}: the policy's loss {before:.3f}, with the trainer made {after:.3f}", end="")
        if make is dpo:
            with contextlib.redirect_stdout(io.StringIO()):
                trainer.train()
            first = trainer.state.log_history[0]["loss"]
            print(f"; first DPO loss {first:.4f}", end="")
            assert abs(first - math.log(2)) < 1e-3, "trl has changed"
        print()
        assert not told, "it is said now"
        assert abs(after - before) < 1e-3 if start is True else after > before + 0.5, "trl or peft has changed"
PYTHON
cd "$folder"
HF_HUB_OFFLINE=1 venv/bin/python -W ignore show.py
