"""Low-rank adaptation of one module (Hu et al. 2021, arXiv:2106.09685)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import skip_init

from lora_ext.networks.targets import Target


class LoraAdapter(nn.Module):
    """Adds up(down(x))·alpha/rank to the output of one linear layer or convolution.

    The adapted module is no child of the adapter: `parameters()` holds lora_down and lora_up only. Both are fp32 on
    the module's device, and compute in the dtype of what they are given.
    """

    alpha: Tensor

    def __init__(self, target: Target, generator: torch.Generator) -> None:
        """Draw lora_down as sd-scripts does, from the CPU `generator`; lora_up is zero, so nothing changes at first."""
        super().__init__()
        self.target = target
        self.rank = target.rank
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
        output: Tensor = self._module_forward(x)
        return output + self.low_rank(x)

    def low_rank(self, x: Tensor) -> Tensor:
        """up(down(x))·scale; the scale goes onto the rank's few channels, where it is cheapest."""
        down, up = self.lora_down.weight.to(x.dtype), self.lora_up.weight.to(x.dtype)
        if isinstance(self.lora_down, nn.Conv2d):
            layer = self.lora_down
            hidden = F.conv2d(x, down, None, layer.stride, layer.padding, layer.dilation)  # (batch, rank, h, w)
            return F.conv2d(hidden * self.scale, up)
        return F.linear(F.linear(x, down) * self.scale, up)  # (batch, …, in) -> (batch, …, rank) -> (batch, …, out)

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
