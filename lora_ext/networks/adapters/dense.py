"""Adapters whose ΔW is made in full, in fp32, for each forward pass."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_ext.networks.adapters.base import Adapter
from lora_ext.networks.fused_linear import autocasts


class DenseAdapter(Adapter):
    """Adds the module's own operation, with ΔW (and Δb) for its weight, to the module's output.

    Where nothing was put over an fp32 module it is one operation with the sum of the weights: half the work, and the
    very weights that an image is made with afterwards.
    """

    @abstractmethod
    def deltas(self) -> tuple[Tensor, Tensor | None]:
        """ΔW and Δb in fp32 with their graph; None for a bias that stays as it is."""

    def forward(self, x: Tensor) -> Tensor:
        """The module's output for x, and that of ΔW."""
        if self.left_out():
            return self.base_forward(x)
        cheap = self.low_rank_forward(x)
        if cheap is not None:
            return cheap
        with exact_numbers(x.device):
            weight, bias = self.deltas()
        module: Any = self.target.module
        if self._is_untouched and is_fp32(x, module.weight):
            return operate(module, x, module.weight + weight, _sum(module.bias, bias))
        output = self.base_forward(x)
        return output + operate(module, x, weight, bias).to(output.dtype)

    def low_rank_forward(self, x: Tensor) -> Tensor | None:
        """The output without ΔW being made, where that is the same and cheaper; None where it is not."""
        return None


def operate(module: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The operation of a linear layer, convolution or norm on x with other weights, in the dtype of x.

    Norms compute in fp32, as the hosts' do in half precision.
    """
    if isinstance(module, nn.LayerNorm):
        return F.layer_norm(x.float(), module.normalized_shape, weight, bias, module.eps)
    if isinstance(module, nn.GroupNorm):
        return F.group_norm(x.float(), module.num_groups, weight, bias, module.eps)
    weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
    if isinstance(module, nn.Conv2d):
        return F.conv2d(x, weight, bias, module.stride, module.padding, module.dilation, module.groups)
    return F.linear(x, weight, bias)


def exact_numbers(device: torch.device) -> Any:
    """Context without autocast: a ΔW in half precision would change what it is the small difference of."""
    return torch.autocast(device.type, enabled=False) if autocasts(device.type) else nullcontext()


def is_fp32(*tensors: Tensor) -> bool:
    """Whether all are fp32, and operations on them stay so."""
    return all(each.dtype == torch.float32 for each in tensors) and not autocasts(tensors[0].device.type)


def _sum(bias: Tensor | None, delta: Tensor | None) -> Tensor | None:
    if bias is None or delta is None:
        return bias if delta is None else delta
    return bias + delta
