"""Where in the picture a network acts: masks, and the modules that they can be put on."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

_NOT_SPATIAL = re.compile(r"_attn2_to_[kv]$|_time_emb_proj$|_emb_layers_1$|_time_embed|_label_emb")


@dataclass(frozen=True)
class RegionMask:
    """How strongly a network acts at each place of the picture: (h, w) fp32 from 0 to 1, of any size.

    `digest` tells masks apart.
    """

    digest: str
    values: Tensor = field(compare=False, repr=False)

    @staticmethod
    def of(values: Tensor) -> RegionMask:
        """The mask of these values (h, w)."""
        values = values.detach().to("cpu", torch.float32).clamp(0, 1).contiguous()
        digest = hashlib.sha256(repr(tuple(values.shape)).encode() + values.numpy().tobytes())
        return RegionMask(digest.hexdigest(), values)

    def resized(self, height: int, width: int) -> Tensor:
        """(height, width): each cell is the mean of what it covers."""
        if self.values.shape == (height, width):
            return self.values
        return F.interpolate(self.values[None, None], (height, width), mode="area")[0, 0]


def is_spatial(key: str) -> bool:
    """Whether a module's output has places in the picture, by its key in files.

    Text encoders, the keys and values made from the text, and what is made from the time step have none.
    """
    return key.startswith("lora_unet_") and _NOT_SPATIAL.search(key) is None
