"""What is trained."""

from __future__ import annotations

from dataclasses import dataclass

from lora_ext.config.fields import setting

ALGORITHMS = ("lora", "dylora", "loha", "lokr", "ia3", "full", "diag-oft", "boft", "glora", "tlora")
"""What can be trained, by LyCORIS' names; LoCon is lora with conv_dim."""

PRESETS = (
    "attn-mlp", "full", "full-lin", "attn-only", "unet-only", "unet-transformer-only", "unet-convblock-only", "ia3",
)  # fmt: skip
"""Which modules are adapted, by LyCORIS' names."""


@dataclass(frozen=True)
class NetworkSettings:
    """What is trained."""

    network_algorithm: str = setting(
        "lora", "Algorithm",
        "lora (LoCon with a convolution rank) is the fastest, and every program reads it; loha and lokr make smaller "
        "files; tlora begins at the weights' own directions and is saved as lora of twice the rank.",
        choices=ALGORITHMS, sd_scripts="",
    )  # fmt: skip
    network_preset: str = setting(
        "attn-mlp", "Adapted modules",
        "By LyCORIS' names; attn-mlp is what sd-scripts adapts, and with a convolution rank its LoCon. Or the path of "
        "a TOML file of your own.",
        suggestions=PRESETS, sd_scripts="",
    )  # fmt: skip
    network_include: str = setting(
        "", "Only these modules",
        "Parts of names, one a line; whole names with * and ? for anything; re: begins a regular expression.",
        lines=2, sd_scripts="",
    )  # fmt: skip
    network_exclude: str = setting(
        "", "Without these modules", "Written in the same way: attn2, say, leaves all cross-attention as it is.",
        lines=2, sd_scripts="",
    )  # fmt: skip
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
        None, "Convolution alpha", "Alpha of the 3×3 convolutions; none takes 1, or Alpha with presets that have them.",
        minimum=0, maximum=8192,
    )  # fmt: skip
    network_dropout: float = setting(
        0.0, "Dropout", "Share of the adapters' inner values that are left out each step.", minimum=0, maximum=0.99
    )
    rank_dropout: float = setting(
        0.0,
        "Rank dropout",
        "Share of the ranks that each picture goes without; beyond lora, of the outputs that a step leaves alone.",
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
    train_norm: bool = setting(False, "Norm layers too", "Adapts the norm layers of the U-Net's adapted blocks too.")
    dora_wd: bool = setting(
        False, "DoRA", "Trains the lengths of the weights apart from their directions; slower. For lora, loha and lokr."
    )
    wd_on_output: bool = setting(
        True, "DoRA on the output", "Lengths of the outputs' weights, as LyCORIS has it; off, those of the inputs'."
    )
    rs_lora: bool = setting(
        False, "rsLoRA", "Strength alpha / √rank instead of alpha / rank: high ranks learn as fast as low ones."
    )
    lora_fa: bool = setting(
        False, "LoRA-FA", "Only the up factors are trained, which saves memory; for lora.", sd_scripts=""
    )
    use_tucker: bool = setting(
        False, "Tucker decomposition", "Smaller 3×3 convolutions with a core of their own; for lora, loha and lokr."
    )
    use_scalar: bool = setting(
        False, "Trained scalar", "A trained factor on each adapter, which begins at 0; for lora, loha, lokr and glora."
    )
    rank_dropout_scale: bool = setting(
        False, "Scaled rank dropout", "What rank dropout leaves is made up for; lora does that at all times.",
        sd_scripts="",
    )  # fmt: skip
    block_size: int = setting(
        4, "DyLoRA unit", "dylora trains so many ranks at a time; the rank is a multiple of it.",
        minimum=1, maximum=1024,
    )  # fmt: skip
    factor: int = setting(
        -1, "LoKr factor", "Size of LoKr's small factor: 4 to 16 usually; -1 makes both about as large, the smallest.",
        minimum=-1, maximum=4096,
    )  # fmt: skip
    decompose_both: bool = setting(False, "LoKr: both low-rank", "LoKr's small factor is low-rank too where it can be.")
    full_matrix: bool = setting(
        False, "LoKr: full matrices", "Neither of LoKr's factors is low-rank; the rank is not used."
    )
    unbalanced_factorization: bool = setting(
        False, "LoKr: unbalanced", "LoKr's small factor has the larger number of outputs."
    )
    constraint: float = setting(
        0.0, "OFT constraint", "How far diag-oft and boft may turn at most, per output; 0 sets no limit.",
        minimum=0, maximum=1000,
    )  # fmt: skip
    rescaled: bool = setting(False, "OFT rescaled", "diag-oft and boft train the length of each output too.")
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
