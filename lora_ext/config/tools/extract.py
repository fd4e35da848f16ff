"""What the extraction of a network from two checkpoints is told."""

from __future__ import annotations

from dataclasses import dataclass

from lora_ext.config.fields import setting
from lora_ext.config.tools.shared import device_setting, overwrite_setting

MODES = ("fixed", "threshold", "ratio", "quantile")
PARTS = ("unet,te", "unet", "te")


@dataclass(frozen=True)
class ExtractSettings:
    """What the extraction of a network from two checkpoints is told."""

    base: str = setting(
        "", "Base checkpoint", "The checkpoint that the network will be used with: what the other one was made from.",
        sd_scripts="", kind="checkpoint",
    )  # fmt: skip
    tuned: str = setting(
        "", "Tuned checkpoint", "The checkpoint whose difference from the base becomes a network.",
        sd_scripts="", kind="checkpoint",
    )  # fmt: skip
    rank: int | None = setting(
        32, "Rank", "Rank of every module with the mode fixed; with the others the highest that a module may get, and "
        "none is no limit.",
        minimum=1, maximum=4096, sd_scripts="",
    )  # fmt: skip
    conv_rank: int | None = setting(
        None, "Rank of convolutions", "The same for 3×3 convolutions; with it the network also has the layers between "
        "the transformers (LoCon). None leaves those out, unless a number for convolutions stands below.",
        minimum=1, maximum=4096, sd_scripts="",
    )  # fmt: skip
    mode: str = setting(
        "fixed", "Mode", "How the rank of a module is chosen: fixed is the rank above; threshold keeps singular values "
        "above a number, ratio those above a share of the largest, quantile the first below a share of their sum.",
        choices=MODES, sd_scripts="",
    )  # fmt: skip
    threshold: float | None = setting(
        None, "Threshold", "With the mode threshold: the singular value above which a direction is kept, such as 0.5.",
        minimum=0, sd_scripts="",
    )  # fmt: skip
    conv_threshold: float | None = setting(
        None, "Threshold of convolutions", "The same for 3×3 convolutions; none is the number above.",
        minimum=0, sd_scripts="",
    )  # fmt: skip
    ratio: float | None = setting(
        None, "Ratio", "With the mode ratio: the share of the largest singular value above which a direction is kept, "
        "such as 0.1.",
        minimum=0, maximum=1, sd_scripts="",
    )  # fmt: skip
    conv_ratio: float | None = setting(
        None, "Ratio of convolutions", "The same for 3×3 convolutions; none is the number above.",
        minimum=0, maximum=1, sd_scripts="",
    )  # fmt: skip
    quantile: float | None = setting(
        None, "Quantile", "With the mode quantile: the share of the sum of all singular values that is reached at "
        "most, such as 0.5.",
        minimum=0, maximum=1, sd_scripts="",
    )  # fmt: skip
    conv_quantile: float | None = setting(
        None, "Quantile of convolutions", "The same for 3×3 convolutions; none is the number above.",
        minimum=0, maximum=1, sd_scripts="",
    )  # fmt: skip
    what: str = setting(
        "unet,te", "Parts", "Which parts are compared: U-Net, text encoders, or both.", choices=PARTS, sd_scripts=""
    )
    min_diff: float = setting(
        0.01, "Least difference", "The text encoders are left out where no number in them differs by more than this, "
        "as sd-scripts does it; 0 takes them whenever they differ.",
        minimum=0, sd_scripts="",
    )  # fmt: skip
    clamp_quantile: float | None = setting(
        None, "Clamp at quantile", "Cut outliers of both factors off at this quantile; sd-scripts does so at 0.99. It "
        "makes the network less exact, so that none is the default.",
        minimum=0.5, maximum=1, sd_scripts="",
    )  # fmt: skip
    precision: str = setting(
        "fp16", "Precision", "Of the file that is written: fp16 and bf16 halve it.", choices=("fp32", "fp16", "bf16"),
        sd_scripts="",
    )  # fmt: skip
    device: str = device_setting()
    out: str = setting(
        "", "Output", "The file to write, ending with .safetensors.", sd_scripts="", kind="output"
    )  # fmt: skip
    overwrite: bool = overwrite_setting()
