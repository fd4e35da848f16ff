"""A frozen linear layer with its low-rank adapter as one operation, for training on a processor.

The same products in the same order as apart from each other, with fewer passes over the large tensors: the adapter's
part is added in place, forward to the output and backward to the input's gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_HAS_DEVICES = hasattr(torch, "get_autocast_dtype")  # from torch 2.4 on autocast is asked for by device


def is_untouched(module: nn.Module) -> bool:
    """Whether the module's forward is torch's own linear layer or convolution, and nothing was put over it."""
    return (
        isinstance(module, nn.Linear | nn.Conv2d)
        and getattr(module, "padding_mode", "zeros") == "zeros"
        and type(module).forward.__module__ in ("torch.nn.modules.linear", "torch.nn.modules.conv")
        and "forward" not in module.__dict__
    )


def can_fuse(x: Tensor, *weights: Tensor) -> bool:
    """Whether all is fp32 on a processor, and stays so."""
    return all(
        tensor.dtype == torch.float32 and tensor.device.type == "cpu" for tensor in (x, *weights)
    ) and not autocasts("cpu")


def lora_linear(x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """x W ᵀ + b + scale · (x downᵀ) upᵀ of x (…, in), W (out, in), down (rank, in), up (out, rank).

    W and b get no gradient.
    """
    output: Tensor = _LoraLinear.apply(x, weight, bias, down, up, scale)
    return output


def autocasts(device_type: str) -> bool:
    """Whether operations on this type of device are cast at the moment."""
    if _HAS_DEVICES:
        return torch.is_autocast_enabled(device_type)
    return torch.is_autocast_cpu_enabled() if device_type == "cpu" else torch.is_autocast_enabled()


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float
    ) -> Tensor:
        flat = x.flatten(0, -2)  # (n, in)
        hidden = flat @ down.t()  # (n, rank)
        output = F.linear(flat, weight, bias).addmm_(hidden, up.t(), alpha=scale)
        ctx.save_for_backward(flat, hidden, weight, down, up)
        ctx.scale, ctx.shape = scale, x.shape
        return output.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        flat, hidden, weight, down, up = ctx.saved_tensors
        of_output = gradients[0].flatten(0, -2)  # (n, out)
        of_hidden = (of_output @ up).mul_(ctx.scale)
        wants_x, _, _, wants_down, wants_up, _ = ctx.needs_input_grad
        of_x = (of_output @ weight).addmm_(of_hidden, down).view(ctx.shape) if wants_x else None
        of_down = of_hidden.t() @ flat if wants_down else None
        of_up = (of_output.t() @ hidden).mul_(ctx.scale) if wants_up else None
        return of_x, None, None, of_down, of_up, None
