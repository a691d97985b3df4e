"""`mlxmath.json`: what a converted model was made from, and whether its folder is whole."""

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any
from zlib import crc32

from pydantic import BaseModel, ConfigDict, ValidationError

from mlxmath import __version__
from mlxmath.errors import MlxmathError
from mlxmath.runtime.console import size
from mlxmath.runtime.files import inside, sha256
from mlxmath.runtime.sealed import sealed_json, unsealed_json
from mlxmath.weights.hub import Weights
from mlxmath.weights.tensors import pieces
from mlxmath.weights.torch_bin import Region, checksum_error

FILE_NAME = "mlxmath.json"


class FileRecord(BaseModel):
    """A file as it was: name inside its folder, size in bytes, hex SHA-256, time of change (source files only)."""

    model_config = ConfigDict(frozen=True)

    name: str
    size: int
    sha256: str
    modified_ns: int | None = None

    def unchanged(self, folder: Path) -> bool:
        """Whether the file in `folder` is still this one; it is hashed only if its time of change differs."""
        path = inside(folder, self.name)
        try:
            state = path.stat()
        except OSError:
            return False
        if state.st_size != self.size:
            return False
        return state.st_mtime_ns == self.modified_ns or sha256(path) == self.sha256


class Manifest(BaseModel):
    """What a converted model was made from, and its files.

    Attributes:
        source: repository name, absolute path of a local folder, or "demo".
        revision: commit of the repository.
        requested_revision: branch, tag or commit that the user asked for.
        source_files: the weight files it was made from.
        files: the folder's own files, this one excepted.
        requested_dtype: `--dtype` as given.
        dtype: floating type of most of the weights (under quantization: of the scales).
        quantization: "quantization" of config.json.
        quantization_of_source: whether the source was quantized already.
        quantize: `--quantize` as given; None in manifests of 0.1.0 too.
        calibration: the problems on which the bits of each layer were chosen.
        num_parameters: elements of all tensors before quantization.
        versions: of mlxmath and mlx.
        fingerprint: the same for the same weights, however they are stored; adapters record it to know their base.
        also: other fingerprints by which these weights are known: 0.1.0 took the source's files, not their content.
        limits: (tokens, why) where longer texts are not treated as by the original model.
        remade: tensors that mlx_lm made or renamed before they were stored, # for numbers; None: that is not known.
    """

    model_config = ConfigDict(frozen=True)

    source: str
    revision: str | None
    requested_revision: str | None
    source_files: tuple[FileRecord, ...]
    files: tuple[FileRecord, ...]
    requested_dtype: str
    dtype: str
    quantization: dict[str, Any] | None
    quantization_of_source: bool = False
    quantize: str | None = None
    calibration: str | None = None
    num_parameters: int
    versions: dict[str, str]
    fingerprint: str
    also: tuple[str, ...] = ()
    limits: tuple[tuple[int, str], ...] = ()
    remade: tuple[str, ...] | None = None

    @property
    def identity(self) -> "Fingerprint":
        """The fingerprint, and the others that mean these weights."""
        return Fingerprint(self.fingerprint, self.also)

    @property
    def num_bytes(self) -> int:
        """Size of the folder's files."""
        return sum(file.size for file in self.files)

    def describe(self) -> str:
        """`deepseek-ai/deepseek-math-7b-instruct, float16, 13.82 GB`."""
        revision = f" at {self.revision[:12]}" if self.revision else ""
        form = self.quantize if self.quantize and not self.quantize.isdecimal() else ""
        form += f" by {self.calibration}" if self.calibration else ""
        if not form and self.quantization:
            form = f"{self.quantization.get('bits')} bits"
        return f"{self.source}{revision}, {f'{form}, ' if form else ''}{self.dtype}, {size(self.num_bytes)}"

    def write(self, folder: Path) -> None:
        """Save as `mlxmath.json`."""
        sealed_json(folder / FILE_NAME, self.model_dump(mode="json"))


class Fingerprint(str):
    """What identifies a model's weights; `accepts` says whether another one, recorded somewhere, means the same."""

    also: tuple[str, ...]

    def __new__(cls, value: str, also: tuple[str, ...] = ()) -> "Fingerprint":
        """
        Args:
            value: the fingerprint to record.
            also: earlier ones of the same weights.
        """
        made = super().__new__(cls, value)
        made.also = also
        return made

    def accepts(self, recorded: Any) -> bool:
        """Whether `recorded` is of the same weights."""
        return recorded in (str(self), *self.also)


