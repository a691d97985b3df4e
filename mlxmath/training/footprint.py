"""How much memory a micro-batch takes, measured on a few blocks of a model whose weights are not there.

The weights are random, and few. The way that training takes computes a few short rows, with one block of each kind and
then with one more of each. What the allocator held meanwhile tells what a block keeps of a row and what it takes while
it is at hand; longer rows and all blocks follow from that. The head's chunks are known (`mlxmath.models.memory`).

Shapes: B rows, L positions, D hidden width, N target positions.
"""

import gc
import json
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlxmath.config.schema import RunConfig
from mlxmath.data.batch import Batch
from mlxmath.errors import MlxmathError
from mlxmath.models.blocks import kinds_of
from mlxmath.models.calls import ERRORS
from mlxmath.models.kernels import kernels_for
from mlxmath.models.kernels.long_rows import BLOCK
from mlxmath.models.linear import left_to_mlx
from mlxmath.models.linear_ce import LossHead
from mlxmath.models.load import suit
from mlxmath.models.lora.inject import adapter_arrays, inject, open_blocks
from mlxmath.models.lora.layers import EXPERTS
from mlxmath.models.lora.targets import first_block
from mlxmath.models.measured import Counted, Growth, Measured, Parabola
from mlxmath.models.offload import bytes_at_hand
from mlxmath.models.skeleton import VOCABULARY, embody, own_arrays, skeleton, unpacked_bytes, weight_bytes
from mlxmath.models.trust import apart
from mlxmath.runtime.device import DeviceInfo, machine_memory_bytes
from mlxmath.training.gradients import AutodiffGradients, BlockwiseGradients, choose_gradients
from mlxmath.weights.packing import planned_packing

_FLOPS = 1.2e11
"""That all passes may take together: a second or so on two cores."""
_KEPT_BYTES = 32 << 20
"""That the longest row's blocks may keep: what makes small operations out of long rows takes time, too."""
_UNIT = {"cpu": 16, "metal": 16, "cuda": 128}
"""Lengths are multiples of this, at which attention is computed as in training."""
_SHORTEST = 32
"""The shortest of four lengths, each twice the one before, if the bounds allow it."""
_LONGEST, _COUNTS, _SHARE = 1024, 0.05, 1 / 8
"""To this length it is seen whether what is kept goes on growing with the pairs of tokens (it does not in chunks), if
they take more than so much of what the tokens take, and fit into this share of the machine's memory."""
_REPEATS = 2
"""Where one array is freed while the next is asked for, block by block, the peak is not always the same."""
_ACTIVE_EXPERTS = 8
"""Experts that a token may be given to, for `_FLOPS`."""
KNOWN: dict[tuple[Any, ...], Counted] = {}
"""What has been measured in this process, by what it depends on."""


def measured(model_config: Mapping[str, Any], config: RunConfig, device: DeviceInfo) -> Counted:
    """Count a model's weights and what trains of them, and measure what a micro-batch takes.

    `model_config` is config.json. MLX's default device must be of the device's backend. If it cannot be tried,
    `measured` of what is returned says why.

    Raises:
        InputError: a target matches nothing, or what is asked for cannot be trained.
        MlxmathError: config.json describes no model that mlx_lm can build.
    """
    base, training = config.model, config.training
    asked = (
        json.dumps(dict(model_config), sort_keys=True, default=str), config.lora.model_dump_json(), base.quantize,
        base.group_size, training.full, training.grad_checkpoint, training.batching == "pack", device.backend,
        device.compute_dtype,
    )  # fmt: skip
    if asked not in KNOWN:
        KNOWN[asked] = _measured(json.loads(asked[0]), config, device)
    return KNOWN[asked]


def _measured(model_config: dict[str, Any], config: RunConfig, device: DeviceInfo) -> Counted:
    gc.collect()  # what is freed meanwhile would be taken for the trial's
    state = mx.array(mx.random.state[0])
    mx.eval(state)
    lora, training = config.lora, config.training
    model = skeleton(model_config, device.compute_dtype, planned_packing(config.model))
    weights, at_hand = weight_bytes(model), bytes_at_hand(model)
    if training.full:
        open_blocks(model, lora.num_layers)
    else:
        inject(model, lora)
    trained = sum(array.size for array in adapter_arrays(model).values())
    try:
        with apart():
            trial = _Trial(model, lora.num_layers, device, packed=training.batching == "pack")
            found = trial.measured(training.grad_checkpoint)
    except (MlxmathError, RuntimeError, *ERRORS) as error:
        return Counted(weights, trained, " ".join(str(error).split())[:200], at_hand)
    finally:
        mx.random.state[0][:] = state
        mx.clear_cache()
    return Counted(weights, trained, found, at_hand)


_Gradients = BlockwiseGradients | AutodiffGradients
_Sizes = tuple[float, float]
"""Bytes kept, and how many more are taken at most."""


