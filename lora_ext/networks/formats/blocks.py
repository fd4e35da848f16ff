"""Names of the U-Net's modules: in diffusers' words, as files for SD1 and SD2 have them, and in ldm's, as for SDXL.

Both are written with underscores for dots. Either kind of checkpoint has three layers a level, so that the numbers
follow from each other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

Family = Literal["SD", "SDXL"]
"""SD1 and SD2 have one layout of blocks, SDXL another."""

_RESNET_PARTS = {
    "in_layers_0": "norm1",
    "in_layers_2": "conv1",
    "emb_layers_1": "time_emb_proj",
    "out_layers_0": "norm2",
    "out_layers_3": "conv2",
    "skip_connection": "conv_shortcut",
}
_LDM_PARTS = {name: part for part, name in _RESNET_PARTS.items()}
_ENDS = {
    "input_blocks_0_0": "conv_in",
    "out_0": "conv_norm_out",
    "out_2": "conv_out",
    "time_embed_0": "time_embedding_linear_1",
    "time_embed_2": "time_embedding_linear_2",
    "label_emb_0_0": "add_embedding_linear_1",
    "label_emb_0_2": "add_embedding_linear_2",
}
_LDM_ENDS = {name: end for end, name in _ENDS.items()}

_LDM_BLOCK = re.compile(r"(input|output)_blocks_(\d{1,4})_(\d)_(.+)")
_LDM_MIDDLE = re.compile(r"middle_block_([012])_(.+)")
_BLOCK = re.compile(r"(down|up)_blocks_(\d{1,4})_(resnets|attentions|downsamplers|upsamplers)_(\d{1,4})_(.+)")
_MIDDLE = re.compile(r"mid_block_(resnets|attentions)_(\d{1,4})_(.+)")

_SURE: dict[Family, re.Pattern[str]] = {
    "SDXL": re.compile(
        r".*_transformer_blocks_[1-9]|up_blocks_0_attentions|add_embedding|label_emb|output_blocks_([01]_1_|2_1_(?!conv))"
    ),
    "SD": re.compile(
        r"down_blocks_(0_attentions|2_downsamplers|3_)|up_blocks_(2_attentions|2_upsamplers|3_)"
        r"|input_blocks_([12]_1|9|1\d)_|output_blocks_(2_1_conv|[678]_1_|8_2|9|1\d)_?"
    ),
}
"""Blocks that only one of the two layouts has."""


def family_by_names(names: Iterable[str]) -> Family | None:
    """Which layout a U-Net's modules belong to; None where both have all of them, or neither."""
    found = {family for name in names for family, sure in _SURE.items() if sure.match(name)}
    return found.pop() if len(found) == 1 else None


def is_ldm_name(name: str) -> bool:
    """Whether a module is called as in ldm; False where in diffusers' words, or in none."""
    return name in _ENDS or bool(_LDM_BLOCK.fullmatch(name) or _LDM_MIDDLE.fullmatch(name))


def is_diffusers_name(name: str) -> bool:
    """Whether a module is called as in diffusers; False where in ldm's words, or in none."""
    return name in _LDM_ENDS or bool(_BLOCK.fullmatch(name) or _MIDDLE.fullmatch(name))


def diffusers_name(name: str) -> str:
    """`input_blocks_1_1_proj_in` → `down_blocks_0_attentions_0_proj_in`; names that are not ldm's stay."""
    if name in _ENDS:
        return _ENDS[name]
    if middle := _LDM_MIDDLE.fullmatch(name):
        place, rest = int(middle[1]), middle[2]
        if place == 1:
            return f"mid_block_attentions_0_{rest}"
        return f"mid_block_resnets_{place // 2}_{_RESNET_PARTS.get(rest, rest)}"
    block = _LDM_BLOCK.fullmatch(name)
    if block is None:
        return name
    rest = block[4]
    way = "down" if block[1] == "input" else "up"
    level, layer = divmod(int(block[2]) - (way == "down"), 3)
    if rest in ("op", "conv"):
        return f"{way}_blocks_{level}_{way}samplers_0_conv"
    if block[3] == "0":
        return f"{way}_blocks_{level}_resnets_{layer}_{_RESNET_PARTS.get(rest, rest)}"
    return f"{way}_blocks_{level}_attentions_{layer}_{rest}"


def ldm_name(name: str) -> str:
    """`down_blocks_1_attentions_0_proj_in` → `input_blocks_4_1_proj_in`, as SDXL numbers them; others stay."""
    if name in _LDM_ENDS:
        return _LDM_ENDS[name]
    if middle := _MIDDLE.fullmatch(name):
        if middle[1] == "attentions":
            return f"middle_block_1_{middle[3]}"
        return f"middle_block_{2 * int(middle[2])}_{_LDM_PARTS.get(middle[3], middle[3])}"
    block = _BLOCK.fullmatch(name)
    if block is None:
        return name
    way, level, kind, layer, rest = block[1], int(block[2]), block[3], int(block[4]), block[5]
    first = 3 * level + (way == "down")
    path = "input_blocks" if way == "down" else "output_blocks"
    if kind == "downsamplers":
        return f"{path}_{first + 2}_0_op"
    if kind == "upsamplers":
        return f"{path}_{first + 2}_2_conv"
    if kind == "resnets":
        return f"{path}_{first + layer}_0_{_LDM_PARTS.get(rest, rest)}"
    return f"{path}_{first + layer}_1_{rest}"
