#!/usr/bin/env bash
# trl 1.16.0, peft 0.21.2: DPOTrainer and GRPOTrainer (with beta) over a model that was fine-tuned with an adapter take that adapter as the
# reference, by a copy named "ref". The copy leaves out what peft keeps of the embedding: the rows of new tokens (trainable_token_indices)
# and a LoRA on embed_tokens, as only names with ".default." inside are copied and theirs end in ".default". So the reference is not
# the model one began with, but one with untrained tokens: without one step done the DPO loss is not ln 2, nor is the KL term zero.
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

import datasets
import torch
import transformers
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer

transformers.utils.logging.disable_progress_bar()
datasets.disable_progress_bars()
torch.set_num_threads(1)
vocabulary = ["<pad>", "<eos>", "<unk>", "<think>", "</think>", "plus", "is", *map(str, range(40))]
words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
)
sums = [
    {"prompt": f"{n} plus {n} is <think> ", "chosen": f"{n} {n} </think> {n + n}", "rejected": f"{n} </think> {n}"}
    for n in range(8)
]
text = tokenizer([row["prompt"] + row["chosen"] for row in sums], return_tensors="pt", padding=True)


def tuned(**adapter):
    """A small model fine-tuned on the right sums with such an adapter."""
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, initializer_range=0.1, pad_token_id=0, bos_token_id=1, eos_token_id=1, tie_word_embeddings=False,
    ))
    model = get_peft_model(model, LoraConfig(r=8, lora_alpha=8, task_type="CAUSAL_LM", **adapter))
    optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        model(**text, labels=text.input_ids).loss.backward()
        optimizer.step()
    return model.eval()


def first_log(kind, configuration, model, rows, **more):
    """What the trainer logs of its first step; with a learning rate of 0 policy and reference should be the same model."""
    arguments = configuration(
        output_dir="out", use_cpu=True, bf16=False, report_to=[], disable_tqdm=True, per_device_train_batch_size=8, max_steps=1,
        logging_steps=1, learning_rate=0.0, **more.pop("settings", {}),
    )
    trainer = kind(model, args=arguments, train_dataset=datasets.Dataset.from_list(rows), processing_class=tokenizer, **more)
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.train()
    return trainer.state.log_history[0]


layers = ["q_proj", "v_proj"]
for what, adapter, complete in (
    ("LoRA on q and v", dict(target_modules=layers), True),
    ("with rows of two new tokens", dict(target_modules=layers, trainable_token_indices=[3, 4]), False),
    ("with LoRA on the embedding", dict(target_modules=[*layers, "embed_tokens"]), False),
):
    dpo = first_log(DPOTrainer, DPOConfig, tuned(**adapter), sums)
    grpo = first_log(
        GRPOTrainer, GRPOConfig, tuned(**adapter), [{"prompt": row["prompt"]} for row in sums],
        settings=dict(beta=0.04, max_completion_length=4, num_generations=8),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
    )
    print(f"{what}: first DPO loss {dpo['loss']:.4f} (ln 2 is {math.log(2):.4f}), rewards of the chosen answers"
          f" {dpo['rewards/chosen']:+.3f}; first KL of GRPO {grpo['kl']:.3f}")
    same = abs(dpo["loss"] - math.log(2)) < 1e-4 and abs(dpo["rewards/chosen"]) < 1e-4 and grpo["kl"] < 1e-4
    far = abs(dpo["rewards/chosen"]) > 0.1 and grpo["kl"] > 0.1
    assert same if complete else far, "trl or peft has changed"
PYTHON
cd "$folder"
HF_HUB_OFFLINE=1 venv/bin/python -W ignore show.py
