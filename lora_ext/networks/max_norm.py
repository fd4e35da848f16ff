"""Max-norm regularisation: no adapter's ΔW grows longer than a limit (sd-scripts' scale_weight_norms)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from lora_ext.networks.lora import LoraAdapter
from lora_ext.networks.weight_delta import exact_matmul


@dataclass(frozen=True)
class NormReport:
    """How many adapters were scaled down, and the average and the longest ‖ΔW‖ afterwards."""

    keys_scaled: int
    average: float
    maximum: float

    def as_dict(self) -> dict[str, float]:
        """The report by names."""
        return {"keys_scaled": self.keys_scaled, "average_norm": self.average, "maximum_norm": self.maximum}

    def sentence(self) -> str:
        """The report for a person."""
        return f"{self.keys_scaled} keys scaled, average norm {self.average:.4g}, longest {self.maximum:.4g}"


class MaxNorm:
    """Holds the adapters of a network to a largest ‖ΔW‖, without waiting for the device."""

    def __init__(self, adapters: Iterable[LoraAdapter], limit: float) -> None:
        self.limit = limit
        self._adapters = list(adapters)
        self._scaled: Tensor | None = None
        self._norms: Tensor | None = None

    @torch.no_grad()
    def apply(self) -> None:
        """Scale both factors of each adapter that is too long by √(limit / ‖ΔW‖)."""
        before = torch.stack([delta_norm(adapter) for adapter in self._adapters])
        ratios = (self.limit / before.clamp(min=self.limit)).clamp(max=1.0)  # exactly 1 up to the limit
        for adapter, root in zip(self._adapters, ratios.sqrt().unbind(), strict=True):
            adapter.lora_down.weight.mul_(root)
            adapter.lora_up.weight.mul_(root)
        self._scaled, self._norms = (ratios < 1).sum(), before * ratios

    def report(self) -> NormReport | None:
        """What the last `apply` did; None before the first. Waits for the device."""
        if self._scaled is None or self._norms is None:
            return None
        norms = self._norms
        scaled, average, longest = torch.stack([self._scaled.to(norms), norms.mean(), norms.max()]).tolist()
        return NormReport(int(scaled), average, longest)


@torch.no_grad()
def delta_norm(adapter: LoraAdapter) -> Tensor:
    """‖ΔW‖ (Frobenius) of an adapter, a scalar in fp32.

    ‖BA‖² is the sum over BᵀB ∘ AAᵀ: the rank² products are far cheaper than ΔW itself.
    """
    down = adapter.lora_down.weight.float().flatten(1)  # (rank, in·kh·kw)
    up = adapter.lora_up.weight.float().flatten(1)  # (out, rank)
    with exact_matmul():
        squared = ((up.t() @ up) * (down @ down.t())).sum()
    return squared.clamp(min=0).sqrt() * abs(adapter.scale)
