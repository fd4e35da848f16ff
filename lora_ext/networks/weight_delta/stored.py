"""Taking stored tensors apart, with words for what is missing, left over or of another shape."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from lora_ext.protocols import UserError

MAX_RANK = 16_384
"""More than any weight has rows; larger numbers are a damaged file, and would only fill the memory."""


class Stored:
    """The tensors of one module by suffix; what a kind takes is checked as it is taken."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    def __contains__(self, suffix: str) -> bool:
        return suffix in self._tensors

    def get(self, suffix: str, *dimensions: int) -> Tensor | None:
        """A tensor of one of these numbers of dimensions, None where there is none."""
        tensor = self._tensors.get(suffix)
        if tensor is not None and tensor.ndim not in dimensions:
            allowed = " or ".join(str(number) for number in dimensions)
            raise damaged(f"{suffix} has the shape {tuple(tensor.shape)} instead of {allowed} dimensions")
        return tensor

    def need(self, suffix: str, *dimensions: int) -> Tensor:
        """A tensor of one of these numbers of dimensions, all of them at least 1."""
        tensor = self.get(suffix, *dimensions)
        if tensor is None:
            raise damaged(f"{suffix} missing")
        if not tensor.numel():
            raise damaged(f"{suffix} is empty")
        return tensor

    def number(self, suffix: str) -> float | None:
        """A single number, None where there is none."""
        tensor = self._tensors.get(suffix)
        if tensor is None:
            return None
        if tensor.numel() != 1:
            raise damaged(f"{suffix} has the shape {tuple(tensor.shape)} instead of being one number")
        return float(tensor)

    def scale(self, rank: int | None) -> float:
        """alpha / rank; 1 without an alpha, or without a rank."""
        alpha = self.number("alpha")
        return alpha / rank if alpha is not None and rank else 1.0


def check_values(tensors: Mapping[str, Tensor]) -> None:
    """UserError where a tensor is of a type that holds no weights, or has values that are no numbers."""
    for suffix, tensor in tensors.items():
        if tensor.is_complex() or tensor.is_quantized or tensor.layout != torch.strided:
            raise damaged(f"{suffix} is of the type {tensor.dtype}, which holds no weights")
        if tensor.is_floating_point() and not is_finite(tensor):
            raise damaged(f"{suffix} has values that are not numbers (nan or infinity)")


def is_finite(tensor: Tensor) -> bool:
    """Whether all values are numbers."""
    wide = tensor.float() if tensor.element_size() == 1 else tensor
    if math.isfinite(
        wide.sum(dtype=torch.float32)
    ):  # a fifth of the time; what overflows is looked at number by number
        return True
    return bool(torch.isfinite(wide).all())


def check_rank(*ranks: int) -> int:
    """The rank that several factors share; UserError where they do not."""
    if len(set(ranks)) != 1:
        raise damaged(f"factors of the ranks {', '.join(map(str, ranks))} do not fit each other")
    if not 0 < ranks[0] <= MAX_RANK:
        raise damaged(f"a rank of {ranks[0]} is impossible (1 to {MAX_RANK})")
    return ranks[0]


def check_pointwise(suffix: str, tensor: Tensor) -> None:
    """UserError where a factor of a convolution has a kernel, which only the other factor has."""
    if any(dimension != 1 for dimension in tensor.shape[2:]):
        raise damaged(f"{suffix} {tuple(tensor.shape)} is no factor of a weight")


def damaged(what: str) -> UserError:
    """What is wrong with a file's tensors, with the remedy."""
    return UserError(f"{what}: the file is damaged, get it again")
