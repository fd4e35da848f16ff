"""What every kind of network is to those who apply it, whatever its tensors are."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from lora_ext.protocols import UserError


class UnsupportedNetworkError(UserError):
    """Tensors of a kind of network that cannot be applied."""


@dataclass(frozen=True)
class LowRankFactors:
    """ΔW = scale · up @ down, reshaped to `shape`.

    up (out, rank) and down (rank, in·kh·kw) in the dtype they are stored in, except that a Tucker core is multiplied
    into down in fp32.
    """

    up: Tensor
    down: Tensor
    scale: float
    shape: tuple[int, ...]


class ModuleDelta(ABC):
    """How the stored tensors of one module change its parameters."""

    algorithm: str
    """What people call it: "LoRA", "LoHa", …"""

    needs_weight = False
    """Whether ΔW is computed from the untouched weight, so that it cannot be summed up beforehand."""

    bias: Tensor | None = None
    """Change of the module's bias at multiplier 1, (out,)."""

    @property
    def parameters(self) -> tuple[str, ...]:
        """The parameters of the module that change: "weight", "bias", or both."""
        return ("weight",) if self.bias is None else ("weight", "bias")

    @property
    def low_rank(self) -> LowRankFactors | None:
        """Exact factors, where ΔW is the product of two small matrices and proportional to the multiplier."""
        return None

    @property
    def rank(self) -> int | None:
        """The rank of the stored factors; None where there are none."""
        return None

    @abstractmethod
    def shape_for(self, weight_shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of the weight that the tensors are made for; what they leave open is taken from `weight_shape`."""

    def fits(self, weight_shape: Sequence[int]) -> bool:
        """Whether the tensors can change a weight of this shape, 1×1 convolutions and linear layers being the same."""
        wanted = self.shape_for(weight_shape)
        return wanted[:1] == tuple(weight_shape[:1]) and prod(wanted) == prod(weight_shape)

    @torch.no_grad()
    def delta(self, base: Tensor, multiplier: float = 1.0, dyn: int | None = None, parameter: str = "weight") -> Tensor:
        """The fp32 change of a parameter, in the shape and on the device of `base`, that parameter untouched.

        Where not `needs_weight`, only shape and device of `base` matter. `dyn` cuts a LoRA's rank. `fits` must hold.
        """
        if parameter == "bias":
            if self.bias is None:
                raise KeyError(f"{self.algorithm} of this module has no bias")
            return on(base, self.bias).reshape(base.shape) * multiplier
        with exact_matmul():
            return self.weight_change(base.detach(), multiplier, dyn).reshape(base.shape)

    @abstractmethod
    def weight_change(self, base: Tensor, multiplier: float, dyn: int | None) -> Tensor:
        """`delta` of the weight, in any shape with its rows and numbers; matrix products are exact around it."""


def on(base: Tensor, tensor: Tensor) -> Tensor:
    """A stored tensor in fp32 where `base` is."""
    return tensor.to(base.device, torch.float32)


def rows(tensor: Tensor) -> Tensor:
    """A tensor as a matrix: everything after the first axis in one."""
    return tensor.reshape(tensor.shape[0], -1)


class _ExactMatmul:
    """Whether TF32 was allowed before the first of the blocks that are running, in whichever thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running = 0
        self._allowed = False

    def enter(self) -> None:
        with self._lock:
            if not self._running:
                self._allowed = torch.backends.cuda.matmul.allow_tf32
                torch.backends.cuda.matmul.allow_tf32 = False
            self._running += 1

    def leave(self) -> None:
        with self._lock:
            self._running -= 1
            if not self._running:
                torch.backends.cuda.matmul.allow_tf32 = self._allowed


_exact_matmul = _ExactMatmul()


@contextmanager
def exact_matmul() -> Iterator[None]:
    """Full fp32 in matrix products on a GPU, whatever the program around has allowed (TF32 keeps 10 bits)."""
    _exact_matmul.enter()
    try:
        yield
    finally:
        _exact_matmul.leave()
