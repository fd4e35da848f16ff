"""Changing the metadata in a network file: the tensors stay byte for byte, the hashes stay right."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_ext.networks.atomic_write import replace_file
from lora_ext.networks.file import NetworkHeader, header_bytes, in_file_order, scan_network, sshs_hashes
from lora_ext.networks.library import identity
from lora_ext.protocols import UserError

_CHUNK = 1 << 20  # bytes
_HASHES = ("sshs_model_hash", "sshs_legacy_hash")
_LONGEST_VALUE = 4 << 20  # characters


def edit_metadata(path: Path, changes: Mapping[str, str | None]) -> dict[str, str]:
    """Set values by key, None takes a key away; returns all metadata as it is then. Nothing to change writes nothing.

    Hashes that the file has are computed anew. Raises UserError where the file is none that can be changed, is
    read-only, is held by another program, or was replaced by somebody meanwhile; it is as it was then.
    """
    _check(path, changes)
    before = identity(path)
    header = scan_network(path)
    metadata = {key: value for key, value in header.metadata.items() if key not in changes}
    metadata |= {key: value for key, value in changes.items() if value is not None}
    if metadata == header.metadata:
        return metadata
    tensors = _Tensors.of(header)
    if any(key in metadata for key in _HASHES):
        hashes = sshs_hashes(tensors.in_order(), tensors.chunks_in_order(), metadata)
        metadata |= {key: value for key, value in zip(_HASHES, hashes, strict=True) if key in metadata}

    def contents() -> Iterator[bytes]:
        yield header_bytes(tensors.entries, metadata)
        yield from tensors.chunks()
        if identity(path) != before:
            raise UserError(f"{path} was replaced by another program meanwhile: open it again, and make your changes")

    replace_file(path, contents())
    return metadata


def _check(path: Path, changes: Mapping[str, str | None]) -> None:
    if path.suffix.lower() != ".safetensors":
        raise UserError(f"{path} holds no metadata: only .safetensors files do; save it as one first")
    for key, value in changes.items():
        if not key or key in _HASHES or key.startswith("__"):
            raise UserError(f"metadata {key!r} cannot be set by hand: hashes are computed, other keys have a name")
        if value is not None and len(value) > _LONGEST_VALUE:
            raise UserError(f"metadata {key}: {len(value):,} characters; allowed are {_LONGEST_VALUE:,}")
    if path.exists() and not path.stat().st_mode & stat.S_IWRITE:
        raise UserError(f"{path} is read-only: allow writing in its properties first")


@dataclass(frozen=True)
class _Tensors:
    """The entries of a file's tensors as its header has them, and where their bytes begin."""

    path: Path
    entries: dict[str, Any]
    data_start: int

    @staticmethod
    def of(header: NetworkHeader) -> _Tensors:
        with open(header.path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            entries = json.loads(file.read(length).decode("utf-8"))
        entries.pop("__metadata__", None)
        return _Tensors(header.path, entries, header.data_start)

    def in_order(self) -> dict[str, Any]:
        """The entries as sd-scripts would lay them out, from byte 0 on without gaps."""
        position, ordered = 0, {}
        for name in in_file_order({name: entry["dtype"] for name, entry in self.entries.items()}):
            start, end = self.entries[name]["data_offsets"]
            ordered[name] = {**self.entries[name], "data_offsets": [position, position + end - start]}
            position += end - start
        return ordered

    def chunks(self) -> Iterator[bytes]:
        """All bytes after the header, as they stand there."""
        yield from self._read([(0, self.path.stat().st_size - self.data_start)])

    def chunks_in_order(self) -> Iterator[bytes]:
        """The bytes of the tensors in the order of `in_order`."""
        yield from self._read([tuple(self.entries[name]["data_offsets"]) for name in self.in_order()])

    def _read(self, ranges: Sequence[tuple[int, int]]) -> Iterator[bytes]:
        with open(self.path, "rb") as file:
            for start, end in ranges:
                file.seek(self.data_start + start)
                left = end - start
                while left > 0 and (chunk := file.read(min(left, _CHUNK))):
                    left -= len(chunk)
                    yield chunk
