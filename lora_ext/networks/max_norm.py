"""Max-norm regularisation: no adapter's ΔW grows longer than a limit (sd-scripts' scale_weight_norms)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from lora_ext.networks.adapters.base import Adapter


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
    """Holds the adapters of a network to a largest ‖ΔW‖, without waiting for the device.

    Adapters without a norm of that kind (those of norm layers) are left as they are.
    """

    def __init__(self, adapters: Iterable[Adapter], limit: float) -> None:
        self.limit = limit
        self._adapters = [adapter for adapter in adapters if adapter.delta_norm() is not None]
        self._scaled: Tensor | None = None
        self._norms: Tensor | None = None

    @torch.no_grad()
    def apply(self) -> None:
        """Shrink each adapter that is too long to the limit."""
        norms = [norm for adapter in self._adapters if (norm := adapter.delta_norm()) is not None]
        if not norms:
            return
        before = torch.stack(norms)
        ratios = (self.limit / before.clamp(min=self.limit)).clamp(max=1.0)  # exactly 1 up to the limit
        for adapter, ratio in zip(self._adapters, ratios.unbind(), strict=True):
            adapter.shrink(ratio)
        self._scaled, self._norms = (ratios < 1).sum(), before * ratios

    def report(self) -> NormReport | None:
        """What the last `apply` did; None before the first. Waits for the device."""
        if self._scaled is None or self._norms is None:
            return None
        norms = self._norms
        scaled, average, longest = torch.stack([self._scaled.to(norms), norms.mean(), norms.max()]).tolist()
        return NormReport(int(scaled), average, longest)
