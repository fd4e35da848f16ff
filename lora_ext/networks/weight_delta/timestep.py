"""T-LoRA as LyCORIS 4 stores it (arXiv 2507.05964): the start that training went away from is not in the file."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lora_ext.networks.weight_delta.module import ModuleDelta, on, rows
from lora_ext.networks.weight_delta.stored import Stored, check_pointwise, check_rank, damaged

SUFFIXES = frozenset({"q_layer.weight", "p_layer.weight", "lambda_layer", "alpha"})


class TimestepLoraDelta(ModuleDelta):
    """ΔW = alpha / rank · (P diag(λ) Q - the largest singular parts of W), as many as the rank; at all timesteps.

    That is LyCORIS' start unless `sig_type` or `use_data_init` said otherwise, which no file tells.
    """

    algorithm = "T-LoRA"
    needs_weight = True

    def __init__(self, stored: Stored) -> None:
        self._q, self._p = stored.need("q_layer.weight", 2, 4), stored.need("p_layer.weight", 2, 4)
        self._singular = stored.need("lambda_layer", 1, 2).reshape(-1)
        for suffix, factor in (("q_layer.weight", self._q), ("p_layer.weight", self._p)):
            check_pointwise(suffix, factor)
        self._rank = check_rank(self._q.shape[0], self._p.shape[1], len(self._singular))
        if self._rank > min(self._p.shape[0], self._q.shape[1]):
            raise damaged(f"a rank of {self._rank} is more than a weight of {self.shape_for(())} has")
        self._scale = stored.scale(self._rank)

    @property
    def rank(self) -> int | None:
        """The number of singular values."""
        return self._rank

    def shape_for(self, weight_shape: Sequence[int]) -> tuple[int, ...]:
        """(out, in) of the factors, whatever the weight."""
        return (self._p.shape[0], self._q.shape[1])

    def weight_change(self, base: Tensor, multiplier: float, dyn: int | None) -> Tensor:
        """The trained product without the start's."""
        left, values, right = torch.linalg.svd(rows(base.float()), full_matrices=False)
        start = (left[:, : self._rank] * values[: self._rank]) @ right[: self._rank]
        trained = (rows(on(base, self._p)) * on(base, self._singular)) @ rows(on(base, self._q))
        return (trained - start) * (self._scale * multiplier)
