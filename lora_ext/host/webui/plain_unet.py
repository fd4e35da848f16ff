"""The WebUI's U-Net without what optimizes rendering: differentiable attention, and any number format."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_HYPERTILE = "__webui_hypertile_params"
_ATTENTION_PARTS = ("to_q", "to_k", "to_v", "to_out", "heads")
_CHECKPOINT_FLAGS = ("checkpoint", "use_checkpoint")


@contextmanager
def plain_unet(unet: Any, vae: nn.Module) -> Iterator[None]:
    """Attention by SDPA, no checkpointing of the model's own, no tiles, and a forward for fp32, fp16 and bf16 weights.

    Everything is done on instances, so classes keep what the WebUI and its extensions have put into them, and each
    instance gets back the very object that it had.
    """
    with ExitStack() as undo:
        for module in list(unet.modules()):
            if all(hasattr(module, part) for part in _ATTENTION_PARTS):
                undo.enter_context(method_replaced(module, "forward", _sdpa_forward(module)))
            elif isinstance(module, nn.GroupNorm | nn.LayerNorm) and next(unet.parameters()).device.type == "cpu":
                undo.enter_context(method_replaced(module, "forward", _any_dtype_norm(module)))
            for flag in _CHECKPOINT_FLAGS:
                if getattr(module, flag, None) is True:
                    undo.enter_context(attribute_set(module, flag, False))
        for module in list(vae.modules()):
            tiling = getattr(module, _HYPERTILE, None)
            if tiling is not None:
                undo.enter_context(attribute_set(tiling, "enabled", False))
        undo.enter_context(method_replaced(unet, "forward", _any_dtype_forward(unet)))
        cast = unet.time_embed.register_forward_pre_hook(_cast_to_weights)
        undo.callback(cast.remove)
        yield


@contextmanager
def method_replaced(owner: Any, name: str, method: Callable[..., Any]) -> Iterator[None]:
    """Another method on this instance; afterwards the one that it had, its own or its class's."""
    had_own, own = name in owner.__dict__, owner.__dict__.get(name)
    owner.__dict__[name] = method
    try:
        yield
    finally:
        if had_own:
            owner.__dict__[name] = own
        else:
            owner.__dict__.pop(name, None)


@contextmanager
def attribute_set(owner: Any, name: str, value: object) -> Iterator[None]:
    """Another value of an attribute, afterwards the one that it had."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _sdpa_forward(attention: Any) -> Callable[..., Tensor]:
    """Plain attention of ldm's CrossAttention, in the dtype of its projections.

    Some of the WebUI's optimizations work in place or have no backward pass; hypernetworks act inside all of them.
    """

    def forward(x: Tensor, context: Tensor | None = None, mask: Tensor | None = None, **_: Any) -> Tensor:
        source = x if context is None else context
        heads = attention.heads
        q, k, v = (
            projected.unflatten(-1, (heads, -1)).transpose(1, 2)  # (b, tokens, heads·d) -> (b, heads, tokens, d)
            for projected in (attention.to_q(x), attention.to_k(source), attention.to_v(source))
        )
        seen = None if mask is None else mask.flatten(1)[:, None, None, :]  # (b, 1, 1, tokens)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        return attention.to_out(mixed.transpose(1, 2).flatten(2))  # (b, tokens, heads·d)

    return forward


def _any_dtype_norm(norm: Any) -> Callable[[Tensor], Tensor]:
    """A norm layer's forward in fp32 where its weights are in half precision: on a CPU autocast leaves that out."""
    original = norm.forward

    def forward(x: Tensor) -> Tensor:
        if norm.weight is None or norm.weight.dtype == torch.float32:
            unchanged: Tensor = original(x)
            return unchanged
        weight, bias = norm.weight.float(), None if norm.bias is None else norm.bias.float()
        if isinstance(norm, nn.GroupNorm):
            return F.group_norm(x.float(), norm.num_groups, weight, bias, norm.eps).to(x.dtype)
        return F.layer_norm(x.float(), norm.normalized_shape, weight, bias, norm.eps).to(x.dtype)

    return forward


def _any_dtype_forward(unet: Any) -> Callable[..., Tensor]:
    """ldm's forward for weights in half precision, under autocast.

    ldm's U-Net casts its input to fp32 and normalizes in fp32 whatever its weights are; the WebUI's autocast is fp16 on
    CUDA or nothing.
    """
    original = unet.forward

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        dtype = next(unet.parameters()).dtype
        if dtype == torch.float32:
            return original(x, *args, **kwargs)
        with torch.autocast(x.device.type, dtype):
            return original(x, *args, **kwargs)

    return forward


def _cast_to_weights(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The embedding of the timesteps in the dtype of the layer that takes it: the WebUI makes it in one of its own."""
    weight = next(module.parameters())
    return tuple(each.to(weight.dtype) for each in inputs)