class _Left(Exception):  # noqa: N818
    """The way out of a pass."""


class _Objective:
    """In the place of the loss: Σ hidden², and what is in memory where the head would have its turn."""

    def __init__(self, *, eager: bool) -> None:
        self._eager = eager
        self.ballast = 0
        """Numbers (float32) that a compiled step, at which nobody can look, holds at that point."""
        self.held = 0
        """Bytes in memory there, if it is not compiled."""
        self.leaves = False
        """Whether that is all that is wanted."""

    def __call__(self, outputs_NX: mx.array, batch: Batch, head: LossHead) -> mx.array:  # noqa: ARG002
        """See `mlxmath.training.gradients.Loss`."""
        if self._eager:
            mx.eval(outputs_NX)
            self.held = mx.get_active_memory()
            if self.leaves:
                raise _Left
            return mx.square(outputs_NX.astype(mx.float32)).sum()

        @mx.custom_function
        def loss_and_gradient(x: mx.array) -> tuple[mx.array, mx.array]:
            total = mx.square(x.astype(mx.float32)).sum()
            held = mx.contiguous(mx.broadcast_to(total, (max(1, self.ballast),))).sum()
            return total, (2 * x + (0 * held).astype(x.dtype))

        @loss_and_gradient.vjp
        def loss_and_gradient_vjp(_: Any, cotangents: Any, outputs: Any) -> mx.array:
            return (cotangents[0] * outputs[1]).astype(outputs[1].dtype)

        total: mx.array = loss_and_gradient(outputs_NX)[0]
        return total


