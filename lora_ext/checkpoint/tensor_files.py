"""Tensor files read piece by piece: safetensors without mapping the file, and pickled checkpoints by weights alone.

A mapped file would count twice in memory while it is converted, and stays locked on Windows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from lora_ext.checkpoint.pickled import read_pickled_content, tensors_by_name
from lora_ext.checkpoint.safetensors_file import StoredTensor, read_header
from lora_ext.protocols import UserError

PICKLED_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin")

Placement = Callable[[str, Tensor], Tensor]
"""(name, tensor as stored) → the tensor as it is wanted: dtype and device."""


@dataclass(frozen=True)
class TensorFile:
    """The names, shapes and types in a file, its metadata, and a way to its values.

    `read(names)` gives them in the order in which they lie there; of a safetensors file one tensor is in memory at a
    time, of a pickled one all of them.
    """

    path: Path
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, torch.dtype]
    read: Callable[[set[str]], Iterator[tuple[str, Tensor]]]
    metadata: dict[str, str] = field(default_factory=dict)


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
    header = read_header(path)
    stored = header.tensors
    return TensorFile(
        path,
        {name: entry.shape for name, entry in stored.items()},
        {name: entry.dtype for name, entry in stored.items()},
        lambda names: _read_safetensors(path, stored, header.data_start, names),
        header.metadata,
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
