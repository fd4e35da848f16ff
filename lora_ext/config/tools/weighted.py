"""Networks with weights, as several tools are told them: one a line, with weights for text encoders and blocks."""

from __future__ import annotations

from typing import Any

from lora_ext.config.fields import setting


def networks_setting() -> Any:
    """The networks with their weights."""
    return setting(
        "", "Networks", "Name or file of a network, a colon and its weight, one a line: my-style:0.7. Without a weight "
        "it is 1; a negative one takes the network out.",
        lines=3, sd_scripts="", kind="networks",
    )  # fmt: skip


def te_weight_setting() -> Any:
    """The text encoders' weights."""
    return setting(
        "", "Text encoder weight", "What the text encoders' part is multiplied by instead of the network's weight: one "
        "number for all networks, or one a line for each in their order; \"same\" is the network's weight.",
        lines=2, sd_scripts="",
    )  # fmt: skip


def lbw_setting() -> Any:
    """The weights by block."""
    return setting(
        "", "Weights by block", "What the weight is multiplied by, block by block: a preset such as MIDD or OUTALL, or "
        "a list of 17 or 26 numbers for SD1 and SD2, of 12 or 20 for SDXL; one for all networks, or one a line for "
        "each in their order.",
        lines=2, sd_scripts="",
    )  # fmt: skip
