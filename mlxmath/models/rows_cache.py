"""Keys and values of rows that are decoded on a CPU, in NumPy's memory: a row that joins or leaves moves no other.

Like `mlxmath.models.shared_prefix.SharedPrefixCache`, for rows of any lengths, and with attention on all cores.

Shapes: B rows, H query heads, K key heads, Q = H / K, D head width, G prompts of P positions, L own positions,
X = P + L.
"""

from collections.abc import Sequence

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlxmath.models.kernels.cpu import CpuKernels, Floats, views
from mlxmath.models.shared_prefix import Groups

_ROOM = 64
"""Own positions that there is memory for at least. More of it is taken twofold, and no page of it before it is used."""


class RowKernels(CpuKernels):
    """The device's, and attention of single tokens."""

    def attend(
        self, q_BKQD: Floats, prompts: Sequence[Floats], own: Sequence[Floats], groups: Groups, added_B11X: Floats
    ) -> Floats:
        """softmax(q kᵀ + added) v over the keys and values of prompts (G, K, P, D) and the rows' own (B, K, L, D)."""
        (k_GKPD, v_GKPD), (k_BKLD, v_BKLD) = prompts, own
        num_before = k_GKPD.shape[2]
        scores = np.empty((*q_BKQD.shape[:-1], added_B11X.shape[-1]), np.float32)
        out = np.empty((*q_BKQD.shape[:-1], v_BKLD.shape[3]), np.float32)

        def of_prompts(a_BKQX: Floats, b_GKXY: Floats) -> Floats:
            a = groups.by_prompt(a_BKQX)
            found = np.empty((*a.shape[:-1], b_GKXY.shape[-1]), np.float32)

            def product(i: int, j: int) -> None:
                np.matmul(a[i:j], b_GKXY[i:j], out=found[i:j])

            self._parallel(product, len(a), len(a))
            return groups.by_row(found)

        def rows(i: int, j: int) -> None:
            s = scores[i:j]
            if groups.are_rows:
                np.matmul(q_BKQD[i:j], k_GKPD[i:j].swapaxes(-1, -2), out=s[..., :num_before])
            np.matmul(q_BKQD[i:j], k_BKLD[i:j].swapaxes(-1, -2), out=s[..., num_before:])
            s += added_B11X[i:j]
            s -= s.max(-1, keepdims=True)
            np.exp(s, out=s)
            s /= s.sum(-1, keepdims=True)
            np.matmul(s[..., num_before:], v_BKLD[i:j], out=out[i:j])
            if groups.are_rows:
                out[i:j] += s[..., :num_before] @ v_GKPD[i:j]

        if not groups.are_rows:
            scores[..., :num_before] = of_prompts(q_BKQD, k_GKPD.swapaxes(-1, -2))
        self._parallel(rows, len(out), len(out))
        if not groups.are_rows:
            out += of_prompts(scores[..., :num_before], v_GKPD)
        return out


class _Memory:
    """Keys and values (N, K, L, D): of `count` rows and `width` positions, and room for more of both."""

    def __init__(self, *like: mx.array) -> None:
        self.count = self.width = 0
        self._arrays = [np.zeros((0, array.shape[1], 0, array.shape[3]), np.float32) for array in like]

    @property
    def both(self) -> list[Floats]:
        """What is in use."""
        return [array[: self.count, :, : self.width] for array in self._arrays]

    def resize(self, count: int, width: int, room: int = 0) -> None:
        """Have so many rows and positions in use; new ones are zero or anything, but finite.

        Args:
            count: rows.
            width: positions.
            room: positions to take memory for if there is not enough.
        """
        rows, heads, positions, _ = self._arrays[0].shape
        if count > rows or width > positions:
            rows, positions = max(count, rows), max(width, room, positions)
            for index, old in enumerate(self.both):
                larger = np.zeros((rows, heads, positions, old.shape[3]), np.float32)
                larger[: old.shape[0], :, : old.shape[2]] = old
                self._arrays[index] = larger
        self.count, self.width = count, width

    def append(self, both: Sequence[Floats]) -> None:
        """Take in more rows."""
        first, (count, _, width, _) = self.count, both[0].shape
        self.resize(first + count, max(self.width, width))
        for array, new in zip(self._arrays, both, strict=True):
            array[first : self.count, :, :width] = new

    def keep(self, rows: Sequence[int]) -> None:
        """Keep these rows; only those are copied that are to stand elsewhere."""
        wanted = np.array(rows, np.intp)
        moved = np.flatnonzero(wanted != np.arange(len(wanted)))
        for array in self.both:
            array[moved] = array[wanted[moved]]
        self.count = len(wanted)


