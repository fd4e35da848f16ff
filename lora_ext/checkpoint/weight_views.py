"""What a key in a network file stands for: a parameter of the checkpoint, or a part of one."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

_FUSED = ("q_proj", "k_proj", "v_proj")


@dataclass(frozen=True)
class WeightView:
    """A parameter, or a part of it: the rows that are the q, k or v of fused attention.

    `index` is that part (all of it where it is empty), `bias` the layer's bias, or the same rows of it.
    """

    parameter: nn.Parameter
    index: tuple[slice, ...] = ()
    bias: WeightView | None = None

    @property
    def shape(self) -> torch.Size:
        """The part's shape."""
        return self.detach().shape

    def detach(self) -> Tensor:
        """The part as it is at the moment, in the parameter's own memory, outside of autograd."""
        return self.of(self.parameter.detach())

    def of(self, whole: Tensor) -> Tensor:
        """The same part of a tensor that has the parameter's shape, in its memory."""
        return whole[self.index] if self.index else whole

    def first_channels(self, channels: int) -> WeightView:
        """The part of a convolution's weight that belongs to its first input channels."""
        return replace(self, index=(slice(None), slice(channels)))


def weight_view(root: nn.Module, path: str) -> WeightView:
    """The weight of the module at `path` inside `root`.

    `transformer.resblocks.0.attn.q_proj` of a fused attention is no module: it is a third of `in_proj_weight`'s rows.
    """
    parent, _, name = path.rpartition(".")
    attention = root.get_submodule(parent)
    fused = attention._parameters.get("in_proj_weight")
    if fused is None or name not in _FUSED:
        module = root.get_submodule(path)
        return _view(module.get_parameter("weight"), module._parameters.get("bias"), ())
    width, place = fused.shape[0] // len(_FUSED), _FUSED.index(name)
    rows = slice(place * width, (place + 1) * width)
    return _view(fused, attention._parameters.get("in_proj_bias"), (rows,))


def _view(weight: nn.Parameter, bias: nn.Parameter | None, index: tuple[slice, ...]) -> WeightView:
    return WeightView(weight, index, None if bias is None else WeightView(bias, index))
