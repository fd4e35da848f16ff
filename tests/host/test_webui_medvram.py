"""A training under `--medvram`: all parts stay on the device, whatever the WebUI does for its pictures."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from torch import nn


class Part(nn.Module):
    """A part of a model that knows where it was sent."""

    place = "cpu"

    def to(self, place: str) -> Part:  # type: ignore[override]
        self.place = place
        return self


def _lowvram() -> ModuleType:
    """The WebUI's `modules.lowvram` as far as it is used here."""
    module: Any = ModuleType("modules.lowvram")
    module.cpu, module.module_in_gpu = "cpu", None

    def send_everything_to_cpu() -> None:
        if module.module_in_gpu is not None:
            module.module_in_gpu.to(module.cpu)
        module.module_in_gpu = None

    module.send_everything_to_cpu = send_everything_to_cpu
    return module  # type: ignore[no-any-return]


@pytest.fixture
def on_the_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Callable[..., AbstractContextManager[None]], Any]]:
    """`borrow.on_the_device` with a stand-in for the WebUI, and its `lowvram`."""
    lowvram = _lowvram()
    webui = MagicMock(lowvram=lowvram, devices=SimpleNamespace(device="gpu"))
    ours = ("lora_ext.host.webui.borrow", "lora_ext.host.webui.checkpoint_view")
    kept = {name: sys.modules.pop(name) for name in ours if name in sys.modules}
    monkeypatch.setitem(sys.modules, "modules", webui)
    from lora_ext.host.webui import borrow

    yield borrow.on_the_device, lowvram
    for name in ours:
        sys.modules.pop(name, None)
    sys.modules.update(kept)


def test_a_picture_in_a_training_pushes_no_part_out(on_the_device: Any) -> None:
    pinned, lowvram = on_the_device
    unet, vae, text = parts = [Part() for _ in range(3)]
    model = SimpleNamespace(lowvram=True, model=unet, first_stage_model=vae, cond_stage_model=text)
    unet.register_forward_pre_hook(lambda *_: None)
    original, hooks = lowvram.send_everything_to_cpu, dict(unet._forward_pre_hooks)
    with pinned(model):
        assert [part.place for part in parts] == ["gpu"] * 3 and not unet._forward_pre_hooks
        lowvram.module_in_gpu = vae  # as the WebUI's `decode` does
        lowvram.send_everything_to_cpu()  # and what it does with each picture
        assert [part.place for part in parts] == ["gpu"] * 3
    assert [part.place for part in parts] == ["cpu"] * 3 and lowvram.module_in_gpu is None
    assert lowvram.send_everything_to_cpu is original and dict(unet._forward_pre_hooks) == hooks
