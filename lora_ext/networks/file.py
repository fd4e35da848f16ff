"""Network files: safetensors with metadata and hashes, as sd-scripts writes them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lora_ext.checkpoint.safetensors_file import DTYPES, StoredTensor, read_header, read_tensors
from lora_ext.networks.atomic_write import replace_file
from lora_ext.networks.beside import Beside, Chunk
from lora_ext.networks.formats import NetworkModules, canonical_modules
from lora_ext.networks.formats.adapter_config import CONFIG_KEY, adapter_config_of
from lora_ext.networks.formats.names import parse_tensor_name
from lora_ext.networks.pickled_file import SUFFIXES as PICKLED
from lora_ext.networks.pickled_file import read_pickled
from lora_ext.protocols import UserError

Precision = Literal["float", "fp16", "bf16"]

Content = Callable[[Sequence[str]], Iterable[Tensor]]
"""Asked once for tensors by their names, in their order in the file, it gives them one by one when they are written."""

PRECISION_DTYPES: dict[Precision, torch.dtype] = {
    "float": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}
"""What the numbers of a file are stored in."""

_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_NETWORK_STARTS = ("lora_", "lycoris_", "lyco_", "oft_", "unet:", "text_encoder:")
_NETWORK_PARTS = (".lora_", ".lora.", ".hada_", ".lokr_", ".oft_")
_NO_HASHES = {"sshs_model_hash": "0" * 64, "sshs_legacy_hash": "0" * 8}  # as long as those that are found
_LEGACY_START, _LEGACY_LENGTH = 0x100000, 0x10000  # what the WebUI's old model hash looks at


@dataclass(frozen=True)
class NetworkHeader:
    """What is known of a network file from its header: shapes by tensor name, metadata, where the tensors begin."""

    path: Path
    shapes: dict[str, tuple[int, ...]]
    metadata: dict[str, str]
    data_start: int
    dtypes: dict[str, torch.dtype]

    @property
    def keys(self) -> list[str]:
        """The tensors' names."""
        return list(self.shapes)

    @property
    def holds_network(self) -> bool:
        """Whether it is the header of a network, of any kind and of any program; a checkpoint has no such names."""
        return any(is_network_key(key) for key in self.keys) or "ss_network_module" in self.metadata


@dataclass(frozen=True)
class NetworkFile:
    """A network file in memory."""

    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, str]

    @cached_property
    def network(self) -> NetworkModules:
        """What the tensors are, in sd-scripts' words, whatever program wrote them."""
        return canonical_modules(self.tensors, self.metadata)

    @property
    def modules(self) -> dict[str, dict[str, Tensor]]:
        """Tensors by the module's key and the suffix: {"lora_te_…_mlp_fc1": {"lora_up.weight": …, "alpha": …}}."""
        return self.network.modules


def write_network(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    precision: Precision,
    content: Content | None = None,
) -> None:
    """Cast, hash and write; the same tensors and metadata give the same bytes, and a file there is replaced at once.

    With `content` shapes and dtypes of the tensors suffice (device "meta"). `sshs_model_hash` and `sshs_legacy_hash`
    are added. Raises UserError where the file cannot be written, or where a value does not fit the precision.
    """
    entries = _entries(_outlines(tensors, precision))
    hashes = SshsHashes(entries, metadata)

    def chunks() -> Generator[Chunk, None, None]:
        yield header_bytes(entries, {**metadata, **_NO_HASHES})
        names = list(entries)
        made = (content or content_of(tensors))(names)
        cast = (_cast(name, tensor, precision) for name, tensor in zip(names, made, strict=True))
        with Beside(hashes.update) as update:
            for chunk in _tensor_bytes(cast):
                update(chunk)
                yield chunk

    with contextlib.closing(chunks()) as written:
        replace_file(path, written, lambda: header_bytes(entries, {**metadata, **hashes.as_metadata()}))


def content_of(tensors: Mapping[str, Tensor]) -> Content:
    """Gives tensors that are there."""
    return lambda names: map(tensors.__getitem__, names)


