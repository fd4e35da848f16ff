"""Networks that act in a region of the picture: added in the forward pass, where a mask can be put on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_ext.networks.region_mask import RegionMask
from lora_ext.networks.weight_patch import Share
from lora_ext.protocols import UserError

Original = Callable[[nn.Parameter], Tensor]
"""A parameter's untouched values, whatever is patched into it."""


class MaskedForwards:
    """The masked shares of networks, put over the forward of the U-Net's modules; an `Attachment` for the ledger.

    Region masks as in sd-webui-additional-networks: what a network adds to the output of a module is multiplied by the
    mask in that module's resolution, for every picture of a batch, with text and without.
    """

    def __init__(self, unet: nn.Module, shares: Sequence[Share]) -> None:
        self._unet = unet
        self._shares = shares
        self._masks = _Masks()
        self._forwards: list[_MaskedForward] = []
        self._hooks: list[Any] = []

    @torch.no_grad()
    def attach(self, original: Original) -> None:
        """Put the shares over the forwards. Raises ShareError where one cannot be made; then nothing is attached."""
        self._hooks.append(self._unet.register_forward_pre_hook(self._masks.note_size, with_kwargs=True))
        modules = _modules_by_parameter(self._unet)
        blocks = _transformer_blocks(self._unet)
        by_module: dict[nn.Module, list[_Part]] = {}
        try:
            for share in self._shares:
                module = modules[share.view.parameter]
                by_module.setdefault(module, []).append(_part(share, module, original))
            for module, parts in by_module.items():
                self._forwards.append(_MaskedForward(module, parts, self._masks, blocks.get(module)))
            for block in {blocks[module]: None for module in by_module if module in blocks}:
                self._hooks.append(block.register_forward_pre_hook(self._masks.note_places, with_kwargs=True))
        except BaseException:
            self.detach()
            raise

    def detach(self) -> None:
        """Give the modules the forwards that they had."""
        while self._forwards:
            self._forwards.pop().detach()
        while self._hooks:
            self._hooks.pop().remove()