class RowsCache:
    """A layer's keys and values: prompts' (G), and the rows' own (B), which begin with the last token of the prompt.

    Args:
        kernels: compute attention.
        parts: keys and values of all but the prompts' last tokens.
        lengths_G: of the prompts without them.
        groups: of the rows.
        most: own positions that a row may need.
    """

    def __init__(
        self,
        kernels: RowKernels,
        parts: Sequence[Sequence[mx.array]],
        lengths_G: NDArray[np.intp],
        groups: Groups,
        most: int,
    ) -> None:
        self._kernels, self._lengths_G, self._groups, self._most = kernels, lengths_G, groups, most
        self._prompts, self._own = _Memory(*parts[0]), _Memory(*parts[0])
        self._prompts.resize(0, int(lengths_G.max()))
        for part in parts:
            self._prompts.append(views(*part))
        self._counts_B = np.zeros(len(groups.of_rows), np.intp)

    @property
    def offset(self) -> mx.array:
        """(B,) the position of each row's next token."""
        return mx.array(self._lengths_G[self._groups.of_rows] + self._counts_B, mx.int32)

    def make_mask(self, length: int, return_array: bool = False, window_size: int | None = None) -> mx.array:  # noqa: ARG002
        """(B, 1, 1, P + L): what of its prompt and of its own tokens the next token of each row sees."""
        assert length == 1
        lengths_B1, counts_B1 = self._lengths_G[self._groups.of_rows][:, None], self._counts_B[:, None]
        of_prompt_P, own_L = np.arange(self._prompts.width)[None], np.arange(counts_B1.max() + 1)[None]
        mask = np.concatenate([of_prompt_P < lengths_B1, own_L <= counts_B1], axis=1)
        if window_size is not None:
            first_B1 = lengths_B1 + counts_B1 - window_size
            mask &= np.concatenate([of_prompt_P > first_B1, own_L + lengths_B1 > first_B1], axis=1)
        return mx.array(mask[:, None, None])

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """The new ones alone, which are noted."""
        self._new = keys, values
        return keys, values

    def attend(self, q_BH1D: mx.array, scale: float, mask: mx.array) -> mx.array:
        """(B, H, 1, D): softmax(scale · q kᵀ) v over both segments."""
        q_BH1D, *new, mask = views(q_BH1D * scale, *self._new, mask)
        width = int(self._counts_B.max()) + 1
        self._own.resize(len(q_BH1D), width, min(self._most, max(_ROOM, 2 * width)))
        for array, one in zip(self._own.both, new, strict=True):
            array[np.arange(len(one)), :, self._counts_B] = one[:, :, 0]
        self._counts_B = self._counts_B + 1
        added = np.where(mask, np.float32(0), np.float32(-np.inf))
        q_BKQD = q_BH1D.reshape(len(q_BH1D), new[0].shape[1], -1, q_BH1D.shape[-1])
        found = self._kernels.attend(q_BKQD, self._prompts.both, self._own.both, self._groups, added)
        return mx.array(found).reshape(*q_BH1D.shape[:-1], found.shape[-1])

    def filter(self, rows: Sequence[int], groups: Groups, prompts: Sequence[int]) -> None:
        """Keep these rows and these prompts."""
        self._groups, self._lengths_G, self._counts_B = groups, self._lengths_G[prompts], self._counts_B[rows]
        for memory, kept, lengths in ((self._prompts, prompts, self._lengths_G), (self._own, rows, self._counts_B)):
            memory.keep(kept)
            memory.width = int(lengths.max())

    def extend(self, other: "RowsCache", groups: Groups, new: Sequence[int]) -> None:
        """Take in the rows of another, and its prompts numbered `new`."""
        self._groups = groups
        self._lengths_G = np.concatenate([self._lengths_G, other._lengths_G[new]])
        self._counts_B = np.concatenate([self._counts_B, other._counts_B])
        self._prompts.append([array[new] for array in other._prompts.both])
        self._own.append(other._own.both)
