"""What resizing networks is told."""

from __future__ import annotations

from dataclasses import dataclass

from lora_ext.config.fields import setting
from lora_ext.config.tools.shared import device_setting, overwrite_setting, stored_precision_setting


@dataclass(frozen=True)
class ResizeSettings:
    """Networks, how the rank of their modules is chosen, and where the results go."""

    files: str = setting(
        "", "Networks", "Names or files of the networks to resize, one a line.", lines=3, sd_scripts="", kind="networks"
    )
    rank: int | None = setting(
        None, "Rank", "The rank of every module; with a dynamic rule the highest that a module may get, none is no "
        "limit. A module never gets a higher rank than it has.",
        minimum=1, maximum=16384, sd_scripts="new_rank",
    )  # fmt: skip
    conv_rank: int | None = setting(
        None, "Convolution rank", "The same for convolutions, those with 1×1 kernels too, as in sd-scripts. None is "
        "the rank above.",
        minimum=1, maximum=16384, sd_scripts="new_conv_rank",
    )  # fmt: skip
    dynamic: str = setting(
        "", "Dynamic rule", "Chooses each module's rank by its singular values. sv_ratio=20 keeps those of more than a "
        "20th of the largest, sv_cumulative=0.9 the first that make up 90% of their sum, sv_fro=0.9 the first that "
        "make up 90% of ‖ΔW‖. Empty: every module gets the rank above.",
        suggestions=("sv_ratio=20", "sv_cumulative=0.9", "sv_fro=0.9"), sd_scripts="",
    )  # fmt: skip
    kohya_rank: bool = setting(
        True, "One rank more", "A dynamic rule keeps one rank more than it says, which is what sd-scripts does; off, "
        "the rule is kept as it stands.",
        sd_scripts="",
    )  # fmt: skip
    recipe: str = setting(
        "", "Recipe", "Scores every singular value against the checkpoint's weights or the network itself, and keeps "
        "those above a threshold (thr, a power of ten), or the best for a size in MiB (size). fro_ckpt=1,thr=-3.55 is "
        "a good start. Scores: spn_lora, fro_lora, spn_ckpt, fro_ckpt, subspace, params, each with its weight; "
        "rescale multiplies the network. Several recipes are joined by colons.",
        suggestions=("fro_ckpt=1,thr=-3.55", "spn_lora=1,thr=-0.7", "fro_ckpt=1,size=32"), sd_scripts="",
    )  # fmt: skip
    checkpoint: str = setting(
        "", "Checkpoint", "The checkpoint whose weights a recipe compares with (spn_ckpt, fro_ckpt, subspace).",
        sd_scripts="", kind="checkpoint",
    )  # fmt: skip
    precision: str = stored_precision_setting()
    device: str = device_setting()
    out: str = setting(
        "", "Output", "The file to write, ending with .safetensors; a folder where there are several networks or "
        "recipes.",
        sd_scripts="", kind="output",
    )  # fmt: skip
    overwrite: bool = overwrite_setting()