class _Masks:
    """Masks in the sizes that modules want, for the latents that the U-Net is called with."""

    def __init__(self) -> None:
        self._latents: tuple[int, int] = (0, 0)
        self._places: dict[nn.Module | None, int] = {}  # of each transformer block in its latest call
        self._resized: dict[tuple[RegionMask, int, int, torch.device, torch.dtype], Tensor] = {}

    def note_size(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the U-Net's forward: the size of the latents (batch, channels, h, w)."""
        latents = args[0] if args else kwargs["x"]
        self._latents = (latents.shape[-2], latents.shape[-1])

    def note_places(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before a transformer block's forward: how many places its input (batch, h·w, channels) has."""
        tokens = args[0] if args else kwargs["x"]
        self._places[block] = tokens.shape[1]

    def fitting(self, mask: RegionMask, output: Tensor, block: nn.Module | None = None) -> Tensor:
        """The mask for an output (batch, channels, h, w) or (batch, h·w, channels), with as many axes.

        In a transformer block an attention may see several pictures one behind the other, (batch, n·h·w, channels), as
        ControlNet's reference_only does it: each has the mask.
        """
        if output.ndim == 4:
            height, width = output.shape[2:]
            return self._in_size(mask, height, width, output)[None, None]  # (1, 1, h, w)
        tokens = output.shape[1]
        places = self._places.get(block, tokens)
        if tokens % places:
            raise self._taken_together(tokens)
        height, width = self._size_of_tokens(places)
        one = self._in_size(mask, height, width, output).reshape(1, -1, 1)  # (1, h·w, 1)
        return one.repeat(1, tokens // places, 1)

    def _in_size(self, mask: RegionMask, height: int, width: int, like: Tensor) -> Tensor:
        key = (mask, height, width, like.device, like.dtype)
        if key not in self._resized:
            self._resized[key] = mask.resized(height, width).to(like.device, like.dtype)
        return self._resized[key]

    def _size_of_tokens(self, tokens: int) -> tuple[int, int]:
        """The level of the U-Net with so many places: each halves the one above, rounded up."""
        height, width = self._latents
        while height * width > tokens:
            height, width = (height + 1) // 2, (width + 1) // 2
        if height * width != tokens:
            raise self._taken_together(tokens)
        return height, width

    def _taken_together(self, tokens: int) -> UserError:
        return UserError(
            f"region masks do not go with what takes places of the picture together: {tokens} places at latents of "
            f"{self._latents[1]}x{self._latents[0]}; switch token merging and HyperTile off"
        )


@dataclass(frozen=True)
class _Part:
    """One network's masked part of one module: `change(x)` is what it adds to the output for the input x."""

    mask: RegionMask
    change: Callable[[Tensor], Tensor]


class _MaskedForward:
    """Parts over one module's forward, on this instance alone and over whatever forward is there.

    `block` is the transformer block that the module is in.
    Its class' forward is looked up in each call, as the WebUI replaces those of several classes while it casts.
    """

    def __init__(self, module: nn.Module, parts: Sequence[_Part], masks: _Masks, block: nn.Module | None) -> None:
        self._module, self._parts, self._masks, self._block = module, parts, masks, block
        self._overridden: Callable[..., Tensor] | None = module.__dict__.get("forward")
        self._installed = self._with_parts
        module.__dict__["forward"] = self._installed

    def _with_parts(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        below = self._overridden or type(self._module).forward.__get__(self._module)
        output: Tensor = below(x, *args, **kwargs)
        for part in self._parts:
            output = output + part.change(x).to(output.dtype) * self._masks.fitting(part.mask, output, self._block)
        return output

    def detach(self) -> None:
        """Take the parts off; below what somebody else has put over them since, a forward without any stays."""
        self._parts = ()
        if self._module.__dict__.get("forward") is not self._installed:
            return
        if self._overridden is None:
            del self._module.__dict__["forward"]
        else:
            self._module.__dict__["forward"] = self._overridden


def _modules_by_parameter(root: nn.Module) -> dict[nn.Parameter, nn.Module]:
    return {parameter: module for module in root.modules() for parameter in module.parameters(recurse=False)}


def _transformer_blocks(root: nn.Module) -> dict[nn.Module, nn.Module]:
    """The transformer block of each module that is in one."""
    return {module: block for block in root.modules() if hasattr(block, "attn1") for module in block.modules()}


def _part(share: Share, module: nn.Module, original: Original) -> _Part:
    """A share's part: low-rank where it is, else the module's own operation with ΔW or Δb in place of its parameters.

    Every module here is linear in them: f(x; W + ΔW, b + Δb) = f(x; W, b) + f(x; ΔW, Δb).
    """
    assert share.mask is not None
    if share.factors is not None and not isinstance(module, nn.GroupNorm | nn.LayerNorm) and not share.view.index:
        return _Part(share.mask, _low_rank(share, module))
    parameter = share.view.parameter
    change = torch.zeros_like(parameter, dtype=torch.float32)
    share.view.of(change).copy_(share.change(original(parameter)))
    change = change.to(parameter.dtype)
    if share.parameter == "bias":
        return _Part(share.mask, lambda x: _bias(change, x, module))
    return _Part(share.mask, lambda x: _operation(module, x, change.to(x.device, x.dtype)))


def _low_rank(share: Share, module: nn.Module) -> Callable[[Tensor], Tensor]:
    factors = share.factors
    assert factors is not None
    parameter = share.view.parameter
    strength = factors.scale * share.multiplier
    up = (factors.up[:, : share.dyn].float() * strength).to(parameter.device, parameter.dtype)  # (out, rank)
    down = factors.down[: share.dyn].to(parameter.device, parameter.dtype)
    if isinstance(module, nn.Conv2d):
        down = down.reshape(down.shape[0], *parameter.shape[1:])  # (rank, in, kh, kw)
        up = up[:, :, None, None]
        return lambda x: F.conv2d(_operation(module, x, down.to(x.device, x.dtype)), up.to(x.device, x.dtype))
    return lambda x: F.linear(F.linear(x, down.to(x.device, x.dtype)), up.to(x.device, x.dtype))


def _operation(module: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    """What the module does with x, with another weight and without a bias."""
    if isinstance(module, nn.Conv2d):
        return F.conv2d(x, weight, None, module.stride, module.padding, module.dilation, module.groups)
    if isinstance(module, nn.GroupNorm):
        return F.group_norm(x, module.num_groups, weight, None, module.eps)
    if isinstance(module, nn.LayerNorm):
        return F.layer_norm(x, module.normalized_shape, weight, None, module.eps)
    return F.linear(x, weight)


def _bias(change: Tensor, x: Tensor, module: nn.Module) -> Tensor:
    """Δb (channels,) with the axes of the module's output."""
    change = change.to(x.device, x.dtype)
    return change[:, None, None] if isinstance(module, nn.Conv2d | nn.GroupNorm) else change
