"""Copies of weights as they were loaded, kept where there is room: beside the weights, or in main memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

GPU_RESERVE = 4 * 2**30
"""Bytes of a GPU's memory that stay free for pictures; half of what is free beyond may hold copies."""

SLAB = 64 * 2**20
"""Bytes of one piece of pinned memory: a power of 2, to which torch rounds every piece up."""

_ALIGNMENT = 256  # bytes


class Backups:
    """The values that some parameters had when they were kept, bit for bit."""

    def __init__(self) -> None:
        self._copies: dict[nn.Parameter, Tensor] = {}
        self._slabs: list[_Slab] = []
        self._room: dict[torch.device, int | None] = {}

    def __contains__(self, parameter: nn.Parameter) -> bool:
        return parameter in self._copies

    def __len__(self) -> int:
        return len(self._copies)

    def __iter__(self) -> Iterator[nn.Parameter]:
        return iter(tuple(self._copies))

    def keep(self, parameter: nn.Parameter) -> None:
        """Copy a parameter's values; nothing happens where they are kept already."""
        if parameter not in self._copies:
            self._copies[parameter] = self._empty_like(parameter.detach()).copy_(parameter.detach())

    def base(self, parameter: nn.Parameter) -> Tensor:
        """The values that are kept, on the parameter's device."""
        return self._copies[parameter].to(parameter.device, non_blocking=True)

    def put_back(self, parameter: nn.Parameter) -> None:
        """Give a parameter its values again, and drop the copy."""
        parameter.detach().copy_(self._copies[parameter])
        del self._copies[parameter]

    def begin(self) -> None:
        """Several parameters are kept next: the GPUs are asked anew how much memory is free."""
        self._room.clear()
        self._slabs.clear()  # each stays for as long as a copy lies in it

    def _empty_like(self, weight: Tensor) -> Tensor:
        device, size = weight.device, weight.numel() * weight.element_size()
        if device not in self._room:
            self._room[device] = room_on(device)
        room = self._room[device]
        if room is None:
            return torch.empty_like(weight, device="cpu")
        if size <= room:
            self._room[device] = room - size
            return torch.empty_like(weight)
        slab = next((slab for slab in self._slabs if size <= slab.free), None)
        if slab is None and size <= SLAB:
            slab = _Slab.pinned()
        if slab is None:
            return torch.empty_like(weight, device="cpu")
        if slab not in self._slabs:
            self._slabs.append(slab)
        return slab.take(weight)


class _Slab:
    """A piece of pinned memory, from which a GPU reads by itself, and how much of it is taken."""

    def __init__(self, memory: Tensor) -> None:
        self._memory, self._taken = memory, 0

    @classmethod
    def pinned(cls) -> _Slab | None:
        """A new piece; None where the system gives no more."""
        try:
            return cls(torch.empty(SLAB, dtype=torch.uint8, pin_memory=True))
        except RuntimeError:
            return None

    @property
    def free(self) -> int:
        """Bytes that are left."""
        return self._memory.numel() - self._taken

    def take(self, weight: Tensor) -> Tensor:
        """The next bytes, in a weight's shape, order and dtype."""
        size = weight.numel() * weight.element_size()
        piece = self._memory[self._taken : self._taken + size].view(weight.dtype)
        self._taken = min(self._memory.numel(), -(-(self._taken + size) // _ALIGNMENT) * _ALIGNMENT)
        return piece.as_strided(weight.shape, weight.stride())


def room_on(device: torch.device) -> int | None:
    """Bytes that copies may take on a GPU, from what is free there and what torch has taken and does not use.

    None where weights are in main memory anyway.
    """
    if device.type != "cuda":
        return None
    free = torch.cuda.mem_get_info(device)[0]
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return max(0, free + unused - GPU_RESERVE) // 2