class _Trial:
    """A skeleton whose last `num_layers` blocks train, with few weights, and passes over a few of its blocks."""

    def __init__(self, model: nn.Module, num_layers: int, device: DeviceInfo, *, packed: bool) -> None:
        self._model, self._unit, self._packed = model, _UNIT[device.backend], packed
        with left_to_mlx():
            self._vocab_size: int = model(mx.zeros((1, 2), mx.int32)).shape[-1]
        self._unpacked_bytes = max(map(unpacked_bytes, model.modules()))
        self._kinds = kinds_of(model.layers)
        self._numbers = range(first_block(model, num_layers), len(model.layers))
        first = {self._kinds[number]: number for number in reversed(self._numbers)}
        self._few: dict[Hashable, int] = dict(sorted(first.items(), key=lambda pair: pair[1]))
        """The first block of each kind, in the model's order."""
        self._frozen = {id(module): set(module._no_grad) for block in model.layers for module in block.modules()}
        embody(model, self._vocab_size)
        suit(model, device.compute_dtype)
        self._kernels = kernels_for(device)
        self._objective = _Objective(eager=not self._kernels.compiles)

    def measured(self, every: int) -> Measured:
        """What a micro-batch takes, every n-th block checkpointed (0: none)."""
        try:
            return self._of_few(every)
        except ERRORS:  # blocks that take more from one another than hidden states
            return self._of_all(every)

    def _of_few(self, every: int) -> Measured:
        """From the first two blocks of each kind."""
        again = {number for number in self._numbers if every and number % every == 0}
        parts = [(0, set(self._numbers) - again)] if every != 1 else []
        parts += [(1, again)] if again else []
        ways = [(self._gradients(each), Counter(self._kinds[n] for n in numbers)) for each, numbers in parts]
        shortest = self._shortest(ways[0][0])
        lengths = [shortest << i for i in range(4)]
        found = [[self._kept(*way, length, whole=way is ways[0]) for way in ways] for length in lengths]
        kept = [sum(each for each, _ in of_length) for of_length in found]
        working = [max(each for _, each in of_length) for of_length in found]
        by_block = ways[0][0].takes_parts
        bound = BLOCK if by_block else float("inf")  # attention goes by blocks, too
        some = sorted({*self._few.values(), self._numbers[-1]})  # one that passes a gradient on to another
        more = [2 * BLOCK, 4 * BLOCK] if by_block and 36 * BLOCK * self._parameters * len(some) < _FLOPS else []
        working += [max(self._pass(each, some, length)[1] for each, _ in ways) for length in more]
        of_working = Growth((*lengths[1:], *more), tuple(working[1:]), bound)  # the shortest ones tell least
        while self._may_differ(Parabola.through(lengths[-3:], kept[-3:]), 2 * lengths[-1]):
            lengths.append(2 * lengths[-1])
            kept.append(sum(self._kept(*way, lengths[-1], whole=way is ways[0], alone=True)[0] for way in ways))
        return self._result(ways[0][0], Growth(tuple(lengths), tuple(kept)), of_working)

    def _may_differ(self, kept: Parabola, length: int) -> bool:
        """Whether pairs of tokens count, so that it is seen from longer rows alone if there are chunks, and may be."""
        flops = 2 * length * self._parameters * len(self._few) * (len(self._few) + 1)
        fits = length <= _LONGEST and flops < _FLOPS and kept.at(length) < _SHARE * machine_memory_bytes()
        return fits and kept.pair * length > _COUNTS * kept.token

    def _of_all(self, every: int) -> Measured:
        gradients = self._gradients(every)
        lengths = [self._unit * i for i in (1, 2, 4)]
        found = [self._pass(gradients, self._numbers, length) for length in lengths]
        kept, working = (Growth(tuple(lengths), sizes) for sizes in zip(*found, strict=True))
        return self._result(gradients, kept, working)

    def _result(self, gradients: _Gradients, kept: Growth, working: Growth) -> Measured:
        head = gradients.head.layer if gradients.head else None
        packed = head is not None and hasattr(head, "bits")
        return Measured(
            kept, working, vocab_size=self._vocab_size,
            head_width=head and (head.weight.shape[-1] * 32 // (head.bits if packed else 32)), head_is_packed=packed,
            num_layers=len(self._numbers), packed=self._packed, by_block=gradients.takes_parts,
            unpacked_bytes=self._unpacked_bytes,
        )  # fmt: skip

    def _gradients(self, every: int) -> _Gradients:
        self._compute(self._numbers)
        kernels, compiled = self._kernels, self._kernels.compiles
        way = choose_gradients(self._model, self._objective, kernels, compiled=compiled, checkpoint_every=every)
        self._packed = self._packed and not way.cannot_pack()
        return way

    def _shortest(self, gradients: _Gradients) -> int:
        """The first length within the bounds; which it is depends on no clock."""
        flops = 6 * self._parameters * (_REPEATS * len(self._few) + len(self._few) ** 2)
        kept, _ = self._pass(gradients, list(self._few.values()), self._unit)
        most = min(_FLOPS / (15 * flops + 1), _KEPT_BYTES / (8 * kept / self._unit + 1))
        return self._unit * max(1, min(int(most), max(_SHORTEST, self._unit)) // self._unit)

    @property
    def _parameters(self) -> float:
        """Numbers of a block's weights that a token is multiplied by, the mean over the kinds."""
        return sum(
            array.size if not isinstance(module, EXPERTS) else array[0].size * min(len(array), _ACTIVE_EXPERTS)
            for number in self._few.values()
            for module in self._model.layers[number].modules()
            for array in own_arrays(module).values()
            if array.ndim > 1
        ) / len(self._few)  # fmt: skip

    def _kept(
        self, gradients: _Gradients, counts: Counter[Hashable], length: int, *, whole: bool, alone: bool = False
    ) -> _Sizes:  # fmt: skip
        """Bytes that so many blocks of each kind keep, `whole` with what is kept beside; and what more one takes.

        `alone`: without the backward pass, where that can be.
        """
        self._objective.leaves, few = alone and not self._kernels.compiles, self._few
        repeats = _REPEATS if gradients.takes_parts and length > self._unit else 1
        base, working = self._pass(gradients, list(few.values()), length, repeats)
        total = base if whole else 0.0
        for kind, first in few.items():
            count = counts[kind] - whole
            second = next((n for n in self._numbers if n > first and self._kinds[n] == kind), None)
            if count and second is not None:
                more, taken = self._pass(gradients, sorted([*few.values(), second]), length)
                total += count * (more - base)
                working = max(working, taken)
            elif count and len(few) > 1:
                less, _ = self._pass(gradients, [n for n in few.values() if n != first], length)
                total += count * (base - less)
            else:
                total += count * base
        return total, working

    def _pass(self, gradients: _Gradients, numbers: Sequence[int], length: int, repeats: int = 1) -> _Sizes:
        """Bytes held at the loss by a row of some blocks, and how many more at most before or after."""
        places = mx.arange(length)  # a row of which every position counts; packed, of two texts
        texts = (places >= length // 2).astype(mx.int32)[None] if self._packed else None
        batch = Batch(
            places[None] % min(VOCABULARY, self._vocab_size), places, mx.zeros_like(places), mx.ones(places.shape), (),
            length, length, texts_BL=texts,
        )  # fmt: skip
        mx.eval([array for array in vars(batch).values() if isinstance(array, mx.array)])
        self._compute(numbers)

        def peak() -> tuple[int, int]:
            before = mx.get_active_memory()
            mx.reset_peak_memory()
            with suppress(_Left):
                mx.eval(gradients.of_blocks(numbers)(batch))
            mx.synchronize()
            return mx.get_peak_memory() - before, self._objective.held - before

        most, kept = map(max, zip(*(peak() for _ in range(repeats)), strict=True))
        if self._kernels.compiles:
            self._objective.ballast = most
            kept = peak()[0] - 4 * most
            self._objective.ballast = 0
        return kept, most - kept

    def _compute(self, numbers: Sequence[int]) -> None:
        """Let only what is trained of these blocks have gradients."""
        for number, block in enumerate(self._model.layers):
            block.freeze()
            for module in block.modules() if number in numbers else ():
                module._no_grad = set(self._frozen[id(module)])
