"""Low-rank adaptation of one module (Hu et al. 2021, arXiv:2106.09685)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import skip_init

from lora_ext.networks.dropout import NO_DROPOUT, Dropout, rank_mask
from lora_ext.networks.fused_linear import can_fuse, is_plain_linear, lora_linear
from lora_ext.networks.targets import Target


class LoraAdapter(nn.Module):
    """Adds up(down(x))·alpha/rank to the output of one linear layer or convolution.

    The adapted module is no child of the adapter: `parameters()` holds lora_down and lora_up only. Both are fp32 on
    the module's device (`cast` changes that), and compute in the dtype of what they are given. `dropout` acts in train
    mode alone.
    """

    alpha: Tensor

    def __init__(self, target: Target, generator: torch.Generator, dropout: Dropout = NO_DROPOUT) -> None:
        """Draw lora_down as sd-scripts does, from the CPU `generator`; lora_up is zero, so nothing changes at first."""
        super().__init__()
        self.target = target
        self.rank = target.rank
        self.dropout = dropout
        self.lora_down, self.lora_up = _factors(target.module, target.rank)
        with torch.no_grad():
            bound = 1.0 / math.sqrt(self.lora_down.weight[0].numel())  # kaiming_uniform with a = √5 over the fan-in
            self.lora_down.weight.uniform_(-bound, bound, generator=generator)
            self.lora_up.weight.zero_()
        weight = target.module.weight
        assert isinstance(weight, Tensor)
        self.to(weight.device)
        self.register_buffer("alpha", torch.tensor(float(target.alpha)))
        self.scale = target.alpha / target.rank
        self._module_forward: Callable[[Tensor], Tensor] | None = None
        self._overridden: Callable[[Tensor], Tensor] | None = None
        self._installed: Callable[[Tensor], Tensor] | None = None
        self._is_plain = False

    @property
    def attached(self) -> bool:
        """Whether the module's forward goes through the adapter."""
        return self._module_forward is not None

    def attach(self) -> None:
        """Put the adapter into the module's forward, on this instance alone.

        It goes over the forward that is there now, with whatever programs have put into the class (the WebUI's built-in
        Lora does); as the class is left alone, neither has to be taken off before the other.
        """
        if self._module_forward is not None:
            raise RuntimeError(f"{self.target.key}: the adapter is attached already")
        module = self.target.module
        self._is_plain = is_plain_linear(module) and not module.weight.requires_grad
        self._overridden = module.__dict__.get("forward")
        self._module_forward = module.forward
        self._installed = self.forward
        module.__dict__["forward"] = self._installed

    def detach(self) -> None:
        """Undo `attach` exactly: the module has the forward again that it had."""
        if self._module_forward is None:
            raise RuntimeError(f"{self.target.key}: the adapter is not attached")
        module = self.target.module
        if module.__dict__.get("forward") is not self._installed:
            raise RuntimeError(f"{self.target.key}: something else was put over the adapter: take that off first")
        if self._overridden is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = self._overridden
        self._module_forward = self._overridden = self._installed = None

    def forward(self, x: Tensor) -> Tensor:
        """The module's output for x (batch, …, in) or (batch, in, h, w), and the adapter's added to it."""
        if self._module_forward is None:
            raise RuntimeError(f"{self.target.key}: the adapter is not attached")
        drops = self.training and self.dropout.active
        if self._is_plain and not drops:
            module = cast(nn.Linear, self.target.module)
            down, up = self.lora_down.weight, self.lora_up.weight
            if can_fuse(x, module.weight, down, up):
                return lora_linear(x, module.weight, module.bias, down, up, self.scale)
        output: Tensor = self._module_forward(x)
        if drops:
            return self._with_dropout(output, x)
        return self._added(output, self._hidden(x), self.scale)

    def _hidden(self, x: Tensor) -> Tensor:
        """down(x): (batch, …, rank) or (batch, rank, h, w)."""
        layer, weight = self.lora_down, self.lora_down.weight.to(x.dtype)
        if isinstance(layer, nn.Conv2d):
            return F.conv2d(x, weight, None, layer.stride, layer.padding, layer.dilation)
        return F.linear(x, weight)

    def _added(self, output: Tensor, hidden: Tensor, scale: float) -> Tensor:
        """output + up(hidden)·scale, in one product of matrices where it is one."""
        up = self.lora_up.weight.to(hidden.dtype)
        if isinstance(self.lora_up, nn.Conv2d):
            return output + F.conv2d(hidden * scale, up)
        if output.dtype != hidden.dtype:  # a host's forward may compute in another one than its input's
            return output + F.linear(hidden * scale, up)
        flat = torch.addmm(output.flatten(0, -2), hidden.flatten(0, -2), up.t(), alpha=scale)
        return flat.view(output.shape)

    def _with_dropout(self, output: Tensor, x: Tensor) -> Tensor:
        """The same in train mode, as sd-scripts leaves out values, ranks and whole modules."""
        dropout = self.dropout
        if dropout.module and float(torch.rand(1)) < dropout.module:
            return output
        hidden, scale = self._hidden(x), self.scale
        if dropout.values:
            hidden = F.dropout(hidden, dropout.values)
        if dropout.rank:
            hidden = hidden * rank_mask(hidden, dropout.rank, isinstance(self.lora_down, nn.Conv2d))
            scale /= 1.0 - dropout.rank
        return self._added(output, hidden, scale)

    def cast(self, dtype: torch.dtype) -> None:
        """Keep both factors in this dtype from now on."""
        self.lora_down.to(dtype)
        self.lora_up.to(dtype)

    @torch.no_grad()
    def load(self, down: Tensor, up: Tensor, alpha: float) -> None:
        """Take over stored factors; the caller has compared the shapes."""
        self.lora_down.weight.copy_(down.reshape(self.lora_down.weight.shape))
        self.lora_up.weight.copy_(up.reshape(self.lora_up.weight.shape))
        self.alpha.fill_(alpha)
        self.scale = alpha / self.rank


def _factors(module: nn.Module, rank: int) -> tuple[nn.Linear | nn.Conv2d, nn.Linear | nn.Conv2d]:
    """Uninitialised fp32 down and up for a module: the random state of the program around is not touched."""
    if isinstance(module, nn.Conv2d):
        if module.groups != 1:
            raise ValueError(f"a convolution of {module.groups} groups cannot be adapted: only ungrouped ones can")
        down = skip_init(
            nn.Conv2d, module.in_channels, rank, module.kernel_size, module.stride, module.padding, module.dilation,
            bias=False, dtype=torch.float32,
        )  # fmt: skip
        return down, skip_init(nn.Conv2d, rank, module.out_channels, 1, bias=False, dtype=torch.float32)
    if not isinstance(module, nn.Linear):
        raise TypeError(f"a {type(module).__name__} cannot be adapted: only Linear and Conv2d can")
    return (
        skip_init(nn.Linear, module.in_features, rank, bias=False, dtype=torch.float32),
        skip_init(nn.Linear, rank, module.out_features, bias=False, dtype=torch.float32),
    )
