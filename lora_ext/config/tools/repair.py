"""What repairing a network is told."""

from __future__ import annotations

from dataclasses import dataclass

from lora_ext.config.fields import setting


@dataclass(frozen=True)
class RepairSettings:
    """A network, and the file that it becomes."""

    file: str = setting(
        "", "Network", "Name or file of the network; it stays as it is.", sd_scripts="", kind="network"
    )  # fmt: skip
    precision: str = setting(
        "as stored", "Precision", "How numbers are stored: as stored is the file's own precision, and loses nothing.",
        choices=("as stored", "fp32", "fp16", "bf16"), sd_scripts="",
    )  # fmt: skip
    out: str = setting("", "Output", "The file to write, a .safetensors.", sd_scripts="", kind="output")
    overwrite: bool = setting(False, "Overwrite", "Replace the output where it is there already.", sd_scripts="")
