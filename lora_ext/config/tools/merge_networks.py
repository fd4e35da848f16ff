"""What merging networks with each other is told."""

from __future__ import annotations

from dataclasses import dataclass

from lora_ext.config.fields import setting
from lora_ext.config.tools.shared import device_setting, overwrite_setting, stored_precision_setting
from lora_ext.config.tools.weighted import lbw_setting, networks_setting, te_weight_setting

METHODS = ("concat", "svd")


@dataclass(frozen=True)
class MergeNetworksSettings:
    """Networks with weights, how they become one, and where it goes."""

    network: str = networks_setting()
    method: str = setting(
        "concat", "Method", "concat puts the ranks side by side: nothing is lost, and the ranks add up. svd gives the "
        "best network of the rank that you choose.",
        choices=METHODS, sd_scripts="",
    )  # fmt: skip
    rank: int | None = setting(
        None, "Rank", "svd's rank. Empty: for each module the largest that the networks have.",
        minimum=1, maximum=16384, sd_scripts="",
    )  # fmt: skip
    conv_rank: int | None = setting(
        None, "Convolution rank", "svd's rank for convolutions with a kernel. Empty: as the rank.",
        minimum=1, maximum=16384, sd_scripts="",
    )  # fmt: skip
    te_weight: str = te_weight_setting()
    lbw: str = lbw_setting()
    precision: str = stored_precision_setting("What the numbers are stored in. As stored: as in the first network.")
    device: str = device_setting()
    out: str = setting("", "Output", "The file to write, ending with .safetensors.", kind="output", sd_scripts="")
    overwrite: bool = overwrite_setting()
