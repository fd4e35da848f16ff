"""Tensor files read piece by piece: safetensors without mapping the file, and pickled checkpoints by weights alone.

A mapped file would count twice in memory while it is converted, and stays locked on Windows.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lora_ext.checkpoint.pickled import read_pickled_content, tensors_by_name
from lora_ext.networks.safetensors_file import DTYPES, StoredTensor
from lora_ext.protocols import UserError

MAX_HEADER_BYTES = 100_000_000
PICKLED_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin")

Placement = Callable[[str, Tensor], Tensor]
"""(name, tensor as stored) → the tensor as it is wanted: dtype and device."""


@dataclass(frozen=True)
class TensorFile:
    """The names and shapes in a file, and a way to its values, one tensor in memory at a time."""

    path: Path
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, torch.dtype]
    read: Callable[[set[str]], Iterator[tuple[str, Tensor]]]


def _stored(path: Path, name: str, entry: dict[str, Any]) -> StoredTensor:
    if entry["dtype"] not in DTYPES:
        raise UserError(f"{path}: tensor {name} has the unknown type {entry['dtype']}.")
    begin, end = entry["data_offsets"]
    stored = StoredTensor(DTYPES[entry["dtype"]], tuple(entry["shape"]), begin, end)
    if end - begin != math.prod(stored.shape) * stored.dtype.itemsize:
        raise UserError(f"{path}: tensor {name} of shape {stored.shape} cannot take {end - begin} bytes: damaged file.")
    return stored


def _safetensors_header(path: Path) -> tuple[dict[str, StoredTensor], int]:
    """The tensors of a safetensors file, and where its data begin."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= MAX_HEADER_BYTES:
            raise UserError(f"{path}: is not a safetensors file ({size} bytes, no header). Choose another file.")
        raw = file.read(length)
    if len(raw) < length:
        raise UserError(f"{path}: is truncated: it ends inside its header. Copy or download it again.")
    try:
        header = json.loads(raw)
        tensors = {name: _stored(path, name, entry) for name, entry in header.items() if name != "__metadata__"}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path}: is not a safetensors file (its header cannot be read: {error}).") from error
    data_bytes = max((stored.end for stored in tensors.values()), default=0)
    if size < 8 + length + data_bytes:
        raise UserError(
            f"{path}: is truncated: {size:,} of {8 + length + data_bytes:,} bytes are there. Copy or download it again."
        )
    return tensors, 8 + length


def _read_safetensors(
    path: Path, stored: dict[str, StoredTensor], data_start: int, names: set[str]
) -> Iterator[tuple[str, Tensor]]:
    with path.open("rb", buffering=0) as file:
        for name in sorted(names, key=lambda key: stored[key].begin):
            entry = stored[name]
            content = torch.empty(entry.end - entry.begin, dtype=torch.uint8)
            view = content.numpy().data.cast("B") if content.numel() else memoryview(b"")
            file.seek(data_start + entry.begin)
            done = 0
            while done < len(view):
                count = file.readinto(view[done:])
                if not count:
                    raise UserError(f"{path}: ends inside tensor {name}; it was changed while it was read.")
                done += count
            yield name, content.view(entry.dtype).reshape(entry.shape)


def _open_safetensors(path: Path) -> TensorFile:
    stored, data_start = _safetensors_header(path)
    return TensorFile(
        path,
        {name: entry.shape for name, entry in stored.items()},
        {name: entry.dtype for name, entry in stored.items()},
        lambda names: _read_safetensors(path, stored, data_start, names),
    )


def _open_pickled(path: Path) -> TensorFile:
    """A pickled file, read without running any code that it holds."""
    content = read_pickled_content(path)
    tensors = tensors_by_name(content)
    if tensors is None:
        raise UserError(f"{path}: is not a checkpoint: it holds a {type(content).__name__}, not named tensors.")
    return TensorFile(
        path,
        {name: tuple(tensor.shape) for name, tensor in tensors.items()},
        {name: tensor.dtype for name, tensor in tensors.items()},
        lambda names: ((name, tensors[name]) for name in sorted(names)),
    )


def open_tensor_file(path: Path) -> TensorFile:
    """Open a .safetensors, .ckpt, .pt, .pth or .bin file; anything wrong with it raises `UserError`."""
    if not path.exists():
        raise UserError(f"{path}: there is no such file.")
    if not path.is_file():
        raise UserError(f"{path}: is a folder; name the checkpoint file (.safetensors) itself.")
    suffix = path.suffix.lower()
    try:
        if suffix == ".safetensors":
            return _open_safetensors(path)
        if suffix in PICKLED_SUFFIXES:
            return _open_pickled(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}).") from error
    allowed = ", ".join((".safetensors", *PICKLED_SUFFIXES))
    raise UserError(f"{path}: is no checkpoint file by its name; these endings are read: {allowed}.")
