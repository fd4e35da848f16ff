"""What is trained."""

from __future__ import annotations

from dataclasses import dataclass

from lora_ext.config.fields import setting


@dataclass(frozen=True)
class NetworkSettings:
    """What is trained."""

    network_dim: int = setting(
        32, "Rank", "How much the network can hold: 32 for about 30 pictures, 64 for 50 or more.",
        minimum=1, maximum=1024,
    )  # fmt: skip
    network_alpha: float = setting(
        16.0, "Alpha", "The network acts with strength alpha / rank; half the rank is usual.", minimum=0, maximum=8192
    )
    conv_dim: int | None = setting(
        None, "Convolution rank", "Adapts the 3×3 convolutions too (LoCon), for styles; half the rank or less.",
        minimum=1, maximum=1024,
    )  # fmt: skip
    conv_alpha: float | None = setting(
        None, "Convolution alpha", "Alpha of the 3×3 convolutions; none takes 1.", minimum=0, maximum=8192
    )
    network_dropout: float = setting(
        0.0, "Dropout", "Share of the adapters' inner values that are left out each step.", minimum=0, maximum=0.99
    )
    rank_dropout: float = setting(
        0.0,
        "Rank dropout",
        "Share of the ranks that each picture goes without.",
        minimum=0,
        maximum=0.99,
    )
    module_dropout: float = setting(
        0.0, "Module dropout", "Share of the adapters that are left out as a whole each step.", minimum=0, maximum=0.99
    )
    scale_weight_norms: float | None = setting(
        None, "Max norm", "Longest allowed change of a layer, 1 is usual; keeps the network from burning.",
        minimum=0.001, maximum=1000,
    )  # fmt: skip
    block_dims: str = setting(
        "",
        "Ranks by block",
        "25 ranks for SD1's blocks (12 in, 1 middle, 12 out), 23 for SDXL's; 0 leaves one out.",
    )
    block_alphas: str = setting("", "Alphas by block", "As many alphas as there are ranks by block.")
    conv_block_dims: str = setting("", "Convolution ranks by block", "The same for the 3×3 convolutions.")
    conv_block_alphas: str = setting("", "Convolution alphas by block", "The same for the 3×3 convolutions.")
    network_train_unet_only: bool = setting(False, "U-Net only", "Leave the text encoder as it is: saves memory.")
    network_train_text_encoder_only: bool = setting(
        False, "Text encoder only", "Leave the U-Net as it is: the words change, the drawing does not."
    )
    network_weights: str = setting("", "Train on", "Network file (or its name) that the training begins with.")
    dim_from_weights: bool = setting(
        False, "Ranks from the file", "Take the ranks and alphas of the file that the training begins with."
    )
    base_weights: str = setting(
        "", "Merge first", "Network files (or names), one a line, that are part of the base during the run.", lines=2
    )
    base_weights_multiplier: str = setting(
        "", "Their weights", "One number for each of them, separated by commas; 1 where there is none."
    )
