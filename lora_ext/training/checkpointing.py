"""Gradient checkpointing around the blocks of a model that knows nothing of it (Chen et al. 2016, arXiv:1604.06174)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint as run_checkpointed

from lora_ext.checkpoint.checkpoint import Checkpoint


def checkpointed_blocks(model: Checkpoint, with_text_encoders: bool) -> list[nn.Module]:
    """The U-Net's blocks, and each layer of the text encoders where gradients flow through them."""
    unet: Any = model.unet
    blocks: list[nn.Module] = [*unet.input_blocks, unet.middle_block, *unet.output_blocks]
    if with_text_encoders:
        blocks += [layer for encoder in model.text_encoders for layer in _layers(encoder.module)]
    return blocks


def _layers(transformer: nn.Module) -> Iterator[nn.Module]:
    """The layers of a transformer: the members of its `layers` (HF) or `resblocks` (OpenCLIP)."""
    for name, module in transformer.named_modules():
        if isinstance(module, nn.ModuleList) and name.rsplit(".", 1)[-1] in ("layers", "resblocks"):
            yield from module


@contextmanager
def gradient_checkpointing(blocks: Iterable[nn.Module], draws: bool = False) -> Iterator[None]:
    """Keep only each block's input and compute its inside again in the backward pass.

    Works through each instance's `forward`, which is as it was afterwards. `draws`: something inside draws random
    numbers (the base does not, in eval mode), which are to be the same ones the second time.
    """
    undo: list[Callable[[], None]] = []
    try:
        for block in blocks:
            undo.append(_wrap(block, draws))
        yield
    finally:
        for unwrap in reversed(undo):
            unwrap()


def _wrap(block: nn.Module, draws: bool) -> Callable[[], None]:
    """Override the instance's `forward`; returns what takes the override away again."""
    overridden = block.__dict__.get("forward")
    original = block.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        return run_checkpointed(original, *args, use_reentrant=False, preserve_rng_state=draws, **kwargs)

    def unwrap() -> None:
        if overridden is None:
            del block.__dict__["forward"]
        else:
            block.__dict__["forward"] = overridden

    block.__dict__["forward"] = forward
    return unwrap
