"""Low-rank adaptation of one module (Hu et al. 2021, arXiv:2106.09685)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import skip_init

from lora_ext.networks.adapters.base import Adapter
from lora_ext.networks.dropout import NO_DROPOUT, Dropout, rank_mask
from lora_ext.networks.fused_linear import can_fuse, lora_linear
from lora_ext.networks.targets import Target
from lora_ext.networks.weight_delta import exact_matmul


class LoraAdapter(Adapter):
    """Adds up(down(x))·alpha/rank to the output of one linear layer or convolution.

    `parameters()` holds lora_down and lora_up only, which compute in the dtype of what they are given. `dropout` acts
    in train mode alone. With a form's `frozen_down` (LoRA-FA) lora_down stays as it is drawn.
    """

    up_factors = ("lora_up.",)

    def __init__(self, target: Target, generator: torch.Generator, dropout: Dropout = NO_DROPOUT) -> None:
        """Draw lora_down as sd-scripts does, from the CPU `generator`; lora_up is zero, so nothing changes at first."""
        super().__init__(target, dropout)
        self.lora_down, self.lora_up = _factors(target.module, target.rank)
        with torch.no_grad():
            bound = 1.0 / math.sqrt(self.lora_down.weight[0].numel())  # kaiming_uniform with a = √5 over the fan-in
            self.lora_down.weight.uniform_(-bound, bound, generator=generator)
            self.lora_up.weight.zero_()
        weight = target.module.weight
        assert isinstance(weight, Tensor)
        self.to(weight.device)
        self.lora_down.requires_grad_(not target.form.frozen_down)
        self.scale = target.alpha / target.rank

    def forward(self, x: Tensor) -> Tensor:
        """The module's output for x (batch, …, in) or (batch, in, h, w), and the adapter's added to it."""
        module = self.target.module
        drops = self.training and self.dropout.active
        if self._is_untouched and isinstance(module, nn.Linear) and not drops:
            down, up = self.lora_down.weight, self.lora_up.weight
            if can_fuse(x, module.weight, down, up):
                return lora_linear(x, module.weight, module.bias, down, up, self.scale)
        output = self.base_forward(x)
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
        if self.left_out():
            return output
        hidden, scale = self._hidden(x), self.scale
        if dropout.values:
            hidden = F.dropout(hidden, dropout.values)
        if dropout.rank:
            hidden = hidden * rank_mask(hidden, dropout.rank, isinstance(self.lora_down, nn.Conv2d))
            scale /= 1.0 - dropout.rank
        return self._added(output, hidden, scale)

    def set_alpha(self, alpha: float) -> None:
        """Take a file's alpha."""
        super().set_alpha(alpha)
        self.scale = alpha / self.rank

    def delta_norm(self) -> Tensor:
        """‖ΔW‖ without ΔW: ‖BA‖² is the sum over BᵀB ∘ AAᵀ, and the rank² products are far cheaper."""
        return factors_norm(self.lora_down.weight, self.lora_up.weight) * abs(self.scale)

    @torch.no_grad()
    def shrink(self, ratio: Tensor) -> None:
        """Both factors by √ratio; with a frozen down, up alone."""
        if not self.target.form.frozen_down:
            ratio = ratio.sqrt()
            self.lora_down.weight.mul_(ratio)
        self.lora_up.weight.mul_(ratio)


@torch.no_grad()
def factors_norm(down: Tensor, up: Tensor) -> Tensor:
    """‖up @ down‖ (Frobenius) of down (rank, in, …) and up (out, rank, …), a scalar in fp32."""
    first, second = down.float().flatten(1), up.float().flatten(1)
    with exact_matmul():
        return ((second.t() @ second) * (first @ first.t())).sum().clamp(min=0).sqrt()


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
