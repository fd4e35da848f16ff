"""The ledger of changed weights: the only way in which weights of a checkpoint are changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

from lora_ext.checkpoint.backups import Backups

TRAINING = "training"
"""The owner of the weights while a network is trained on them."""


class Patch(Protocol):
    """What becomes of one parameter. Patches that are equal (==) make the same of it."""

    def write(self, base: Tensor, out: Tensor) -> None:
        """Write the changed weight to `out`: computed in fp32 from the untouched `base`, rounded once to its dtype.

        Both have the parameter's shape, dtype and device; they may be the same tensor. Raises ValueError where the
        change is of another size.
        """
        ...


class Attachment(Protocol):
    """What is put over the forwards of modules, beside the patches: it goes whenever they go."""

    def attach(self, original: Callable[[nn.Parameter], Tensor]) -> None:
        """Put it there; `original` gives the untouched values of a parameter."""
        ...

    def detach(self) -> None:
        """Undo `attach` exactly."""
        ...


class PatchLedger:
    """Backs up, patches and restores parameters, for one owner at a time.

    Only parameters that are patched are backed up. Whoever calls holds the host's lock: the ledger is not made for
    several threads at once.
    """

    def __init__(self) -> None:
        self._originals = Backups()
        self._patches: dict[nn.Parameter, Patch] = {}
        self._attachment: Attachment | None = None
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
    def patch(self, owner: str, patches: Mapping[nn.Parameter, Patch], attachment: Attachment | None = None) -> None:
        """Set the whole state: each parameter in `patches` becomes what its patch makes of W₀, every other one W₀ bit
        for bit; one that has an equal patch already is not touched. `attachment` takes the place of the one before.

        After an exception everything is W₀. Raises RuntimeError where someone else has patches in the weights or has
        them exclusively.
        """
        self._refuse_others(owner)
        self._revision += 1
        self._owner = owner
        self._originals.begin()
        self._detach()
        try:
            for parameter in self._originals:
                if parameter not in patches:
                    self._originals.put_back(parameter)
                    self._patches.pop(parameter, None)
            for parameter, patch in patches.items():
                self._patch_one(parameter, patch)
            if attachment is not None:
                attachment.attach(self.original)
                self._attachment = attachment
        except BaseException:
            self._restore_all()
            raise
        if not self._originals and attachment is None:
            self._owner = None

    def original(self, parameter: nn.Parameter) -> Tensor:
        """A parameter's untouched values, on its device."""
        return self._originals.base(parameter) if parameter in self._originals else parameter.detach()

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

    def _refuse_others(self, owner: str) -> None:
        for other in (self._exclusive, self._owner):
            if other is not None and other != owner:
                raise RuntimeError(f"{owner} cannot change weights while {other} has changed or borrowed them")

    def _patch_one(self, parameter: nn.Parameter, patch: Patch) -> None:
        if self._patches.get(parameter) == patch:
            return
        untouched = parameter not in self._originals
        if untouched:
            self._originals.keep(parameter)
        self._patches.pop(parameter, None)
        patch.write(parameter.detach() if untouched else self._originals.base(parameter), parameter.detach())
        self._patches[parameter] = patch

    def _detach(self) -> None:
        if self._attachment is not None:
            self._attachment.detach()
            self._attachment = None

    @torch.no_grad()
    def _restore_all(self) -> None:
        self._detach()
        for parameter in self._originals:
            self._originals.put_back(parameter)
        self._patches.clear()
        self._revision += 1
        self._owner = None
