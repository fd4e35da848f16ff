"""Reading files that `torch.save` wrote, without running what they say: weights alone."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lora_ext.protocols import UserError


def read_pickled_content(path: Path, mapped: bool = False) -> Any:
    """What a file holds, on the CPU; UserError where it is damaged or holds more than weights, OSError where unread.

    `mapped` leaves the values in the file for as long as nobody looks at them.
    `torch.load` is not called: the WebUI has put a check of its own into its place, which refuses honest files.
    """
    try:
        return torch.serialization.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except OSError:
        raise
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is damaged, or holds more than weights and is not opened, because that could run code: "
            "if you trust where it comes from, convert it to .safetensors"
        ) from error
    except Exception as error:  # foreign bytes make the unpickler fail in every way there is
        raise UserError(f"{path} holds no weights, or is damaged ({type(error).__name__}): get it again") from error


def tensors_by_name(content: Any) -> dict[str, Tensor] | None:
    """The tensors of a dict, or of its "state_dict" where it has one; None for anything else."""
    if not isinstance(content, Mapping):
        return None
    inner = content.get("state_dict")
    named = inner if isinstance(inner, Mapping) else content
    return {str(name): value for name, value in named.items() if isinstance(value, Tensor)}
