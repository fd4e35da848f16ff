"""T-LoRA (Soboleva et al. 2025, arXiv:2507.05964): low-rank factors that begin at a weight's own directions."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_ext.networks.adapters.base import Adapter
from lora_ext.networks.adapters.dense import operate
from lora_ext.networks.adapters.dylora import pointwise
from lora_ext.networks.dropout import NO_DROPOUT, Dropout
from lora_ext.networks.targets import Target
from lora_ext.protocols import UserError


class TloraAdapter(Adapter):
    """Adds P·diag(λ)·Q − P₀·diag(λ₀)·Q₀, where the latter is what the former was at the start.

    They start at the weight's largest singular values, as LyCORIS' module does: q_layer (rank, in), p_layer (out,
    rank), lambda_layer (rank,). Both products are low-rank, and so is the forward pass; a file is a LoRA of twice the
    rank, which every program can read.
    """

    up_factors = ("p_layer",)
    q_start: Tensor
    p_start: Tensor
    lambda_start: Tensor

    def __init__(self, target: Target, dropout: Dropout = NO_DROPOUT) -> None:
        """The start comes from the weight alone: nothing is drawn."""
        super().__init__(target, dropout)
        module = target.module
        weight = module.weight
        assert isinstance(weight, Tensor)
        if isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1):
            raise UserError(f"network_algorithm = tlora: {target.key} is a 3×3 convolution, which it cannot adapt")
        u, s, v = torch.linalg.svd(weight.detach().float().flatten(1), full_matrices=False)
        missing = max(0, target.rank - len(s))
        starts = {
            "q": F.pad(v[: target.rank], (0, 0, 0, missing)),
            "p": F.pad(u[:, : target.rank], (0, missing)),
            "lambda": F.pad(s[: target.rank], (0, missing), value=1e-6),
        }
        for name, start in starts.items():
            self.register_parameter(f"{name}_layer", nn.Parameter(start.contiguous()))
            self.register_buffer(f"{name}_start", start.clone().contiguous())
        self.scale = target.alpha / target.rank

    def forward(self, x: Tensor) -> Tensor:
        """The module's output for x, and what the factors have come to be."""
        if self.left_out():
            return self.base_forward(x)
        down, up = self._factors()
        output, hidden = self.base_forward(x), operate(self.target.module, x, down, None)
        return output + pointwise(hidden, up * self.scale).to(output.dtype)

    def cast(self, dtype: torch.dtype) -> None:
        """Keep the factors in this dtype from now on; what rounding moves is taken out of the start too."""
        before = {name: parameter.detach().float() for name, parameter in self.named_parameters()}
        super().cast(dtype)
        for name, parameter in self.named_parameters():
            start = self.get_buffer(name.replace("_layer", "_start"))
            start.add_(parameter.detach().float() - before[name])

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

    def set_alpha(self, alpha: float) -> None:
        """Take a state's alpha."""
        super().set_alpha(alpha)
        self.scale = alpha / self.rank

    def state_tensors(self) -> dict[str, Tensor]:
        """The factors as they are and as they were at the start."""
        return {name: tensor for name, tensor in self.state_dict(keep_vars=True).items() if name != "alpha"}

    def _factors(self) -> tuple[Tensor, Tensor]:
        """Down (2·rank, in[, 1, 1]) and up (out, 2·rank[, 1, 1]) of (PΛ − P₀Λ₀)Q + P₀Λ₀(Q − Q₀), in fp32.

        That is the same, and not the difference of two large products: half precision would leave little of it.
        """
        q, p, scales = (self.get_parameter(f"{name}_layer").float() for name in ("q", "p", "lambda"))
        start = self.p_start * self.lambda_start
        down = torch.cat([q, q - self.q_start])
        up = torch.cat([p * scales - start, start], dim=1)
        pixels = (1, 1) if isinstance(self.target.module, nn.Conv2d) else ()
        return down.view(*down.shape, *pixels), up.view(*up.shape, *pixels)
