#!/usr/bin/env bash
# transformers 5.24.0: a tokenizer_config.json that names GPT2Tokenizer, as that of SmolLM2 does, replaces the pre-tokenizer of the
# tokenizer.json beside it, so that the same files give other tokens than the tokenizers library does. No error, no warning.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet transformers==5.24.0
cat > "$folder/show.py" <<'PYTHON'
import json
import tempfile
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

written = Tokenizer(models.BPE())
written.pre_tokenizer = pre_tokenizers.Sequence(
    [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
)
written.decoder = decoders.ByteLevel()
trainer = trainers.BpeTrainer(
    vocab_size=400, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
)
written.train_from_iterator(["Tom has 12 pens.  He buys  3 more,  45 in all."] * 50, trainer)
text = "He buys  3 pens"
expected = written.encode(text).tokens
print("tokenizer.json says:", expected)
for name, same in (("PreTrainedTokenizerFast", True), ("GPT2Tokenizer", False), ("GPT2TokenizerFast", False)):
    with tempfile.TemporaryDirectory() as folder:
        written.save(f"{folder}/tokenizer.json")
        settings = {"tokenizer_class": name, "eos_token": "<|endoftext|>"}
        Path(folder, "tokenizer_config.json").write_text(json.dumps(settings))
        found = AutoTokenizer.from_pretrained(folder).tokenize(text)
    print(f"with {name}:", found)
    assert (found == expected) == same, "transformers has changed"
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
