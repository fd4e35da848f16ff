"""What repairing a network is told."""

from __future__ import annotations

from dataclasses import dataclass

from lora_ext.config.fields import setting
from lora_ext.config.tools.shared import overwrite_setting, stored_precision_setting


@dataclass(frozen=True)
class RepairSettings:
    """A network, and the file that it becomes."""

    file: str = setting(
        "", "Network", "Name or file of the network; it stays as it is.", sd_scripts="", kind="network"
    )  # fmt: skip
    precision: str = stored_precision_setting()
    out: str = setting("", "Output", "The file to write, a .safetensors.", sd_scripts="", kind="output")
    overwrite: bool = overwrite_setting()
