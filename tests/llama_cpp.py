"""llama.cpp's own tokenizer and logits, out of the library that the package xllamacpp brings.

Its Python interface has neither, but the library exports llama.cpp's C functions. Their parameter structures, passed by
value, are taken from its own `..._default_params` into room that is larger than any of them.
"""

import ctypes
from pathlib import Path

import numpy as np
import pytest


class _Params(ctypes.Structure):
    _fields_ = (("bytes", ctypes.c_byte * 1024),)


class _Batch(ctypes.Structure):
    _fields_ = (
        ("num_tokens", ctypes.c_int32), ("tokens", ctypes.POINTER(ctypes.c_int32)), ("embd", ctypes.c_void_p),
        ("positions", ctypes.c_void_p), ("num_seq_ids", ctypes.c_void_p), ("seq_ids", ctypes.c_void_p),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    )  # fmt: skip


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
def _quiet(level: int, text: bytes, data: object) -> None:
    """What llama.cpp says is not printed."""


def _library() -> ctypes.CDLL:
    module = pytest.importorskip("xllamacpp")
    library = ctypes.CDLL(module.xllamacpp.__file__)
    pointer = ctypes.c_void_p
    signatures = {
        "llama_model_default_params": (_Params, []),
        "llama_context_default_params": (_Params, []),
        "llama_model_load_from_file": (pointer, [ctypes.c_char_p, _Params]),
        "llama_init_from_model": (pointer, [pointer, _Params]),
        "llama_model_get_vocab": (pointer, [pointer]),
        "llama_vocab_n_tokens": (ctypes.c_int32, [pointer]),
        "llama_vocab_is_eog": (ctypes.c_bool, [pointer, ctypes.c_int32]),
        "llama_tokenize": (
            ctypes.c_int32,
            [pointer, ctypes.c_char_p, ctypes.c_int32, ctypes.POINTER(ctypes.c_int32), ctypes.c_int32, ctypes.c_bool,
             ctypes.c_bool],
        ),
        "llama_decode": (ctypes.c_int32, [pointer, _Batch]),
        "llama_get_logits": (ctypes.POINTER(ctypes.c_float), [pointer]),
        "llama_free": (None, [pointer]),
        "llama_model_free": (None, [pointer]),
    }  # fmt: skip
    library.llama_log_set(_quiet, None)
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


class LlamaCpp:
    """A model in llama.cpp. Use as a context manager."""

    def __init__(self, path: Path) -> None:
        self._library = _library()
        self._model = self._library.llama_model_load_from_file(
            str(path).encode(), self._library.llama_model_default_params()
        )
        if not self._model:
            raise ValueError(f"llama.cpp does not load {path}")
        self._vocabulary = self._library.llama_model_get_vocab(self._model)

    def __enter__(self) -> "LlamaCpp":
        return self

    def __exit__(self, *_: object) -> None:
        self._library.llama_model_free(self._model)

    @property
    def end_tokens(self) -> set[int]:
        """What ends an answer."""
        count = self._library.llama_vocab_n_tokens(self._vocabulary)
        return {number for number in range(count) if self._library.llama_vocab_is_eog(self._vocabulary, number)}

    def tokenize(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids, with the beginning-of-text token where the model has one and with `special`."""
        data = text.encode()
        buffer = (ctypes.c_int32 * (len(data) + 8))()
        count = self._library.llama_tokenize(self._vocabulary, data, len(data), buffer, len(buffer), special, True)
        assert count >= 0
        return list(buffer[:count])

    def logits(self, ids: list[int]) -> np.ndarray:
        """Logits (T, V) after each of at most 512 tokens."""
        context = self._library.llama_init_from_model(self._model, self._library.llama_context_default_params())
        tokens = (ctypes.c_int32 * len(ids))(*ids)
        wanted = (ctypes.c_int8 * len(ids))(*[1] * len(ids))
        try:
            assert self._library.llama_decode(context, _Batch(len(ids), tokens, None, None, None, None, wanted)) == 0
            width = self._library.llama_vocab_n_tokens(self._vocabulary)
            found = self._library.llama_get_logits(context)
            return np.ctypeslib.as_array(found, (len(ids), width)).copy()
        finally:
            self._library.llama_free(context)
