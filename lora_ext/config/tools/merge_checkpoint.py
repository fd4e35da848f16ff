"""What merging networks into a checkpoint is told."""

from __future__ import annotations

from dataclasses import dataclass

from lora_ext.config.fields import setting
from lora_ext.config.tools.shared import device_setting, overwrite_setting, stored_precision_setting
from lora_ext.config.tools.weighted import lbw_setting, networks_setting, te_weight_setting


@dataclass(frozen=True)
class MergeCheckpointSettings:
    """A checkpoint, what is added to its weights, and the file that this becomes."""

    checkpoint: str = setting(
        "", "Checkpoint", "Name or file of the checkpoint that the networks are added to; it stays as it is.",
        sd_scripts="", kind="checkpoint",
    )  # fmt: skip
    network: str = networks_setting()
    te_weight: str = te_weight_setting()
    lbw: str = lbw_setting()
    precision: str = stored_precision_setting(
        "What the numbers are rounded to, once: as stored is the checkpoint's own precision, "
        "and keeps every tensor that no network changes byte for byte; fp16 halves a file in fp32."
    )
    device: str = device_setting()
    out: str = setting(
        "", "Output", "The file to write, a .safetensors; a YAML beside the checkpoint is copied beside it.",
        sd_scripts="", kind="output",
    )  # fmt: skip
    overwrite: bool = overwrite_setting()
