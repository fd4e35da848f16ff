"""Reading `.pt`, `.ckpt` and `.bin` files without running what they say, and without letting them fill the memory."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lora_ext.checkpoint.pickled import read_pickled_content, tensors_by_name
from lora_ext.networks.formats.unnamed import numbered_tensors
from lora_ext.protocols import UserError

SUFFIXES = (".pt", ".ckpt", ".bin")
_TEXT_ENDS = ("_txt", ".text_encoder")
"""What sd_dreambooth and cloneofsimo add to a network's name for its text encoder's file."""


def is_text_companion(path: Path) -> bool:
    """Whether a file is the text encoder's part of another file beside it."""
    return any(
        path.stem.endswith(end) and path.with_name(path.stem.removesuffix(end) + path.suffix).is_file()
        for end in _TEXT_ENDS
    )


def read_pickled(path: Path) -> dict[str, Tensor]:
    """A pickled file's tensors by name; lists without names, with the text encoder's beside them, get cloneofsimo's.

    Raises UserError where the file is missing, damaged, or holds more than weights.
    """
    files = [path]
    content = _content(path)
    if isinstance(content, list | tuple):
        files += [companion for end in _TEXT_ENDS if (companion := _companion(path, end)).is_file()][:1]
        lists = [content, *map(_content, files[1:])]
        content = numbered_tensors(*(list(each) if isinstance(each, list | tuple) else [] for each in lists))
    tensors = tensors_by_name(content)
    if tensors is None:
        raise UserError(f"{path} holds a {type(content).__name__} instead of named tensors: it is no network file")
    _check_tensors(path, tensors, sum(file.stat().st_size for file in files))
    return {name: tensor.detach() for name, tensor in tensors.items()}


def _companion(path: Path, end: str) -> Path:
    return path.with_name(f"{path.stem}{end}{path.suffix}")


def _content(path: Path) -> Any:
    try:
        _check_sizes(path)
        return read_pickled_content(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}): check that the file is there") from error
    except UserError:
        raise
    except Exception as error:  # foreign bytes make the reader of archives fail in every way there is
        raise UserError(f"{path} is damaged ({type(error).__name__}): get it again") from error


def _check_sizes(path: Path) -> None:
    """UserError for an archive that would grow while it is unpacked; torch stores without compression."""
    size = path.stat().st_size
    if not size:
        raise UserError(f"{path} is empty: copy or download it again")
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > size:
            raise UserError(f"{path} is a compressed archive, which no trainer writes: it is not opened")


def _check_tensors(path: Path, tensors: Mapping[str, Tensor], size: int) -> None:
    """UserError where tensors are not ordinary ones, or pretend to be larger than what is stored of them."""
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise UserError(f"{path}: {name} is no ordinary tensor: the file is damaged, get it again")
    if sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) > size:
        raise UserError(f"{path} holds less than its tensors take: the file is damaged, get it again")
