"""Adapters that train a module's parameters themselves: a full difference, norms, and (IA)³'s factors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lora_ext.networks.adapters.base import Adapter, parameter_like
from lora_ext.networks.adapters.dense import DenseAdapter, is_fp32, operate
from lora_ext.networks.dropout import NO_DROPOUT, Dropout, row_mask
from lora_ext.networks.targets import Target


class FullAdapter(DenseAdapter):
    """Trains the whole difference of weight and bias: `diff`, `diff_b`."""

    def __init__(self, target: Target, dropout: Dropout = NO_DROPOUT) -> None:
        super().__init__(target, dropout)
        module: Any = target.module
        self.diff = parameter_like(module.weight)
        self.diff_b = None if module.bias is None else parameter_like(module.bias)

    def deltas(self) -> tuple[Tensor, Tensor | None]:
        """The differences, without the outputs that rank dropout leaves out."""
        weight, bias = self.diff.float(), None if self.diff_b is None else self.diff_b.float()
        if self.training and self.dropout.rank:
            mask = row_mask(weight.shape[0], self.dropout).to(weight.device)
            weight = weight * mask.view(-1, *[1] * (weight.ndim - 1))
            bias = None if bias is None else bias * mask
        return weight, bias

    def tensors_for_file(self) -> dict[str, Tensor]:
        """`diff`, and `diff_b` where there is a bias."""
        return self.state_tensors()

    def delta_norm(self) -> Tensor:
        """‖diff‖."""
        return self.diff.detach().float().norm()

    @torch.no_grad()
    def shrink(self, ratio: Tensor) -> None:
        """Both differences by the same factor."""
        for each in self.parameters():
            each.mul_(ratio)


class NormAdapter(DenseAdapter):
    """Trains the differences of a norm layer's weight and bias: `w_norm`, `b_norm`."""

    def __init__(self, target: Target, dropout: Dropout = NO_DROPOUT) -> None:
        super().__init__(target, dropout)
        module: Any = target.module
        self.w_norm = parameter_like(module.weight)
        self.b_norm = None if module.bias is None else parameter_like(module.bias)

    def deltas(self) -> tuple[Tensor, Tensor | None]:
        """The differences as they are: dropout of ranks means nothing here."""
        return self.w_norm.float(), None if self.b_norm is None else self.b_norm.float()

    def tensors_for_file(self) -> dict[str, Tensor]:
        """`w_norm`, and `b_norm` where there is a bias."""
        return self.state_tensors()


class InputOutputAdapter(Adapter):
    """(IA)³ (Liu et al. 2022, arXiv:2205.05638): a factor 1 + w on each output, or on each input.

    The bias is left out of it, as files of (IA)³ change weights alone.
    """

    on_input: Tensor

    def __init__(self, target: Target, dropout: Dropout = NO_DROPOUT) -> None:
        super().__init__(target, dropout)
        module: Any = target.module
        width = module.weight.shape[1 if target.form.on_input else 0]
        is_convolution = isinstance(module, nn.Conv2d)
        self.weight = parameter_like(module.weight, (1, width, 1, 1) if is_convolution else (width,))
        self.register_buffer("on_input", torch.tensor(int(target.form.on_input)))

    def forward(self, x: Tensor) -> Tensor:
        """The module's output for x with its inputs, or its outputs, times 1 + w."""
        if self.left_out():
            return self.base_forward(x)
        module: Any = self.target.module
        weight = self.weight.to(x.dtype)
        if self.target.form.on_input and is_fp32(x):
            return self.base_forward(x + x * weight)
        output = self.base_forward(x)
        if self.target.form.on_input:  # half precision would lose what is small beside x
            return output + operate(module, x * weight, module.weight, None).to(output.dtype)
        unbiased = output
        if module.bias is not None:
            pixels = (1, 1) if weight.ndim == 4 else ()
            unbiased = output - module.bias.to(output.dtype).view(-1, *pixels)
        return output + unbiased * weight.to(output.dtype)

    def tensors_for_file(self) -> dict[str, Tensor]:
        """`weight` and `on_input`."""
        return self.state_tensors()

    def state_tensors(self) -> dict[str, Tensor]:
        """The same: which side it is belongs to a state too."""
        return {"weight": self.weight, "on_input": self.on_input}
