"""Several networks in one weight: W₀ + Σ ΔW in one pass, every ΔW made from the untouched weight."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lora_ext.checkpoint.weight_views import WeightView
from lora_ext.networks.region_mask import RegionMask
from lora_ext.networks.weight_delta import LowRankFactors, ModuleDelta, exact_matmul
from lora_ext.protocols import UserError

_BLOCK = 2**19  # numbers: 2 MB in fp32, which a processor's cache holds
_LARGE_BLOCK = 2**24  # on a GPU, and where arithmetic takes longer than memory
_THIN = 32  # ranks up to which memory takes longer than arithmetic


class ShareError(UserError):
    """A network's part in one parameter cannot be made; `source` tells which."""

    def __init__(self, source: Any, reason: str) -> None:
        super().__init__(reason)
        self.source = source


@dataclass(frozen=True)
class Share:
    """One network's part in one parameter of the checkpoint.

    `source` says where `delta` comes from and what it changes: two shares of one source hold the same tensors. With a
    `mask` it acts in a region of the picture alone, and cannot be in the weights.
    """

    source: Hashable
    multiplier: float
    dyn: int | None
    view: WeightView = field(compare=False)
    delta: ModuleDelta = field(compare=False)
    parameter: str = "weight"
    mask: RegionMask | None = None

    @property
    def factors(self) -> LowRankFactors | None:
        """Exact factors of whole rows of the parameter; None where there are none."""
        return self.delta.low_rank if self.parameter == "weight" and len(self.view.index) < 2 else None

    def change(self, base: Tensor) -> Tensor:
        """ΔW in fp32, in the shape of the view; `base` is the whole parameter, untouched.

        Raises ShareError where it cannot be made.
        """
        try:
            return self.delta.delta(self.view.of(base), self.multiplier, self.dyn, self.parameter)
        except (RuntimeError, UserError) as error:
            raise ShareError(self.source, str(error)) from error


@dataclass(frozen=True)
class WeightPatch:
    """All networks' parts in one parameter; a `Patch` for the ledger."""

    shares: tuple[Share, ...]

    def write(self, base: Tensor, out: Tensor) -> None:
        """Write base + Σ ΔW to `out`, in whatever order the shares are: summed in fp32, rounded once.

        Low-rank parts of any number of networks are one matrix product, fused with the sum.
        """
        others = [share for share in self.shares if share.factors is None]
        if not others and base.is_contiguous() and out.is_contiguous():
            _write_products(self.shares, base, out)
            return
        in_place = out.dtype == torch.float32 and (base.data_ptr() != out.data_ptr() or len(others) < 2)
        total = out if in_place else torch.empty_like(base, dtype=torch.float32)
        if total.data_ptr() != base.data_ptr():
            total.copy_(base)
        for share in others:
            share.view.of(total).add_(share.change(base))
        products = [share for share in self.shares if share.factors is not None]
        if total.is_contiguous():
            _write_products(products, total, total)
        else:
            for share in products:
                share.view.of(total).add_(share.change(base))
        if total is not out:
            out.copy_(total)


def patches_of(shares: Iterable[Share]) -> dict[nn.Parameter, WeightPatch]:
    """The shares by the parameter that they change, as the ledger takes them."""
    found: dict[nn.Parameter, list[Share]] = {}
    for share in shares:
        found.setdefault(share.view.parameter, []).append(share)
    return {parameter: WeightPatch(tuple(parts)) for parameter, parts in found.items()}


def _write_products(shares: Sequence[Share], base: Tensor, out: Tensor) -> None:
    """Write base + Σ multiplier·scale·up @ down to `out`; rows that no share changes are as in `base`."""
    by_rows: dict[tuple[int, ...], list[Share]] = {}
    for share in shares:
        by_rows.setdefault(tuple(rows.start for rows in share.view.index), []).append(share)
    if list(by_rows) != [()] and base.data_ptr() != out.data_ptr():
        base = out.copy_(base)
    with exact_matmul():
        for parts in by_rows.values():
            view = parts[0].view
            _add_product(view.of(base), view.of(out), *_joined_factors(parts, base.device))


def _joined_factors(shares: Sequence[Share], device: torch.device) -> tuple[Tensor, Tensor]:
    """[s₁·up₁ | s₂·up₂ …] (out, Σ rank) and [down₁; down₂; …] (Σ rank, in·kh·kw) in fp32."""
    ups, downs = [], []
    for share in shares:
        factors = share.factors
        assert factors is not None
        ups.append(factors.up[:, : share.dyn].to(device, torch.float32) * (factors.scale * share.multiplier))
        downs.append(factors.down[: share.dyn].to(device, torch.float32))
    return (ups[0], downs[0]) if len(shares) == 1 else (torch.cat(ups, 1), torch.cat(downs, 0))


def _add_product(base: Tensor, out: Tensor, up: Tensor, down: Tensor) -> None:
    """Write base + up @ down to `out` in one pass over the weight, both contiguous and of one dtype.

    On a processor, `addmm` copies base first and adds to the copy: block by block, its cache still holds that. Weights
    in half precision are widened, changed and rounded block by block, so that there is never a whole copy in fp32.
    """
    rows, columns = up.shape[0], down.shape[1]
    base, out = base.view(rows, columns), out.view(rows, columns)
    is_single = base.dtype == torch.float32
    in_cache = base.device.type == "cpu" and up.shape[1] <= _THIN
    step = rows if is_single and not in_cache else max(1, (_BLOCK if in_cache else _LARGE_BLOCK) // columns)
    for first in range(0, rows, step):
        block = slice(first, first + step)
        if is_single:
            torch.addmm(base[block], up[block], down, out=out[block])
        else:
            out[block] = base[block].float().addmm_(up[block], down)
