"""Tokenizes text by remembering the ids of its words.

Mathematics repeats its words. A text is cut where the tokenizer provably cuts it too, each piece is looked up, and only
pieces never met are given to the tokenizer. First, all texts are cut at once at

    non-space | one space and a non-space          "sold | 48/2 | ="
    non-space and newline | a non-space            "in May.\\n | Natalia"

and then each new piece where a letter, a digit and another ASCII character meet ("48 | / | 2"), as far as the tokenizer
cuts there. That is right for a BPE tokenizer if no piece of its vocabulary spans such a place (asked of the whole
vocabulary) and if its pre-tokenizer and normalizer treat either side alike whatever stands on the other (asked for all
neighbours of up to two characters of every class). A text with a piece of which this is not sure is refused, and the
caller tokenizes it whole.

Shapes: T texts, N tokens in all of them together.
"""

import re
import threading
from collections.abc import Callable, Collection, Sequence
from itertools import chain, product, repeat
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

FIRST, NEXT, LINE, GAP, BREAK, END = "\x01", "\x02", "\x03", "\x04", "\x05", "\x06"
"""Marks: a piece begins a text, continues one, begins a line; an uncut space; an uncut newline; a text's end."""
MOST_PIECES = 1 << 18
"""Pieces remembered; then all are forgotten."""

_MARKED = re.compile(f"[{FIRST}{NEXT}{LINE}{GAP}{BREAK}{END}]")
_GAPS = (
    ("  ", GAP + GAP), (f"{GAP} ", GAP + GAP), ("\n\n", BREAK + BREAK), (f"{BREAK}\n", BREAK + BREAK),
    (" \n", GAP + BREAK), (f"{GAP}\n", GAP + BREAK), ("\n ", BREAK + GAP), (f"\n{GAP}", BREAK + GAP),
    (f"{BREAK} ", BREAK + GAP), (f" {BREAK}", GAP + BREAK), (f"{FIRST} ", FIRST + GAP), (f"{NEXT} ", NEXT + GAP),
    (f" {END}", GAP + END), (f"\n{END}", BREAK + END),
)  # fmt: skip
_SAMPLES = ("a", "S", "7", "é", "中", ".", "'", "$", "\\", "(", "s")
_CLASSES = {"a": "[A-Za-z]", "7": "[0-9]", ".": "[!-/:-@\\[-`{-~]"}
"""Classes of characters by a member."""
_IN_VOCABULARY = str.maketrans({"Ġ": " ", "▁": " ", "Ċ": "\n", "ĉ": "\t", "č": "\r"})
_SPANS = re.compile(r"\S (?:\S|$)|\n\S")

Encode = Callable[[Sequence[str]], list[list[int]]]


class Encoded(NamedTuple):
    """Texts as ids."""

    tokens: NDArray[np.uint32]
    """(N,)"""
    lengths: NDArray[np.int64]
    """(T,) tokens of each text; of a refused one, meaningless."""
    refused: NDArray[np.bool_]
    """(T,)"""


def find_cuts(model: Any, vocabulary: Collection[str], encode: Encode) -> re.Pattern[str] | None:
    """Where the tokenizer cuts within words, as a pattern to split at; None if it may not be cut at spaces and lines.

    Args:
        model: the tokenizer's `model`.
        vocabulary: its pieces.
        encode: ids of texts.
    """
    if type(model).__name__ != "BPE" or getattr(model, "dropout", None):
        return None
    pieces = "\0".join(vocabulary).translate(_IN_VOCABULARY)
    if any(_SPANS.search(piece) for piece in pieces.split("\0")):
        return None
    sides = [*_SAMPLES, *map("".join, product(_SAMPLES, repeat=2))]
    alone = dict(zip(sides, encode(sides), strict=True))
    if not (_meets(encode, alone, "a", " ", sides) and _meets(encode, alone, "\n", "", sides)):
        return None
    cuts = []
    for left, right in product(_CLASSES, repeat=2):
        if left == right or re.search(_CLASSES[left] + _CLASSES[right], pieces):
            continue
        lefts = {side: ids for side, ids in alone.items() if re.fullmatch(_CLASSES[left], side[-1])}
        if _meets(encode, lefts, left, "", [side for side in sides if re.match(_CLASSES[right], side)]):
            cuts.append(f"(?<={_CLASSES[left]})(?={_CLASSES[right]})")
    return re.compile("|".join(cuts) or "(?!)")


