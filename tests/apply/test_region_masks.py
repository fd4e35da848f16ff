"""Region masks by themselves: their sizes at the U-Net's levels, and the channels of a picture that they come from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from lora_ext.apply.regions import channel_mask
from lora_ext.networks.masked_forward import MaskedForwards
from lora_ext.networks.region_mask import RegionMask


@pytest.mark.parametrize(("latents", "tokens", "found"), [
    ((15, 9), 135, (15, 9)), ((15, 9), 40, (8, 5)), ((15, 9), 12, (4, 3)), ((64, 96), 96, (8, 12)), ((5, 5), 1, (1, 1)),
])  # fmt: skip
def test_levels_of_odd_sizes(latents: tuple[int, int], tokens: int, found: tuple[int, int]) -> None:
    unet = nn.Identity()
    regions = MaskedForwards(unet, [])
    regions.attach(lambda parameter: parameter)
    unet(torch.zeros(1, 4, *latents))
    assert regions._masks._size_of_tokens(tokens) == found


def test_masks_are_averaged_to_a_layers_size() -> None:
    values = torch.zeros(4, 6)
    values[:, :2] = 1
    assert RegionMask.of(values).resized(2, 2).tolist() == [[pytest.approx(2 / 3), 0]] * 2
    assert RegionMask.of(values).resized(8, 12)[0].tolist() == [1.0] * 4 + [0.0] * 8
    assert RegionMask.of(values) == RegionMask.of(values.clone()) != RegionMask.of(values.t())


def test_channels_of_a_picture() -> None:
    pixels = np.zeros((2, 3, 3), np.uint8)
    pixels[0, :, 0], pixels[:, 1, 1] = 255, 51
    picture = Image.fromarray(pixels)
    red, green = channel_mask(picture, "R"), channel_mask(picture, "G")
    assert red is not None and red.values.tolist() == [[1, 1, 1], [0, 0, 0]]
    assert green is not None and green.values.tolist() == [[0, pytest.approx(0.2), 0]] * 2
    assert channel_mask(picture, "B") is None
