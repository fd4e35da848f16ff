"""Network files of the old kind: a dict of tensors as `torch.save` writes it, without metadata."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from lora_ext.checkpoint.pickled import read_pickled_content
from lora_ext.networks.atomic_write import replace_file
from lora_ext.networks.file import Precision, cast_tensors, is_network_key
from lora_ext.protocols import UserError


def write_ckpt(path: Path, tensors: Mapping[str, Tensor], precision: Precision) -> None:
    """Cast and write; a file there is replaced at once.

    Raises UserError where the file cannot be written, or where a value does not fit the precision.
    """
    buffer = io.BytesIO()
    torch.save(cast_tensors(tensors, precision), buffer)
    replace_file(path, [buffer.getvalue()])


def is_network_ckpt(path: Path) -> bool:
    """Whether a file of this kind holds a network; one that cannot be read without running what it says does not."""
    try:
        content = read_pickled_content(path, mapped=True)
    except (OSError, UserError):
        return False
    return isinstance(content, dict) and any(is_network_key(str(key)) for key in content)
