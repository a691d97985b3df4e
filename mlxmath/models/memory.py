"""How much memory training takes, from the shape of the model alone, before anything is loaded.

Shapes: D hidden width, F feed-forward width, H and K query and key heads, W head width, V vocabulary, L positions.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlxmath.backends.base import DeviceInfo
from mlxmath.config.schema import LoraConfig, RunConfig
from mlxmath.errors import MlxmathError

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


_USUAL_TARGETS = ("q_proj", "v_proj")
"""What a Llama-like model's adapters are on where no targets are given."""


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
    def parameters(self) -> int:
        """Of the whole model (biases of single layers left out)."""
        embeddings = self.vocab * self.hidden * (1 if self.tied else 2)
        return self.layers * (self.block_parameters + 2 * self.hidden) + embeddings + self.hidden

    @property
    def kept_per_token(self) -> int:
        """Numbers that a block keeps of a token: input, state after attention, q, its result, k, v, gate, up."""
        return 2 * self.hidden + 2 * (self.heads + self.kv_heads) * self.head_width + 2 * self.feed_forward

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
class Counted:
    """What of a model is counted, not estimated."""

    weights: int
    """Bytes of its parameters as they are held while training."""
    trained: int
    """Parameters that train."""


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
    """The trained parameters as they were at the start."""
    drawing: int = 0
    """What drawing completions takes, before any of the last two."""

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


def trained_parameters(shape: ModelShape, lora: LoraConfig, *, full: bool) -> int:
    """Parameters that train: the adapters', or the blocks' own."""
    layers = shape.layers if lora.num_layers in (-1, 0) else min(shape.layers, lora.num_layers)
    if full:
        return layers * (shape.block_parameters + 2 * shape.hidden)
    from fnmatch import fnmatchcase

    chosen = {
        name: size
        for name, size in shape.linears().items()
        if any(fnmatchcase(name, target.rsplit(".", 1)[-1]) for target in lora.targets or _USUAL_TARGETS)
    }
    return layers * sum(lora.rank * (inputs + outputs) for inputs, outputs in chosen.values())


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
    shape: ModelShape, config: RunConfig, *, itemsize: int, batching: Batching, longest: int, prompt: int = 0,
    of: Counted | None = None,
) -> MemoryPlan:  # fmt: skip
    """The memory of a training step.

    Args:
        shape: the model's sizes.
        config: quantization, adapters, optimizer, checkpointing.
        itemsize: bytes of an activation and of an unquantized weight.
        batching: micro-batches at once, and their size.
        longest: positions of the longest row.
        prompt: those of its prompt, where that is computed once for a group of GRPO's completions, and again in the
            backward pass.
        of: the counted weights and what trains of them; without it a Llama's are estimated from its shape.
    """
    bits, every = config.model.quantize, config.training.grad_checkpoint
    per_weight = itemsize if bits is None else bits / 8 + 2 * itemsize / config.model.group_size
    trained = of.trained if of else trained_parameters(shape, config.lora, full=config.training.full)
    rows = config.training.batch_size * config.training.grad_accumulation_steps
    is_split = rows * longest > batching.num_workers * batching.tokens  # then there are sums besides the gradients
    sums = batching.num_workers if is_split else 0
    added = 0 if config.training.full else 1
    own = longest - prompt
    tokens = max(batching.tokens, own)
    num_prompts = 0
    if prompt:
        num_prompts = min(tokens // prompt, rows // config.grpo.num_generations // batching.num_workers) or 1
        tokens = own * max(1, (tokens - 2 * num_prompts * prompt // 3) // own)
    if config.training.batching == "pack":
        own = longest = tokens
    checkpointed = -(-shape.layers // every) if every else 0
    kept = (shape.layers - checkpointed) * shape.kept_per_token + checkpointed * shape.hidden
    scores = max(1, tokens // own) * shape.heads * own * longest
    block = max(4 * tokens * shape.feed_forward, 2 * scores + 4 * tokens * shape.hidden)
    if checkpointed:
        block += tokens * shape.kept_per_token
    if bits is not None and itemsize == 2:  # a GPU may dequantize a layer's weight for its product
        block += 2 * shape.hidden * shape.feed_forward
    head_rows = min(tokens, max(1, HEAD_CHUNK_BYTES // (4 * shape.vocab)))
    head = 4 * head_rows * shape.vocab + 4 * tokens * shape.hidden * itemsize
    if bits is not None and itemsize == 4:  # a CPU makes logits in slices, out of weights unpacked slice by slice
        head += 4 * head_rows * shape.vocab + 4 * itemsize * QUANTIZED_HEAD_SLICE * shape.hidden
    # of prompts: their blocks' inputs, keys and values, and the gradients of these; later a block of theirs, again
    of_prompts = num_prompts * prompt * (shape.layers * shape.hidden + 2 * shape.cached_per_token)
    again = num_prompts * prompt * (shape.kept_per_token + 4 * shape.feed_forward + 2 * shape.heads * prompt)
    block = max(block, again - tokens * kept)
    return MemoryPlan(
        weights=of.weights if of else int(shape.parameters * per_weight),
        adapters=trained * 4 * (added + sums),
        optimizer=trained * _OPTIMIZER_BYTES[config.training.optimizer],
        activations=int(batching.num_workers * max((tokens * kept + of_prompts) * itemsize, trained * 4)),
        working=int(batching.num_workers * max(block * itemsize, head)),
    )


def choose_batching(
    model_config: Mapping[str, Any], config: RunConfig, device: DeviceInfo, longest: int, of: Counted | None = None
) -> Batching:
    """As many micro-batches at once, and as many padded tokens in each, as pay off and fit half of the memory left.

    Args:
        model_config: config.json.
        config: the run's; what it sets is kept to.
        device: where it runs.
        longest: positions of the longest row.
        of: see `plan_memory`.
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
    try:
        shape = ModelShape.from_config(model_config)
    except MlxmathError:
        return choices[-1]  # the smallest: what it takes is not known
    itemsize = 4 if device.compute_dtype == "float32" else 2
    for choice in choices:
        found = plan_memory(shape, config, itemsize=itemsize, batching=choice, longest=longest, of=of)
        if found.learning <= (device.memory_bytes - found.steady) / 2:
            return choice
    return choices[-1]
