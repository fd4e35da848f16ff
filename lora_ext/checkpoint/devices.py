"""The device that a person names."""

from __future__ import annotations

import torch

from lora_ext.protocols import UserError


def choose_device(device: str = "auto") -> torch.device:
    """The device of that name; "auto" is the first CUDA device where there is one, else the CPU."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise UserError(f"device {device!r} is unknown; allowed: auto, cpu, cuda, cuda:0, …") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device {device!r}: torch finds no CUDA device here; use cpu or auto.")
    return chosen
