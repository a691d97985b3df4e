"""How the tokenizers that llama.cpp gives names to cut text before merges.

The patterns are those of the tokenizers' own tokenizer.json where these are known (in llama.cpp upper and lower case
are ASCII's alone), and for DeepSeek's "one letter of either case" a class of Unicode instead of a list of its members.
"""

from dataclasses import dataclass

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_REST_OF_O200K = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*")
_LLAMA3 = (rf"{_WORDS}|\p{{N}}{{1,3}}|{_REST}",)
_QWEN2 = (rf"{_WORDS}|\p{{N}}|{_REST}",)
_TEKKEN = (rf"{_CASED[0]}|{_CASED[1]}|\p{{N}}|{_REST_OF_O200K}",)
_O200K = (
    rf"{_CASED[0]}{_CONTRACTIONS}?|{_CASED[1]}{_CONTRACTIONS}?|\p{{N}}{{1,3}}|{_REST_OF_O200K}",
)  # fmt: skip
_CJK = "[一-龥ࠀ-一가-퟿]+"


@dataclass(frozen=True)
class Cuts:
    """How text is cut before merges.

    Attributes:
        patterns: each one cuts what the ones before have left.
        gpt2: whether GPT-2's pattern cuts after them.
        whole_words: a piece that is a token is taken as it is, whatever its merges.
        adds_bos: whether texts begin with the beginning-of-text token if the file does not say.
        normalizer: of the original tokenizer.
    """

    patterns: tuple[str, ...] = ()
    gpt2: bool = False
    whole_words: bool = False
    adds_bos: bool = False
    normalizer: str | None = None


_DIGITS = Cuts((r"\p{N}",), gpt2=True)
PRE_TOKENIZERS = {
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), _DIGITS),
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "exaone4"), Cuts(gpt2=True)),
    "qwen2": Cuts(_QWEN2, normalizer="NFC"),
    **dict.fromkeys(("deepseek-r1-qwen", "stablelm2", "megrez", "hunyuan"), Cuts(_QWEN2)),
    **dict.fromkeys(
        ("llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral"), Cuts(_LLAMA3, whole_words=True, adds_bos=True)
    ),
    **dict.fromkeys(("dbrx", "smaug-bpe", "glm4", "chatglm-bpe"), Cuts(_LLAMA3)),
    "tekken": Cuts(_TEKKEN, whole_words=True, adds_bos=True),
    **dict.fromkeys(("gpt-4o", "llama4"), Cuts(_O200K)),
    "deepseek-llm": Cuts(
        ("[\r\n]", r"\s?[\p{Lu}\p{Ll}\p{Lt}]+", r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", _CJK, r"\p{N}+")
    ),
    "deepseek-coder": Cuts(("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, r"\p{N}")),
    "deepseek-v3": Cuts(
        (
            r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+",
            r"[!-/:-@\[-`{-~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|"
            r"\s+(?!\S)|\s+",
        )
    ),
}  # fmt: skip
"""`tokenizer.ggml.pre` -> what it means; the patterns are those of the tokenizers that llama.cpp gave these names."""
