"""DyLoRA (Valipour et al. 2022, arXiv:2210.07558): a low-rank network that may be cut down to fewer ranks later."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lora_ext.networks.adapters.base import Adapter
from lora_ext.networks.adapters.dense import operate
from lora_ext.networks.dropout import NO_DROPOUT, Dropout
from lora_ext.networks.lora import LoraAdapter, factors_norm
from lora_ext.networks.targets import Target
from lora_ext.protocols import UserError


class DyloraAdapter(Adapter):
    """Trains a block of `unit` ranks at a time, drawn anew in each pass, over the blocks before it, which stand still.

    The strength is alpha over the number of blocks that take part, as in LyCORIS; a file is a LoRA of all of them, with
    alpha · unit, so that it acts as the whole network does. Each block is a parameter of its own: optimizers leave
    alone what was not drawn.
    """

    up_factors = ("lora_up.",)

    def __init__(self, target: Target, generator: torch.Generator, dropout: Dropout = NO_DROPOUT) -> None:
        """Begin as plain LoRA does, with the same numbers from the CPU `generator`."""
        super().__init__(target, dropout)
        self.unit = target.form.unit
        if target.rank % self.unit:
            raise UserError(
                f"network_algorithm = dylora: {target.key} has rank {target.rank}, which is no multiple of "
                f"block_size = {self.unit}: change one of them"
            )
        plain = LoraAdapter(target, generator)
        down, up = plain.lora_down.weight.detach(), plain.lora_up.weight.detach()
        self.lora_down = nn.ParameterList(part.clone() for part in down.split(self.unit))
        self.lora_up = nn.ParameterList(part.clone() for part in up.split(self.unit, dim=1))

    @property
    def draws(self) -> bool:
        """It does in each pass: which blocks take part."""
        return True

    def forward(self, x: Tensor) -> Tensor:
        """The module's output for x, and that of the blocks up to a drawn one; in eval mode that of all."""
        if self.left_out():
            return self.base_forward(x)
        blocks = len(self.lora_down)
        last = int(torch.randint(blocks, (1,))) if self.training else blocks - 1
        downs, ups = list(self.lora_down)[: last + 1], list(self.lora_up)[: last + 1]
        if self.training:
            downs[:-1], ups[:-1] = [each.detach() for each in downs[:-1]], [each.detach() for each in ups[:-1]]
        down, up = torch.cat(downs), torch.cat(ups, dim=1) * (float(self.alpha) / (last + 1))
        output, hidden = self.base_forward(x), operate(self.target.module, x, down, None)
        return output + pointwise(hidden, up).to(output.dtype)

    def tensors_for_file(self) -> dict[str, Tensor]:
        """A LoRA's tensors."""
        down, up = torch.cat(list(self.lora_down)), torch.cat(list(self.lora_up), dim=1)
        return {"alpha": self.alpha * self.unit, "lora_down.weight": down, "lora_up.weight": up}

    @torch.no_grad()
    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over a LoRA's tensors."""
        for name, parts, axis in (("lora_down", self.lora_down, 0), ("lora_up", self.lora_up, 1)):
            for part, stored in zip(parts, tensors[f"{name}.weight"].split(self.unit, dim=axis), strict=True):
                part.copy_(stored.reshape(part.shape))
        if "alpha" in tensors:
            self.set_alpha(float(tensors["alpha"]) / self.unit)

    def delta_norm(self) -> Tensor:
        """‖ΔW‖ of all blocks together."""
        tensors = self.tensors_for_file()
        scale = self.alpha.abs() / len(self.lora_down)
        return factors_norm(tensors["lora_down.weight"], tensors["lora_up.weight"]) * scale

    @torch.no_grad()
    def shrink(self, ratio: Tensor) -> None:
        """All factors by √ratio."""
        for each in self.parameters():
            each.mul_(ratio.sqrt())


def pointwise(hidden: Tensor, weight: Tensor) -> Tensor:
    """A linear layer, or a 1×1 convolution, of weight (out, in) or (out, in, 1, 1) on hidden, in its dtype."""
    weight = weight.to(hidden.dtype)
    return nn.functional.conv2d(hidden, weight) if weight.ndim == 4 else nn.functional.linear(hidden, weight)
