"""The outputs of LyCORIS' algorithms without their ΔW: exact, and cheaper where the factors are small.

x is (batch, …, in) or (batch, in, h, w); what is given is the adapter's part of the output alone, in the dtype of x.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_ext.networks.adapters.dense import operate
from lora_ext.networks.adapters.dylora import pointwise
from lora_ext.networks.weight_delta import exact_matmul


def low_rank_output(module: nn.Module, x: Tensor, down: Tensor, up: Tensor, core: Tensor | None = None) -> Tensor:
    """up(down(x)), or up(core(down(x))) of a convolution whose kernel is in the core."""
    if core is None:
        return pointwise(operate(module, x, down, None), up)
    return pointwise(operate(module, pointwise(x, down), core, None), up)


def hadamard_factors(kernel: Any, module: nn.Module) -> tuple[Tensor, Tensor]:
    """LoHa's ΔW without its scale as factors of rank²: (B₁A₁) ∘ (B₂A₂) = (B₁ ⊙ B₂)(A₁ ⊙ A₂), row by row.

    down (rank², in[, kh, kw]) and up (out, rank²[, 1, 1]).
    """
    down = (kernel.hada_w1_b[:, None] * kernel.hada_w2_b[None]).flatten(0, 1)
    up = (kernel.hada_w1_a[:, :, None] * kernel.hada_w2_a[:, None]).flatten(1)
    if isinstance(module, nn.Conv2d):
        return down.view(len(down), -1, *module.kernel_size), up[..., None, None]
    return down, up


def kronecker_output(kernel: Any, module: nn.Module, x: Tensor) -> Tensor:
    """LoKr's output without its scale: w₁ mixes the groups of channels that w₂ is applied to each."""
    first = (kernel.lokr_w1 if kernel.use_w1 else kernel.lokr_w1_a @ kernel.lokr_w1_b).to(x.dtype)  # (a, c)
    second = _second_factor(kernel)  # (b, d[, kh, kw])
    groups = first.shape[1]
    if isinstance(module, nn.Conv2d):
        if second.ndim == 2:
            second = second[..., None, None]
        parts = operate(module, x.unflatten(1, (groups, -1)).flatten(0, 1), second, None)  # (batch·c, b, h, w)
        mixed = torch.einsum("ac,ncbhw->nabhw", first, parts.unflatten(0, (-1, groups)))
        return mixed.flatten(1, 2)
    parts = F.linear(x.unflatten(-1, (groups, -1)), second.to(x.dtype))  # (…, c, b)
    return torch.einsum("ac,...cb->...ab", first, parts).flatten(-2)


def _second_factor(kernel: Any) -> Tensor:
    if kernel.use_w2:
        whole: Tensor = kernel.lokr_w2
        return whole
    if kernel.tucker:
        return torch.einsum("ij...,ib,jd->bd...", kernel.lokr_t2, kernel.lokr_w2_a, kernel.lokr_w2_b)
    product: Tensor = kernel.lokr_w2_a @ kernel.lokr_w2_b
    return product.unflatten(1, (-1, *kernel.shape[2:])) if len(kernel.shape) > 2 else product


def lengths(weight: Tensor, squares: Tensor, down: Tensor, up: Tensor) -> Tensor:
    """‖W + up @ down‖ of each row (out,) in fp32, of W (out, in·kh·kw) in any dtype with ‖W‖² = `squares` (out,).

    W gets no gradient.
    """
    with exact_matmul():
        crossed = (_RowsTimes.apply(weight, down) * up).sum(1)
        own = ((up @ (down @ down.t())) * up).sum(1)
    return (squares + 2 * crossed + own).clamp(min=0).sqrt() + torch.finfo(torch.float32).eps


class _RowsTimes(torch.autograd.Function):
    """W downᵀ in fp32; a W in half precision is kept for the backward pass as it is, not as a copy twice as large."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, down: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return weight.float() @ down.t()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        (weight,) = ctx.saved_tensors
        with exact_matmul():
            return None, gradients[0].t() @ weight.float()
