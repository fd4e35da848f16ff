"""DoRA (arXiv 2402.09353): the changed weight's rows or columns are brought to learned lengths."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lora_ext.networks.weight_delta.module import ModuleDelta, on, rows
from lora_ext.networks.weight_delta.stored import Stored, damaged

SUFFIX = "dora_scale"


class DoraDelta(ModuleDelta):
    """W' = (W + ΔW) · length / ‖W + ΔW‖ by output (out, 1, …) or by input (1, in, …), with W untouched.

    The multiplier goes from W to W', so that a small one is a small change. LyCORIS' forward scales the length alone,
    and keeps all of ΔW at multiplier 0; at 1, where it trains, both are the same.
    """

    needs_weight = True

    def __init__(self, stored: Stored, inner: ModuleDelta) -> None:
        lengths = stored.need(SUFFIX, 1, 2, 3, 4, 5)
        self._inner, self._lengths = inner, lengths.reshape(-1)
        self.algorithm = f"{inner.algorithm} with DoRA"
        self.bias = inner.bias
        shape = inner.shape_for(())
        outputs = lengths.shape[0]
        self._by_output = outputs == lengths.numel() and (outputs != 1 or lengths.ndim == 1 or shape[0] == 1)
        inputs = lengths.shape[1] if lengths.ndim > 1 else 0
        if not self._by_output and inputs != lengths.numel():
            raise damaged(f"{SUFFIX} {tuple(lengths.shape)} has neither a length an output nor one an input")
        if self._by_output and outputs != shape[0]:
            raise damaged(f"{SUFFIX} has {outputs} lengths for {shape[0]} outputs")

    @property
    def rank(self) -> int | None:
        """The rank of what is decomposed."""
        return self._inner.rank

    def shape_for(self, weight_shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of what is decomposed."""
        return self._inner.shape_for(weight_shape)

    def fits(self, weight_shape: Sequence[int]) -> bool:
        """As for all kinds; a length an input needs as many inputs."""
        inputs = weight_shape[1] if len(weight_shape) > 1 else 0
        return super().fits(weight_shape) and (self._by_output or self._lengths.numel() == inputs)

    def weight_change(self, base: Tensor, multiplier: float, dyn: int | None) -> Tensor:
        """W' - W, by the multiplier."""
        untouched = base.float()
        changed = self._inner.weight_change(base, 1.0, dyn).reshape(base.shape) + untouched
        by_row = changed if self._by_output else changed.transpose(0, 1)
        norms = rows(by_row).norm(dim=1) + torch.finfo(torch.float32).eps
        scale = (on(base, self._lengths) / norms).reshape(-1, *[1] * (base.ndim - 1))
        if not self._by_output:
            scale = scale.transpose(0, 1)
        return changed.mul_(scale).sub_(untouched).mul_(multiplier)
