"""Where copies of weights go: beside them on a GPU with room, else in pinned memory, else in plain memory."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lora_ext.checkpoint import backups as backups_module
from lora_ext.checkpoint.backups import Backups, _Slab, room_on


def parameters(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]


def test_what_is_kept_comes_back() -> None:
    weight = nn.Parameter(torch.randn(4, 6, 3, 3).to(torch.bfloat16).to(memory_format=torch.channels_last))
    before, backups = weight.detach().clone(), Backups()
    backups.keep(weight)
    with torch.no_grad():
        weight.fill_(7)
    backups.keep(weight)  # is kept already
    assert torch.equal(backups.base(weight), before)
    assert backups.base(weight).stride() == weight.stride()
    assert (weight in backups, len(backups), list(backups)) == (True, 1, [weight])
    backups.put_back(weight)
    assert torch.equal(weight, before)
    assert (weight in backups, len(backups)) == (False, 0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_slab_holds_weights_without_overlap(dtype: torch.dtype) -> None:
    slab = _Slab(torch.zeros(2048, dtype=torch.uint8))
    weights = [each.detach() for each in parameters((3, 5), (2, 4, 3, 3), (7,), dtype=dtype)]
    weights[1] = weights[1].to(memory_format=torch.channels_last)
    copies = [slab.take(weight).copy_(weight) for weight in weights]
    for copy, weight in zip(copies, weights, strict=True):
        assert torch.equal(copy, weight)
        assert copy.stride() == weight.stride()
    starts = [copy.data_ptr() - copies[0].data_ptr() for copy in copies]
    assert starts == {torch.float16: [0, 256, 512], torch.float32: [0, 256, 768]}[dtype]
    assert slab.free == 2048 - starts[-1] - 256


def test_a_gpu_takes_what_it_has_room_for_then_pinned_memory_then_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processor stands for a GPU with 100 bytes of room; pinned memory is given once."""
    slabs = [_Slab(torch.zeros(2**11, dtype=torch.uint8))]
    monkeypatch.setattr(backups_module, "SLAB", 2**11)
    monkeypatch.setattr(backups_module, "room_on", lambda device: 100)
    monkeypatch.setattr(_Slab, "pinned", lambda: slabs.pop() if slabs else None)
    weights = parameters((25,), (1,), (512,), (257,), (300,), (513,))
    backups = Backups()
    backups.begin()
    for weight in weights:
        backups.keep(weight)
    memory = {weight.numel(): backups.base(weight).untyped_storage().nbytes() for weight in weights}
    assert memory == {25: 100, 1: 2**11, 512: 512 * 4, 257: 2**11, 300: 1200, 513: 513 * 4}
    assert all(torch.equal(backups.base(weight), weight) for weight in weights)


@pytest.mark.parametrize(("free", "taken", "used", "room"), [(20, 3, 2, 8.5), (5, 0, 0, 0.5), (3, 0, 0, 0)])
def test_half_of_what_is_free_beyond_the_reserve(
    monkeypatch: pytest.MonkeyPatch, free: int, taken: int, used: int, room: float
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free * 2**30, 80 * 2**30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: taken * 2**30)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: used * 2**30)
    assert room_on(torch.device("cuda", 0)) == room * 2**30
    assert room_on(torch.device("cpu")) is None


@pytest.mark.gpu
@pytest.mark.parametrize("room", [10**9, 0])
def test_on_a_real_gpu(monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    monkeypatch.setattr(backups_module, "room_on", lambda device: room)
    weight = nn.Parameter(torch.randn(64, 32, device="cuda").half())
    before, backups = weight.detach().clone(), Backups()
    backups.begin()
    backups.keep(weight)
    copy = backups._copies[weight]
    assert copy.is_cuda == bool(room)
    assert copy.is_pinned() != bool(room)
    with torch.no_grad():
        weight.fill_(7)
    assert torch.equal(backups.base(weight), before)
    backups.put_back(weight)
    assert torch.equal(weight, before)
