"""The U-Net's blocks as sd-scripts counts them, for ranks, alphas and rates by block."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lora_ext.checkpoint.checkpoint import Architecture
from lora_ext.config.arguments import parse_numbers
from lora_ext.protocols import UserError

SD_BLOCKS = 25
"""SD1 and SD2: 12 in, 1 middle, 12 out; the first is the input convolution, which has no number of its own."""

SDXL_BLOCKS = 23
"""1 embedding, 9 in, 3 middle, 9 out, 1 output convolution."""

_UP_OR_DOWN = re.compile(r"_(up|down)_blocks_(\d+)_(resnets|attentions|upsamplers|downsamplers)_(\d+)_")
_SDXL_PART = re.compile(r"^lora_unet_(input_blocks|middle_block|output_blocks)_(\d+)_")


def block_count(architecture: Architecture) -> int:
    """How many numbers a setting by block has for a kind of checkpoint."""
    return SDXL_BLOCKS if architecture == "SDXL" else SD_BLOCKS


def block_index(key: str, architecture: Architecture) -> int | None:
    """The block of a U-Net module by its key in files, from 0; None for what belongs to no block."""
    if architecture == "SDXL":
        part = _SDXL_PART.match(key)
        if part is None or part[0] == "lora_unet_input_blocks_0_":  # the input convolution
            return None
        return {"input_blocks": 1, "middle_block": 10, "output_blocks": 13}[part[1]] + int(part[2])
    if "_mid_block_" in key:
        return 12
    found = _UP_OR_DOWN.search(key)
    if found is None:
        return None
    within = 2 if found[3].endswith("samplers") else int(found[4])
    return (1 if found[1] == "down" else 13) + 3 * int(found[2]) + within


def numbers_by_block(name: str, text: str, architecture: Architecture) -> list[float] | None:
    """The numbers of a setting by block, None where it is empty; UserError where they are not those of the kind."""
    if not text.strip():
        return None
    numbers, count = parse_numbers(text), block_count(architecture)
    if numbers is None or len(numbers) != count:
        given = "is not a list of numbers" if numbers is None else f"has {len(numbers)} numbers"
        raise UserError(
            f"{name} = {text!r} {given}: {architecture} checkpoints take {count} numbers with commas between them; "
            "give as many, or leave it empty"
        )
    return numbers


def adapted_blocks(count: int, with_convolutions: bool) -> frozenset[int]:
    """Which of `count` blocks hold what a network adapts: those with transformers, with LoCon the others too."""
    if count == SDXL_BLOCKS:
        return frozenset(range(2, 22)) if with_convolutions else frozenset({5, 6, 8, 9, 11, *range(13, 19)})
    return frozenset(range(1, 25)) if with_convolutions else frozenset({1, 2, 4, 5, 7, 8, 12, *range(16, 25)})


def number_of_block(numbers: Sequence[float] | None, block: int | None, otherwise: float) -> float:
    """A module's number: its block's, or `otherwise` where none is set by block."""
    return otherwise if numbers is None or block is None else numbers[block]
