"""What finding the tokens that a network moves is told."""

from __future__ import annotations

from dataclasses import dataclass

from lora_ext.config.fields import setting
from lora_ext.config.tools.shared import device_setting


@dataclass(frozen=True)
class InterrogateSettings:
    """A network, the checkpoint whose text encoders it changes, and how many tokens are told."""

    file: str = setting(
        "", "Network", "Name or file of a network that changes the text encoder.", sd_scripts="", kind="network"
    )
    checkpoint: str = setting(
        "", "Checkpoint", "Name or file of the checkpoint that it is for; in the tab, the loaded one where empty.",
        sd_scripts="", kind="checkpoint",
    )  # fmt: skip
    top: int = setting(
        20, "Tokens", "How many tokens are told, the most moved first.", minimum=1, maximum=49406, sd_scripts=""
    )
    clip_skip: int = setting(
        1, "Clip skip", "The text encoder's layer from the end, as in training; SDXL always takes its own.",
        minimum=1, maximum=12, sd_scripts="",
    )  # fmt: skip
    device: str = device_setting()
