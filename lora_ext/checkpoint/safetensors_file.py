"""Reading safetensors files: the header alone, or all tensors, into memory of our own unless mapping is asked for.

A mapped file cannot be replaced on Windows. Where it is written in place, it changes under the reader, and a process
that reads what was cut off is ended by the system: a command of its own may risk that, a WebUI may not.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BufferedReader, FileIO
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lora_ext.protocols import UserError

DTYPES: dict[str, torch.dtype] = {
    "I64": torch.int64,
    "F64": torch.float64,
    "F32": torch.float32,
    "I32": torch.int32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
"""In the order in which safetensors lays tensors of several dtypes out."""

_LONGEST_HEADER = 32_000_000  # bytes; a hundred times what large networks with long captions have
_MOST_DIMENSIONS = 8
_PIECE, _READERS = 2**23, 2  # bytes that one of the readers reads at once
_METADATA_FIRST = re.compile(r'\s*\{\s*"__metadata__"\s*:\s*')

_File = BufferedReader | FileIO


class StoredTensor(NamedTuple):  # a tenth of a dataclass' time to make, thousands a file
    """Where a tensor lies: bytes [begin, end) after the header."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class SafetensorsHeader:
    """The tensors by name, the metadata, and how many bytes come before the first tensor."""

    tensors: dict[str, StoredTensor]
    metadata: dict[str, str]
    data_start: int


def read_header(path: Path) -> SafetensorsHeader:
    """The header alone.

    Raises UserError where the file is missing, is no safetensors file, contradicts itself, or is shorter than its
    header says.
    """
    try:
        with open(path, "rb") as file:
            return _parsed_header(path, file)
    except OSError as error:
        raise _unreadable(path, error) from error


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata alone, about ten times as fast as the header where they come first; raises as `read_header` does."""
    try:
        with open(path, "rb") as file:
            text = _header_text(path, file)
    except OSError as error:
        raise _unreadable(path, error) from error
    start = _METADATA_FIRST.match(text)
    if start is None:
        return _metadata(_table(path, text))
    try:
        metadata, _ = json.JSONDecoder().raw_decode(text, start.end())
    except (ValueError, RecursionError) as error:
        raise _no_safetensors(path) from error
    return _metadata({"__metadata__": metadata})


def read_tensors(path: Path, mapped: bool = False) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors in the dtypes they have, and the metadata; raises as `read_header` does.

    With `mapped` the file is their memory, as long as any of them is there; what is written to them does not reach it.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            header = _parsed_header(path, file)
            size = max((stored.end for stored in header.tensors.values()), default=0)
            start = header.data_start
            if mapped and size:
                whole = torch.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), dtype=torch.uint8)
                content = whole[start : start + size]
            else:
                content = torch.empty(size, dtype=torch.uint8)
                _fill_at(path, file, start, content.numpy().data if size else memoryview(b""))
    except OSError as error:
        raise _unreadable(path, error) from error
    return {name: _tensor(content, stored) for name, stored in header.tensors.items()}, header.metadata


def _tensor(content: Tensor, stored: StoredTensor) -> Tensor:
    data = content[stored.begin : stored.end]
    if data.data_ptr() % max(stored.dtype.itemsize, 1):
        data = data.clone()  # elsewhere in memory, where the numbers are aligned
    return data.view(stored.dtype).reshape(stored.shape)


def _fill_at(path: Path, file: _File, start: int, content: memoryview) -> None:
    """Read what stands from `start` on; in several pieces at once where the system can do that with one open file."""
    if len(content) <= _PIECE or not hasattr(os, "preadv"):  # Windows has none
        file.seek(start)
        _fill(path, content, lambda rest, _: file.readinto(rest))
        return

    def read(begin: int) -> None:
        piece = content[begin : begin + _PIECE]
        _fill(path, piece, lambda rest, done: os.preadv(file.fileno(), [rest], start + begin + done))

    with ThreadPoolExecutor(_READERS) as pool:
        list(pool.map(read, range(0, len(content), _PIECE)))


def _fill(path: Path, content: memoryview, read: Callable[[memoryview, int], int | None]) -> None:
    """`read(rest, done)` fills a part of what is left after `done` bytes, and tells how much."""
    done = 0
    while done < len(content):
        count = read(content[done:], done)
        if not count:
            raise UserError(f"{path} was changed while it was read: try again")
        done += count


def _header_text(path: Path, file: _File) -> str:
    size = path.stat().st_size
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= min(_LONGEST_HEADER, max(size - 8, 0)):
        raise _no_safetensors(path, size)
    raw = bytearray(length)
    _fill(path, memoryview(raw), lambda rest, _: file.readinto(rest))
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _no_safetensors(path) from error


def _parsed_header(path: Path, file: _File) -> SafetensorsHeader:
    table = _table(path, _header_text(path, file))
    metadata = _metadata(table)
    table.pop("__metadata__", None)
    tensors = {name: _stored(path, name, entry) for name, entry in table.items()}
    start, size = file.tell(), path.stat().st_size
    position = 0
    for stored in sorted(tensors.values(), key=lambda stored: (stored.begin, stored.end)):
        if stored.begin < position:
            raise UserError(f"{path} has tensors that lie upon each other: it is damaged, get it again")
        position = stored.end
    if start + position > size:
        raise UserError(f"{path} is cut off: it has {size} bytes of {start + position}; copy or download it again")
    return SafetensorsHeader(tensors, metadata, start)


def _table(path: Path, text: str) -> dict[str, Any]:
    try:
        table = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _no_safetensors(path) from error
    if not isinstance(table, dict):
        raise _no_safetensors(path)
    return table


def _metadata(table: dict[str, Any]) -> dict[str, str]:
    metadata = table.get("__metadata__")
    return {key: str(value) for key, value in metadata.items()} if isinstance(metadata, dict) else {}


def _stored(path: Path, name: str, entry: Any) -> StoredTensor:
    if not isinstance(entry, dict):
        raise _no_safetensors(path)
    shape, offsets, dtype = _sizes(entry.get("shape")), _sizes(entry.get("data_offsets")), entry.get("dtype")
    if shape is None or offsets is None or len(offsets) != 2 or len(shape) > _MOST_DIMENSIONS:
        raise _no_safetensors(path)
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise UserError(
            f"{path}: {name} is of the type {str(dtype)[:20]}, which is not known ({', '.join(DTYPES)}): "
            "convert it with the program that made it"
        )
    begin, end = offsets
    if end - begin != math.prod(shape) * DTYPES[dtype].itemsize:
        raise UserError(
            f"{path} is no valid safetensors file: {name} of {shape} does not take {end - begin} bytes; get it again"
        )
    return StoredTensor(DTYPES[dtype], tuple(shape), begin, end)


def _sizes(numbers: Any) -> list[int] | None:
    """A list of sizes as JSON should have it; None for anything else."""
    if isinstance(numbers, list) and all(type(number) is int and 0 <= number < 2**63 for number in numbers):
        return numbers
    return None


def _unreadable(path: Path, error: OSError) -> UserError:
    return UserError(f"{path} cannot be read ({error.strerror or error}): check that the file is there")


def _no_safetensors(path: Path, size: int | None = None) -> UserError:
    if size == 0:
        return UserError(f"{path} is empty: copy or download it again")
    return UserError(f"{path} is no safetensors file, or is damaged: copy or download it again")
