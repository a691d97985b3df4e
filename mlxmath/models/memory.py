"""How much memory training takes, from the shape of the model alone, before anything is loaded.

Shapes: D hidden width, F feed-forward width, H and K query and key heads, W head width, V vocabulary, L positions.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlxmath.config.schema import RunConfig
from mlxmath.errors import MlxmathError
from mlxmath.models.measured import Counted, Measured
from mlxmath.runtime.device import DeviceInfo

HEAD_CHUNK_BYTES = 128 << 20
"""Logits that the loss holds at a time, in float32. (Matrix products of fewer than some 200 rows waste a CPU.)"""

QUANTIZED_HEAD_SLICE = 4_096
"""Rows of a quantized head that a CPU dequantizes at a time."""

_PAYS_OFF = {"cpu": 512, "metal": 4096, "cuda": 16384}
"""Padded tokens beyond which a larger micro-batch no longer makes a device faster."""

_LOGITS = 3
"""Arrays of logits that drawing a token holds."""

_OPTIMIZER_BYTES = {"adamw": 8, "adamw8bit": 2, "adafactor": 4, "lion": 4, "muon": 4}
"""State bytes a trained parameter (an upper bound for adafactor)."""


_WHOLE_LOGITS = 5
"""Arrays of all logits that a step holds where they are not made chunk by chunk."""


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a Llama-like model."""

    layers: int
    hidden: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_width: int
    vocab: int
    tied: bool

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "ModelShape":
        """Out of a config.json, whatever its sizes are called and however deep they lie.

        Of a mixture the feed-forward width is that of the experts that one token is given to. A model without heads of
        attention counts as one with the usual width of 64 each.

        Raises:
            MlxmathError: a size is missing or is none.
        """
        own = text_config(config)
        try:
            hidden, heads = _size(own, "hidden"), _size(own, "heads", 0)
            heads = heads or max(1, hidden // 64)
            return cls(
                layers=_size(own, "layers"),
                hidden=hidden,
                feed_forward=_feed_forward(own, hidden),
                heads=heads,
                kv_heads=_size(own, "kv_heads", 0) or heads,
                head_width=_size(own, "head_width", 0) or max(1, hidden // heads),
                vocab=_size(own, "vocab", 0) or _size(config, "vocab"),
                tied=bool(own.get("tie_word_embeddings", config.get("tie_word_embeddings", False))),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise MlxmathError(f"config.json lacks a size that memory is planned from: {error}.") from None

    def linears(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of a block's linear layers."""
        d, q, kv = self.hidden, self.heads * self.head_width, self.kv_heads * self.head_width
        return {
            "q_proj": (d, q), "k_proj": (d, kv), "v_proj": (d, kv), "o_proj": (q, d),
            "gate_proj": (d, self.feed_forward), "up_proj": (d, self.feed_forward),
            "down_proj": (self.feed_forward, d),
        }  # fmt: skip

    @property
    def block_parameters(self) -> int:
        """Of a block's linear layers."""
        return sum(inputs * outputs for inputs, outputs in self.linears().values())

    @property
    def cached_per_token(self) -> int:
        """Numbers of a token's keys and values in all blocks."""
        return 2 * self.layers * self.kv_heads * self.head_width


_NAMES = {
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_transformer_layers"),
    "hidden": ("hidden_size", "n_embd", "d_model", "model_dim", "hidden_dim", "dim"),
    "feed_forward": ("intermediate_size", "ffn_hidden_size", "n_inner", "ffn_dim", "hidden_dim_ffn"),
    "heads": ("num_attention_heads", "n_head", "n_heads", "num_heads", "num_query_heads"),
    "kv_heads": ("num_key_value_heads", "num_kv_heads", "n_kv_heads", "kv_n_heads"),
    "head_width": ("head_dim", "v_head_dim"),
    "vocab": ("vocab_size", "padded_vocab_size", "num_vocab"),
    "chosen": ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "top_k_experts", "moe_k"),
    "expert": ("moe_intermediate_size", "expert_ffn_hidden_size", "moe_ffn_hidden_size"),
    "shared": ("shared_expert_intermediate_size", "moe_shared_expert_intermediate_size"),
    "num_shared": ("n_shared_experts", "num_shared_experts", "num_shared_expert"),
}
"""What the architectures call their sizes."""
_OTHER_PARTS = ("vision", "audio", "speech", "visual", "image")


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a config.json that describes the language model: itself, or one inside an outer shell."""
    inner = [
        table
        for name, table in config.items()
        if isinstance(table, dict) and not any(part in name for part in _OTHER_PARTS)
        and all(any(alias in table for alias in _NAMES[size]) for size in ("layers", "hidden"))
    ]  # fmt: skip
    return inner[0] if inner else config


def _size(config: Mapping[str, Any], size: str, default: int | None = None) -> int:
    """The whole number of that meaning; of a list, with a number for each block, the largest."""
    found = next((config[name] for name in _NAMES[size] if config.get(name) is not None), default)
    if found is None:
        raise KeyError(_NAMES[size][0])
    return int(max(found)) if isinstance(found, list) and found else int(found)  # type: ignore[arg-type]


def _feed_forward(config: Mapping[str, Any], hidden: int) -> int:
    """Outputs of the feed-forward layers that a token goes through at the widest block."""
    dense = _size(config, "feed_forward", 0) or 4 * hidden
    chosen = _size(config, "chosen", 0)
    if not chosen:
        return dense
    expert = _size(config, "expert", 0) or dense
    shared = _size(config, "shared", 0) or expert * _size(config, "num_shared", 0)
    return max(chosen * expert + shared, dense if _size(config, "expert", 0) else 0)


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes by purpose at the fullest moment of a training step."""

    weights: int
    adapters: int
    """Those parameters that training adds, and the sums of their gradients over a window."""
    optimizer: int
    activations: int
    """What the forward pass keeps for the backward pass, or the gradients that take its place there."""
    working: int
    """The block or the head's chunk at hand."""
    reference: int = 0
    """The trained parameters as they were at the start; a teacher's weights."""
    drawing: int = 0
    """What drawing completions, or asking a teacher, takes before any of the last two."""

    @property
    def learning(self) -> int:
        """What a step takes and gives back."""
        return self.activations + self.working

    @property
    def steady(self) -> int:
        """What is held all the while."""
        return self.weights + self.adapters + self.optimizer + self.reference

    @property
    def total(self) -> int:
        """At the fullest moment."""
        return self.steady + max(self.learning, self.drawing)


@dataclass(frozen=True)
class Batching:
    """How much of a window is computed at once."""

    num_workers: int
    """Micro-batches."""
    tokens: int
    """Padded tokens in each."""


def slot_bytes(shape: ModelShape, itemsize: int, *, prompt: int, own: int, group_size: int = 1) -> int:
    """What decoding one sequence more takes: its keys and values, its share of its prompt's, its logits.

    Args:
        shape: the model's sizes.
        itemsize: bytes of a number.
        prompt: tokens that `group_size` sequences hold together.
        own: tokens that it holds alone.
        group_size: completions of a prompt.
    """
    cached = shape.cached_per_token * itemsize * (own + prompt / group_size)
    copied = 2 / shape.layers  # where memory for keys and values grows, a block or two have it twice
    return int(cached * (1 + copied)) + _LOGITS * 4 * shape.vocab


def plan_memory(
    of: Counted, config: RunConfig, *, itemsize: int, batching: Batching, longest: int, prompt: int = 0,
    cached_per_token: int = 0, rows_each: int = 1, group_size: int = 1,
) -> MemoryPlan:  # fmt: skip
    """The memory of a training step. Where a micro-batch could not be measured, it is left out.

    Args:
        of: what is counted and measured.
        config: optimizer, batches.
        itemsize: bytes of an activation and of an unquantized weight.
        batching: micro-batches at once, and their size.
        longest: positions of the longest row.
        prompt: those of its prompt, where that is computed once for a group of completions, and again in the
            backward pass.
        cached_per_token: numbers of a token's keys and values in all blocks, where there is a prompt.
        rows_each: rows of `longest` positions in each of what batch sizes count: 2 of pairs, which stay together.
        group_size: completions of a prompt.
    """
    training, workers, measured = config.training, batching.num_workers, of.measured
    rows = training.batch_size * training.grad_accumulation_steps
    each = rows_each * longest
    tokens = max(each, training.batch_size * each if training.batching == "pad" else batching.tokens)
    # then there are sums besides the gradients
    sums = workers if rows * each > workers * tokens else 0
    tokens = min(tokens, max(1, -(-rows // workers)) * each)
    added = 0 if training.full else 1
    gradients = of.trained * 4
    activations: float = gradients
    working: float = 0
    if isinstance(measured, Measured):
        own, num_prompts = longest - prompt, 0
        if prompt:
            num_prompts = min(tokens // prompt, rows // group_size // workers) or 1
            tokens = own * max(1, (tokens - 2 * num_prompts * prompt // 3) // own)
        if measured.packed:
            longest = tokens
        kept, block = measured.kept.at(tokens, longest), measured.working.at(tokens, longest)
        if prompt:  # their blocks' inputs, keys and values, and the gradients of these; later a block of theirs, again
            inputs = measured.num_layers * (measured.head_width or 0)
            kept_of_rows, of_prompts = kept, num_prompts * prompt
            kept += of_prompts * (inputs + 2 * cached_per_token) * itemsize
            again = measured.kept.at(of_prompts, prompt) / measured.num_layers + measured.working.at(of_prompts, prompt)
            block = max(block, again - kept_of_rows)
        if itemsize == 2:  # a GPU may dequantize a layer's weight for its product
            block += measured.unpacked_bytes
        activations = max(kept, gradients)
        working = max(block, _head_bytes(measured, tokens, itemsize, smoothed=config.sft.label_smoothing > 0))
    offloads = config.runtime.offload == "on"  # then what a step keeps is that of all its micro-batches
    return MemoryPlan(
        weights=of.at_hand if offloads else of.weights,
        adapters=of.trained * 4 * (added + sums),
        optimizer=of.trained * _OPTIMIZER_BYTES[training.optimizer],
        activations=int(activations * (max(workers, -(-rows * longest // tokens)) if offloads else workers)),
        working=int(workers * working),
    )


def _head_bytes(of: Measured, tokens: int, itemsize: int, *, smoothed: bool) -> int:
    """Of the logits at hand (with smoothed labels, twice), and of the hidden states' gradients."""
    if of.head_width is None:
        return _WHOLE_LOGITS * 4 * tokens * of.vocab_size
    rows = min(tokens, max(1, HEAD_CHUNK_BYTES // (4 * of.vocab_size)))
    head = (2 if smoothed else 1) * 4 * rows * of.vocab_size + 4 * tokens * of.head_width * itemsize
    if of.head_is_packed and itemsize == 4:  # a CPU makes logits in slices, out of weights unpacked slice by slice
        head += 4 * rows * of.vocab_size + 4 * itemsize * min(QUANTIZED_HEAD_SLICE, of.vocab_size) * of.head_width
    return head


def choose_batching(config: RunConfig, device: DeviceInfo, longest: int, of: Counted | None) -> Batching:
    """As many micro-batches at once, and as many padded tokens in each, as pay off and fit half of the memory left.

    Args:
        config: the run's; what it sets is kept to.
        device: where it runs.
        longest: positions of the longest row.
        of: see `plan_memory`; None for a model that cannot be counted.
    """
    training, most = config.training, _PAYS_OFF[device.backend]
    at_hand = training.grad_accumulation_steps * (1 if training.batching == "pad" else training.batch_size)
    busy = min(device.num_workers, at_hand)
    counts = [busy, 1] if 2 * busy > device.num_workers else [1]  # one worker uses all cores, though not as well
    if config.runtime.workers is not None:
        counts = [config.runtime.workers]
    sizes = [most >> i for i in range(8) if most >> i >= 256]
    choices = [  # workers together need no larger micro-batches than one alone
        Batching(count, tokens)
        for count in counts
        for tokens in ([training.max_batch_tokens] if training.max_batch_tokens else sizes[min(count - 1, 1) :])
    ]
    if of is None or isinstance(of.measured, str):
        return choices[-1]  # the smallest: what it takes is not known
    itemsize = 4 if device.compute_dtype == "float32" else 2
    for choice in choices:
        found = plan_memory(of, config, itemsize=itemsize, batching=choice, longest=longest)
        if found.learning <= (device.memory_bytes - found.steady) / 2:
            return choice
    return choices[-1]
