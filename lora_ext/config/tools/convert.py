"""What converting a network's file is told."""

from __future__ import annotations

from dataclasses import dataclass

from lora_ext.config.fields import setting
from lora_ext.config.tools.shared import overwrite_setting, stored_precision_setting

WORDS = ("as stored", "sd-scripts", "diffusers")


@dataclass(frozen=True)
class ConvertSettings:
    """A network's file, whose words its tensors get, and what its numbers are stored in."""

    file: str = setting("", "Network", "Name or file of the network.", sd_scripts="", kind="network")
    to: str = setting(
        "as stored", "Names", "Whose names and layout the tensors get: sd-scripts' are read by the WebUI, ComfyUI and "
        "most programs, diffusers' by diffusers and peft. As stored keeps them.",
        choices=WORDS, sd_scripts="",
    )  # fmt: skip
    precision: str = stored_precision_setting()
    out: str = setting("", "Output", "The file to write, ending with .safetensors.", kind="output", sd_scripts="")
    overwrite: bool = overwrite_setting()
