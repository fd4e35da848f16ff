"""The ledger of changed weights: the only way in which weights of a checkpoint are changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

TRAINING = "training"
"""The owner of the weights while a network is trained on them."""

Delta = Callable[[], Tensor]
"""Makes ΔW of one parameter when it is needed: fp32, with the parameter's number of elements, on its device."""


@runtime_checkable
class FusedDelta(Protocol):
    """A `Delta` that can also write W₀ + ΔW itself, without ΔW ever being a tensor of its own."""

    def __call__(self) -> Tensor:
        """ΔW, as any `Delta` makes it."""
        ...

    def add_to(self, base: Tensor, out: Tensor) -> None:
        """Write base + ΔW to `out`, both fp32 and contiguous in the parameter's shape; they may be the same tensor.

        Whoever makes it has seen to it that the sizes fit.
        """
        ...


class PatchLedger:
    """Backs up, patches and restores parameters, for one owner at a time.

    Only parameters that are patched are backed up, in main memory. Whoever calls holds the host's lock: the ledger is
    not made for several threads at once.
    """

    def __init__(self) -> None:
        self._originals: dict[nn.Parameter, Tensor] = {}
        self._owner: str | None = None
        self._exclusive: str | None = None
        self._revision = 0

    @property
    def owner(self) -> str | None:
        """Whose patches are in the weights, or who has them exclusively; None where they are as loaded and free."""
        return self._owner or self._exclusive

    @property
    def patched(self) -> int:
        """Number of parameters that differ from what was loaded."""
        return len(self._originals)

    @property
    def revision(self) -> int:
        """Grows with every change of any weight, so that who patched can tell whether it still stands."""
        return self._revision

    @torch.no_grad()
    def patch(self, owner: str, deltas: Mapping[nn.Parameter, Delta]) -> None:
        """Set the whole state: each parameter in `deltas` becomes round(W₀ + Δ), every other one W₀ bit for bit.

        The sum is made in fp32 and rounded once to the parameter's dtype. After an exception everything is W₀.
        Raises RuntimeError where someone else has patches in the weights or has them exclusively, ValueError where a
        delta does not have its parameter's number of elements.
        """
        self._refuse_others(owner)
        self._revision += 1
        self._owner = owner
        try:
            for parameter in [each for each in self._originals if each not in deltas]:
                parameter.copy_(self._originals[parameter])
                del self._originals[parameter]
            for parameter, delta in deltas.items():
                self._patch_one(parameter, delta)
        except BaseException:
            self._restore_all()
            raise
        if not self._originals:
            self._owner = None

    def restore(self, owner: str) -> None:
        """Set every parameter that `owner` has patched to W₀ bit for bit; nothing happens where it has patched none."""
        if self._owner == owner:
            self._restore_all()

    @contextmanager
    def exclusive(self, owner: str) -> Iterator[None]:
        """Unpatched weights that nobody but `owner` may patch, from entering to leaving the block; unpatched after it.

        Raises RuntimeError where someone has them exclusively already.
        """
        if self._exclusive is not None:
            raise RuntimeError(f"{owner} wants the weights for itself while {self._exclusive} has them")
        self._restore_all()
        self._exclusive = owner
        try:
            yield
        finally:
            self._exclusive = None
            self._restore_all()

    def forget(self) -> None:
        """Drop all backups without restoring: other weights were loaded into the same parameters."""
        self._originals.clear()
        self._owner = None
        self._revision += 1

    def _refuse_others(self, owner: str) -> None:
        for other in (self._exclusive, self._owner):
            if other is not None and other != owner:
                raise RuntimeError(f"{owner} cannot change weights while {other} has changed or borrowed them")

    def _patch_one(self, parameter: nn.Parameter, delta: Delta) -> None:
        original = self._originals.get(parameter)
        base = parameter.detach() if original is None else original.to(parameter.device)
        fits = base.dtype == torch.float32 and base.is_contiguous() and parameter.is_contiguous()
        if fits and isinstance(delta, FusedDelta):
            if original is None:
                self._originals[parameter] = base.to("cpu", copy=True)
            delta.add_to(base, parameter.detach())
            return
        change = delta()
        if change.numel() != base.numel():
            raise ValueError(f"a delta of shape {tuple(change.shape)} for a weight of shape {tuple(base.shape)}")
        change = change.to(base.device, torch.float32).reshape(base.shape)
        if original is None:
            self._originals[parameter] = base.to("cpu", copy=True)
        torch.add(base.float(), change, out=parameter.detach())  # rounded as it is stored, without another copy

    @torch.no_grad()
    def _restore_all(self) -> None:
        for parameter, original in self._originals.items():
            parameter.copy_(original)
        self._revision += 1
        self._originals.clear()
        self._owner = None
