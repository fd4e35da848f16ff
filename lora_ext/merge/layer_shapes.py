"""Shapes of layers that files leave open: LyCORIS stores convolutions as matrices, other programs 1×1 ones so."""

from __future__ import annotations

import re
from math import prod

_KERNEL_3 = re.compile(r"_(conv|conv1|conv2|op|conv_in|conv_out|in_layers_2|out_layers_3|input_blocks_0_0|out_2)$")
_POINT = re.compile(r"_(conv_shortcut|skip_connection)$")
_PROJECTION = re.compile(r"lora_unet_.*_proj_(in|out)$")


def layer_shape(key: str, shape: tuple[int, ...], base: str) -> tuple[int, ...]:
    """The shape of a module's weight by its name: (out, in) of a linear layer, (out, in, kh, kw) of a convolution.

    `shape` is that of what is stored, `base` what it is for ("SD1", "SD2", "SDXL", others where that is not known). A
    kernel that is stored stays; what is no convolution by its name is linear.
    """
    if len(shape) < 2 or prod(shape[2:]) != 1:
        return shape
    outputs, inputs = shape[:2]
    if len(shape) == 2 and inputs % 9 == 0 and _KERNEL_3.search(key):
        return (outputs, inputs // 9, 3, 3)
    if _POINT.search(key):
        return (outputs, inputs, 1, 1)
    if _PROJECTION.match(key):
        return (outputs, inputs, 1, 1) if base == "SD1" else (outputs, inputs) if base in ("SD2", "SDXL") else shape
    return (outputs, inputs)
