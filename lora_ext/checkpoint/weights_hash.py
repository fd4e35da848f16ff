"""A digest of a module's weights, by which what it has computed is found again."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


@torch.no_grad()
def weights_hash(tensors: Mapping[str, Tensor]) -> str:
    """32 hex digits of names, shapes and values as fp32: the same wherever the weights were loaded from."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        digest.update(f"{name}:{tuple(tensor.shape)}".encode())
        digest.update(tensor.float().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