def _meets(encode: Encode, lefts: dict[str, list[int]], anchor: str, between: str, rights: Sequence[str]) -> bool:
    """Whether left and right sides have the same ids together and apart; a right side's are taken after `anchor`."""
    if anchor == "\n":
        lefts = dict(zip(ends := ["\n", *(f"{left}\n" for left in lefts if len(left) == 1)], encode(ends), strict=True))
    (start,) = encode([anchor])
    after = encode([f"{anchor}{between}{right}" for right in rights])
    whole = encode([f"{left}{between}{right}" for left in lefts for right in rights])
    apart = (left + right[len(start) :] for left in lefts.values() for right in after)
    return all(ids[: len(start)] == start for ids in after) and all(map(list.__eq__, whole, apart))


class WordMemory:
    """The ids of the pieces met so far.

    Args:
        cuts: of `find_cuts`.
        added: pieces that the tokenizer looks for before anything else; a text with one of them is refused.
        encode: ids of texts that stand alone.
        encode_next: ids of texts that continue another; None for one that the tokenizer cannot write there.
        readable: for each (ids, text), whether the ids are that text.
    """

    def __init__(
        self,
        cuts: re.Pattern[str],
        added: Sequence[str],
        encode: Encode,
        encode_next: Callable[[Sequence[str]], list[list[int] | None]],
        readable: Callable[[Sequence[list[int]], Sequence[str]], list[bool]],
    ) -> None:
        self._cuts = cuts
        self._whole = re.compile("|".join(map(re.escape, added)) or "(?!)")
        self._lock = threading.Lock()
        self._encode, self._encode_next, self._readable = encode, encode_next, readable
        anchors = ["a", "\n", *_CLASSES]
        self._anchor_lengths = {"": 0} | dict(zip(anchors, map(len, encode(anchors)), strict=True))
        self.forget()

    def forget(self) -> None:
        """Forget all pieces."""
        self._numbers: dict[str, int] = {}
        self._parts: dict[tuple[str, str], tuple[int, ...] | None] = {}
        self._pool = np.zeros(0, np.uint32)
        self._starts = self._lengths = np.zeros(0, np.int64)
        self._refused = self._begins = np.zeros(0, bool)

    def encode(self, texts: Sequence[str], continues: Sequence[bool]) -> Encoded:
        """Ids of each of T >= 1 texts, as one that stands alone or as one that continues another."""
        marked = [f"{NEXT if c else FIRST}{text}{END}" for text, c in zip(texts, continues, strict=True)]
        foreign = [i for i, text in enumerate(texts) if _MARKED.search(text)]
        for i in foreign:
            marked[i] = FIRST + END
        pieces = _cut(" ".join(marked))
        with self._lock:
            return self._look_up(pieces, foreign)

    def _look_up(self, pieces: list[str], foreign: Sequence[int]) -> Encoded:
        """Texts of these pieces; those at `foreign` are refused."""
        if len(self._numbers) > MOST_PIECES:
            self.forget()
        numbers = np.fromiter(map(self._numbers.get, pieces, repeat(-1)), np.int64, len(pieces))
        missing = np.flatnonzero(numbers < 0).tolist()
        if missing:
            self._learn(list(dict.fromkeys(pieces[i] for i in missing)))
            numbers[missing] = [self._numbers[pieces[i]] for i in missing]
        lengths = self._lengths[numbers]
        ends = np.cumsum(lengths)
        positions = np.repeat(self._starts[numbers] - (ends - lengths), lengths) + np.arange(ends[-1])
        firsts = np.flatnonzero(self._begins[numbers])
        refused = np.logical_or.reduceat(self._refused[numbers], firsts)
        refused[list(foreign)] = True
        return Encoded(self._pool[positions], np.add.reduceat(lengths, firsts), refused)

    def _learn(self, pieces: Sequence[str]) -> None:
        """Take up pieces never met."""
        split = [self._split(piece) for piece in pieces]
        self._learn_parts([part for part in dict.fromkeys(chain.from_iterable(split)) if part not in self._parts])
        ids = [[self._parts[part] for part in parts] for parts in split]
        refused = [not parts or None in parts for parts in ids]
        whole = [tuple(chain.from_iterable(filter(None, parts))) for parts in ids]
        count = len(self._numbers)
        self._numbers.update((piece, count + i) for i, piece in enumerate(pieces))
        lengths = np.fromiter(map(len, whole), np.int64, len(whole))
        flat = np.fromiter(chain.from_iterable(whole), np.uint32, int(lengths.sum()))
        begins = [piece[:1] in (FIRST, NEXT) for piece in pieces]
        self._starts = np.concatenate([self._starts, len(self._pool) + np.cumsum(lengths) - lengths])
        self._lengths = np.concatenate([self._lengths, lengths])
        self._pool = np.concatenate([self._pool, flat])
        self._refused = np.concatenate([self._refused, np.array(refused, bool)])
        self._begins = np.concatenate([self._begins, np.array(begins, bool)])

    def _split(self, piece: str) -> list[tuple[str, str]]:
        """The parts of a piece, each after the text that it is tokenized behind; none of a piece that is not sure."""
        if piece.isprintable() and piece and not self._whole.search(piece):  # no marks, no newline: most pieces
            return self._parts_of("a", " ", piece)
        kind = piece[0] if piece and piece[0] in (FIRST, NEXT, LINE) else " "
        text = piece if kind == " " else piece[1:]
        ended = text.endswith(END)
        text = text.removesuffix(END).replace(GAP, " ").replace(BREAK, "\n")
        begins = kind in (FIRST, NEXT)
        if not begins and (text[:1] or " ").isspace():
            return []
        last = text[-1:] if ended or text[-1:] != "\n" else text[-2:-1]
        if (not ended and not begins and not last) or (not ended and last.isspace()) or self._whole.search(text):
            return []
        return self._parts_of({FIRST: "", NEXT: NEXT, LINE: "\n", " ": "a"}[kind], " " if kind == " " else "", text)

    def _parts_of(self, anchor: str, before: str, text: str) -> list[tuple[str, str]]:
        first, *rest = self._cuts.split(text)
        parts = [(anchor, before + first)]
        previous = first[-1:]
        for part in rest:
            parts.append(("a" if previous.isalpha() else "7" if previous.isdigit() else ".", part))
            previous = part[-1]
        return parts

    def _learn_parts(self, parts: Sequence[tuple[str, str]]) -> None:
        """Tokenize parts never met."""
        following = [part for part in parts if part[0] == NEXT]
        continued = self._encode_next([text for _, text in following])
        self._parts.update(
            (part, None if ids is None else tuple(ids)) for part, ids in zip(following, continued, strict=True)
        )
        others = [part for part in parts if part[0] != NEXT]
        whole = [anchor + text for anchor, text in others]
        encoded = self._encode(whole)
        good = self._readable(encoded, whole)
        self._parts.update(
            (part, tuple(ids[self._anchor_lengths[part[0]] :]) if fine else None)
            for part, ids, fine in zip(others, encoded, good, strict=True)
        )


def _cut(joined: str) -> list[str]:
    """The pieces of marked texts. Spaces that are no place to cut become gaps first."""
    for uncut, gap in _GAPS:
        joined = joined.replace(uncut, gap)
    return joined.replace("\n", f"\n {LINE}").split(" ")