def same_weights(known: Any, recorded: Any) -> bool:
    """Whether a recorded fingerprint is of the weights known by `known`; for anything else, whether it is equal."""
    return bool(recorded == known) or (isinstance(known, Fingerprint) and known.accepts(recorded))


def fingerprint(digests: Mapping[str, str], quantization: dict[str, Any] | None) -> str:
    """16 hex digits over the weights.

    Args:
        digests: name of each tensor -> hash of its type, shape and bytes.
        quantization: "quantization" of config.json.
    """
    return _short([sorted(digests.items()), quantization])


def fingerprint_of_files(source_files: Sequence[FileRecord], dtype: str, quantization: dict[str, Any] | None) -> str:
    """The fingerprint that 0.1.0 gave to a model made from these files."""
    return _short([sorted(file.sha256 for file in source_files), dtype, quantization])


def _short(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def versions() -> dict[str, str]:
    """Versions of the tools that made a model."""
    return {"mlxmath": __version__, "mlx": metadata.version("mlx")}


def read_manifest(folder: Path) -> Manifest:
    """Read a folder's manifest.

    Raises:
        MlxmathError: it is missing or damaged.
    """
    path = folder / FILE_NAME
    try:
        if not path.exists():
            raise MlxmathError(f"{path} does not exist; {folder} was not made by mlxmath.")
        return Manifest.model_validate_json(json.dumps(unsealed_json(path, None)))
    except ValidationError as error:
        raise MlxmathError(f"{path} cannot be read ({error.error_count()} damaged entries).") from error


def read_fingerprint(folder: Path) -> Fingerprint | None:
    """The fingerprint that a folder's manifest records; None for a model that was made elsewhere.

    Raises:
        MlxmathError: the manifest is damaged.
    """
    return read_manifest(folder).identity if (folder / FILE_NAME).exists() else None


def verify(folder: Path, *, full: bool = False) -> Manifest | str:
    """Check that a converted model is whole: every file is there with its size.

    Args:
        folder: the converted model.
        full: also hash the files.

    Returns:
        The manifest, or the reason why the folder is not to be used.
    """
    try:
        manifest = read_manifest(folder)
        for record in manifest.files:
            path = inside(folder, record.name)
            if not path.is_file():
                return f"{path} is missing"
            if path.stat().st_size != record.size:
                return f"{path} has {path.stat().st_size} bytes instead of {record.size}"
            if full and sha256(path) != record.sha256:
                return f"{path} has changed since it was written (its SHA-256 differs)"
    except MlxmathError as error:
        return str(error)
    names = {record.name for record in manifest.files}
    extra = sorted(path.name for path in folder.glob("model*.safetensors") if path.name not in names)
    return f"{folder / extra[0]} does not belong to it" if extra else manifest


@contextmanager
def hashing(weights: Weights, folder: Path) -> Iterator[Callable[[], list[FileRecord]]]:
    """Hash the weight files in a second thread meanwhile; the yielded function waits for the records."""
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        futures = [pool.submit(_record, file, folder, weights.storages.get(file, {}), stop) for file in weights.files]
        try:
            yield lambda: [future.result() for future in futures]
        finally:
            stop.set()


def _record(path: Path, folder: Path, storages: Mapping[str, Region], stop: threading.Event) -> FileRecord:
    digest = hashlib.sha256()
    checksums = dict.fromkeys(storages, 0)
    try:
        before = path.stat()
        for key, data in pieces(path, {key: (region.start, region.size) for key, region in storages.items()}):
            digest.update(data)
            if key is not None:
                checksums[key] = crc32(data, checksums[key])
            if stop.is_set():
                break
        after = path.stat()
    except OSError as error:
        raise MlxmathError(f"cannot read {path}: {error.strerror or error}") from error
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise MlxmathError(f"{path} changed while it was read; run the command again when it is complete.")
    blob = path.resolve()  # the Hugging Face cache stores a large file under its hash, as Ollama does
    known = re.fullmatch("(sha256-)?([0-9a-f]{64})", blob.name) if blob.parent.name == "blobs" else None
    if known and known[2] != digest.hexdigest() and not stop.is_set():
        anew = "pull the model again" if known[1] else "run the command again to download it anew"
        raise MlxmathError(
            f"{path} is damaged: its SHA-256 is {digest.hexdigest()[:12]}..., the repository's {known[2][:12]}... "
            f"Delete {blob} and {anew}."
        )
    for key, region in storages.items():
        if region.crc not in (0, checksums[key]) and not stop.is_set():
            raise checksum_error(path, f"data/{key}")
    name = path.relative_to(folder).as_posix()
    return FileRecord(name=name, size=after.st_size, sha256=digest.hexdigest(), modified_ns=after.st_mtime_ns)