def network_size(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], precision: Precision) -> int:
    """How many bytes `write_network` writes; of the tensors, shapes and dtypes suffice (device "meta")."""
    return file_size(_outlines(tensors, precision), {**metadata, **_NO_HASHES})


def file_size(outlines: Mapping[str, Tensor], metadata: Mapping[str, str]) -> int:
    """How many bytes `write_tensors` writes."""
    entries = _entries(outlines)
    return len(header_bytes(entries, metadata)) + max(
        (entry["data_offsets"][1] for entry in entries.values()), default=0
    )


def write_tensors(
    path: Path,
    outlines: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    content: Callable[[str], Iterable[Chunk]],
) -> None:
    """Write tensors that need not be in memory together; a file there is replaced at once.

    Of the outlines shapes and dtypes matter (device "meta"); `content(name)` gives a tensor's bytes, and is asked for
    them in their order in the file. Raises UserError where the file cannot be written.
    """
    entries = _entries(outlines)

    def chunks() -> Iterator[Chunk]:
        yield header_bytes(entries, metadata)
        for name in entries:
            yield from content(name)

    replace_file(path, chunks())


def cast_tensors(tensors: Mapping[str, Tensor], precision: Precision) -> dict[str, Tensor]:
    """The tensors as a file holds them, on the CPU; UserError where a value does not fit the precision."""
    return {name: _cast(name, tensor, precision) for name, tensor in tensors.items()}


def is_network_key(name: str) -> bool:
    """Whether a tensor of this name belongs to a network, of any kind and of any program."""
    if name.startswith(_NETWORK_STARTS) or any(part in name for part in _NETWORK_PARTS):
        return True
    return parse_tensor_name(name) is not None


def precalculate_hashes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> tuple[str, str]:
    """(sshs_model_hash, sshs_legacy_hash) of a file with these tensors and the `ss_*` part of the metadata."""
    entries = _entries(tensors)
    return sshs_hashes(entries, _tensor_bytes(tensors[name] for name in entries), metadata)


def sshs_hashes(entries: Mapping[str, Any], chunks: Iterable[Chunk], metadata: Mapping[str, str]) -> tuple[str, str]:
    """`SshsHashes` of a header's entries, and of the tensors' bytes in that order."""
    hashes = SshsHashes(entries, metadata)
    for chunk in chunks:
        hashes.update(chunk)
    return hashes.found()


