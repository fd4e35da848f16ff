"""What the algorithms know and what the presets hold, for those who check settings and for those who use them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lora_ext.config.groups import NetworkSettings

HAS_RANK = frozenset({"lora", "dylora", "loha", "lokr", "diag-oft", "boft", "glora", "tlora"})
HAS_ALPHA = frozenset({"lora", "dylora", "loha", "lokr", "glora", "tlora"})
HAS_TUCKER = frozenset({"lora", "loha", "lokr"})
HAS_SCALAR = frozenset({"lora", "loha", "lokr", "glora"})
HAS_DORA = frozenset({"lora", "loha", "lokr"})
HAS_UP_FACTORS = frozenset({"lora", "dylora", "tlora"})
HAS_MAX_NORM = frozenset({"lora", "dylora", "loha", "lokr", "diag-oft", "boft", "full", "glora"})
HAS_RANK_DROPOUT = frozenset({"lora", "loha", "lokr", "full", "diag-oft", "boft"})
"""Which algorithms know a setting; the others do without it."""

UNET_PRESETS = ("unet-only", "unet-transformer-only", "unet-convblock-only")
"""Presets that leave the text encoders as they are."""

KERNEL_PRESETS = ("full", "unet-only", "unet-convblock-only")
"""Presets with 3×3 convolutions, which have the linear layers' rank and alpha where none of their own are set."""


def is_own_preset(settings: NetworkSettings) -> bool:
    """Whether the preset is a file, of which nothing is known before the run."""
    return settings.network_preset.strip().lower().endswith(".toml")


def has_kernels(settings: NetworkSettings) -> bool:
    """Whether 3×3 convolutions may be adapted: by the preset, or with a rank of their own as sd-scripts does."""
    preset = settings.network_preset.strip()
    with_rank = settings.conv_dim is not None or bool(settings.conv_block_dims.strip())
    return preset in KERNEL_PRESETS or is_own_preset(settings) or (preset == "attn-mlp" and with_rank)


def trains_text_encoder(settings: NetworkSettings) -> bool:
    """Whether text encoders are adapted, as far as the settings tell."""
    return not settings.network_train_unet_only and settings.network_preset.strip() not in UNET_PRESETS


def is_plain_lora(settings: NetworkSettings) -> bool:
    """Whether it is LoRA or LoCon as sd-scripts has it, unless a preset of one's own says otherwise."""
    extras = settings.dora_wd or settings.use_tucker or settings.use_scalar
    return settings.network_algorithm == "lora" and not extras and not is_own_preset(settings)
