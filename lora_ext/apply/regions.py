"""Region masks as sd-webui-additional-networks has them: one colour channel of a picture for one network."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from lora_ext.networks.region_mask import RegionMask

if TYPE_CHECKING:
    from PIL import Image

CHANNELS = ("R", "G", "B")


def channel_mask(picture: Image.Image, channel: str) -> RegionMask | None:
    """The mask of one channel of a picture, 255 being the network's whole strength; None where all of it is black.

    A network whose channel is black has no mask, and acts everywhere. For `LoraTag.region`.
    """
    values = np.asarray(picture.convert("RGB"))[:, :, CHANNELS.index(channel)]  # (h, w)
    return RegionMask.of(torch.from_numpy(values.astype(np.float32) / 255)) if values.any() else None