class SshsHashes:
    """(sshs_model_hash, sshs_legacy_hash) of the tensors of a header's entries, whose bytes come in that order.

    The first is the sha256 of all after the header, the second 8 digits of that of 64 KiB from 1 MiB on, with the
    `ss_*` part of the metadata alone in the header.
    """

    def __init__(self, entries: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
        header = header_bytes(entries, {key: value for key, value in metadata.items() if key.startswith("ss_")})
        self._model, self._legacy = hashlib.sha256(), hashlib.sha256()
        self._legacy.update(header[_LEGACY_START : _LEGACY_START + _LEGACY_LENGTH])
        self._position = len(header)

    def update(self, chunk: Chunk) -> None:
        """The next bytes of the tensors."""
        self._model.update(chunk)
        start = max(_LEGACY_START - self._position, 0)
        self._legacy.update(chunk[start : max(_LEGACY_START + _LEGACY_LENGTH - self._position, 0)])
        self._position += len(chunk)

    def found(self) -> tuple[str, str]:
        """Both, in hex digits."""
        return self._model.hexdigest(), self._legacy.hexdigest()[:8]

    def as_metadata(self) -> dict[str, str]:
        """Both, by the names that they have in a file."""
        return dict(zip(_NO_HASHES, self.found(), strict=True))


def header_bytes(entries: Mapping[str, Any], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file up to its first tensor: the header's length, metadata sorted by key, then the entries."""
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    text = json.dumps({**header, **entries}, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def in_file_order(dtypes: Mapping[str, str]) -> list[str]:
    """Names of tensors by the safetensors names of their dtypes, in the order in which the format lays them out."""
    order = list(_DTYPE_NAMES.values())
    places = {dtype: order.index(dtype) if dtype in order else len(order) for dtype in dtypes.values()}
    return sorted(dtypes, key=lambda name: (places[dtypes[name]], name.encode("utf-8")))


def scan_network(path: Path) -> NetworkHeader:
    """Read the header alone; a pickled file has none, and is read whole.

    Raises UserError where the file is missing, is none of a known kind, contradicts itself, or is shorter than its
    header says.
    """
    stored: Mapping[str, Tensor | StoredTensor]
    if path.suffix.lower() in PICKLED:
        stored, metadata, start = read_pickled(path), {}, 0
    else:
        header = read_header(path)
        stored, metadata, start = header.tensors, header.metadata, header.data_start
    shapes = {name: tuple(each.shape) for name, each in stored.items()}
    return NetworkHeader(path, shapes, metadata, start, {name: each.dtype for name, each in stored.items()})


def read_network(path: Path, mapped: bool = False) -> NetworkFile:
    """Read a file whole, in the dtypes it has; nothing of it stays open, nor mapped unless that is asked for.

    Raises UserError as `scan_network` does.
    """
    if path.suffix.lower() in PICKLED:
        return NetworkFile(path, read_pickled(path), {})
    tensors, metadata = read_tensors(path, mapped)
    config = adapter_config_of(path)
    return NetworkFile(path, tensors, metadata if config is None else {**metadata, CONFIG_KEY: config})


def model_hash(path: Path) -> str:
    """sshs_model_hash of a file: from its metadata, or else computed from its tensors; a pickled file's sha256."""
    is_pickled = path.suffix.lower() in PICKLED
    header = None if is_pickled else read_header(path)
    stored = header.metadata.get("sshs_model_hash") if header else None
    return stored or sha256_from(path, header.data_start if header else 0)


def sha256_from(path: Path, start: int = 0, between: Callable[[], None] = lambda: None) -> str:
    """The sha256 of a file's bytes from a place on; of a safetensors file's tensors, as they lie there.

    `between` is called after each piece of it; what it raises ends the work.
    """
    digest = hashlib.sha256()
    try:
        with open(path, "rb", buffering=0) as file:
            file.seek(start)
            while chunk := file.read(1 << 20):
                digest.update(chunk)
                between()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}): check that the file is there") from error
    return digest.hexdigest()


def _cast(name: str, tensor: Tensor, precision: Precision) -> Tensor:
    if not tensor.is_floating_point():
        return tensor.detach().cpu()
    cast = tensor.detach().to("cpu", PRECISION_DTYPES[precision])
    if cast.dtype != tensor.dtype and not torch.isfinite(cast).all() and torch.isfinite(tensor).all():
        raise UserError(
            f"{name} has values up to {tensor.abs().max().item():.3g}, too large for save_precision = {precision}: "
            "save as bf16 or float"
        )
    return cast


def _outlines(tensors: Mapping[str, Tensor], precision: Precision) -> dict[str, Tensor]:
    """Shapes and dtypes as a file of the precision has them."""
    wanted = PRECISION_DTYPES[precision]
    dtypes = {name: wanted if tensor.is_floating_point() else tensor.dtype for name, tensor in tensors.items()}
    return {name: torch.empty(tensor.shape, dtype=dtypes[name], device="meta") for name, tensor in tensors.items()}


def _entries(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    position = 0
    for name in in_file_order({name: _DTYPE_NAMES[tensor.dtype] for name, tensor in tensors.items()}):
        tensor = tensors[name]
        end = position + math.prod(tensor.shape) * tensor.element_size()
        entries[name] = {
            "dtype": _DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [position, end],
        }
        position = end
    return entries


def _tensor_bytes(tensors: Iterable[Tensor]) -> Iterator[Chunk]:
    for tensor in tensors:
        yield tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data.cast("B")
