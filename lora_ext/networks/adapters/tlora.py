"""T-LoRA (Soboleva et al. 2025, arXiv:2507.05964): low-rank factors that begin at a weight's own directions."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lora_ext.networks.adapters.base import Adapter
from lora_ext.networks.adapters.dense import operate
from lora_ext.networks.adapters.dylora import pointwise
from lora_ext.networks.adapters.lycoris import make_kernel
from lora_ext.networks.dropout import NO_DROPOUT, Dropout
from lora_ext.networks.targets import Target
from lora_ext.protocols import UserError

_START = ("q_layer.weight", "p_layer.weight", "lambda_layer")
_BASE = ("base_q", "base_p", "base_lambda")


class TloraAdapter(Adapter):
    """Adds P·diag(λ)·Q − P₀·diag(λ₀)·Q₀, where the latter is what the former was at the start.

    Both are low-rank, and so is the forward pass; a file is a LoRA of twice the rank, which every program can read.
    """

    up_factors = ("kernel.p_layer.",)

    def __init__(self, target: Target, generator: torch.Generator, dropout: Dropout = NO_DROPOUT) -> None:
        """The start comes from the weight's singular vectors; nothing is drawn."""
        super().__init__(target, dropout)
        self.kernel = make_kernel(target, generator)
        weight = target.module.weight
        assert isinstance(weight, Tensor)
        self.kernel.to(weight.device)
        self.scale = target.alpha / target.rank

    def forward(self, x: Tensor) -> Tensor:
        """The module's output for x, and what the factors have come to be."""
        if self.left_out():
            return self.base_forward(x)
        down, up = self._factors()
        output, hidden = self.base_forward(x), operate(self.target.module, x, down, None)
        return output + pointwise(hidden, up * self.scale).to(output.dtype)

    def tensors_for_file(self) -> dict[str, Tensor]:
        """A LoRA's tensors, of twice the rank and alpha."""
        down, up = self._factors()
        return {"alpha": self.alpha * 2, "lora_down.weight": down, "lora_up.weight": up}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Files hold a LoRA, which does not tell where the training began."""
        raise UserError(
            "network_algorithm = tlora: its files are plain LoRA and do not tell where the training began: train on "
            "with network_algorithm = lora, or resume a saved state"
        )

    def state_tensors(self) -> dict[str, Tensor]:
        """The factors as they are and as they were at the start."""
        return {name: self.kernel.get_parameter(name) for name in _START} | {
            name: self.kernel.get_buffer(name) for name in _BASE
        }

    def _factors(self) -> tuple[Tensor, Tensor]:
        """Down (2·rank, in[, 1, 1]) and up (out, 2·rank[, 1, 1]), λ multiplied into the latter."""
        kernel = self.kernel
        q, p = kernel.q_layer.weight, kernel.p_layer.weight
        shape = (1, -1, *[1] * (p.ndim - 2))
        now, then = p * kernel.lambda_layer.view(shape), kernel.base_p * kernel.base_lambda.view(shape)
        return torch.cat([q, kernel.base_q]), torch.cat([now, -then], dim=1)
