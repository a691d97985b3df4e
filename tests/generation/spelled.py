"""A tokenizer that spells every sign and has a token for each of a few whole calls, so that a random model calls."""

from mlx_lm.tokenizer_utils import TokenizerWrapper
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

PROGRAM = "\n```python\nprint(6*7)\n```"
SIGNS = [*"0123456789", "<<12*7=", "<<x+=", ">>", "<", ">", PROGRAM, "a", "b", "\n", "`", "#", ".", "o", "u", "t", "p",
         "```", " ", "</s>"]  # fmt: skip
EOS = len(SIGNS) - 1


def spelled() -> TokenizerWrapper:
    backend = Tokenizer(models.BPE({sign: i for i, sign in enumerate(SIGNS)}, [], unk_token="a"))
    backend.add_tokens([sign for sign in SIGNS if len(sign) > 1 and sign != "</s>"])
    backend.decoder = decoders.Fuse()
    return TokenizerWrapper(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>"))
