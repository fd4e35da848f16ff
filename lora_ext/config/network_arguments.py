"""The network's settings as sd-scripts is told them: `network_module`, and `network_args` by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_ext.config.algorithms import has_kernels, is_plain_lora
from lora_ext.config.arguments import parse_numbers

if TYPE_CHECKING:
    from lora_ext.config.groups import LearningSettings, NetworkSettings

LYCORIS = "lycoris.kohya"
OF_BOTH = (
    "conv_dim", "conv_alpha", "block_dims", "block_alphas", "conv_block_dims", "conv_block_alphas", "rank_dropout",
    "module_dropout",
)  # fmt: skip
"""Settings of the network that are arguments by their own names, of networks.lora too."""

OF_LYCORIS = (
    "train_norm", "dora_wd", "wd_on_output", "rs_lora", "use_tucker", "use_scalar", "block_size", "factor",
    "decompose_both", "full_matrix", "unbalanced_factorization", "constraint", "rescaled",
)  # fmt: skip
"""Those that LyCORIS alone has."""

OF_LEARNING = ("loraplus_lr_ratio", "loraplus_unet_lr_ratio", "loraplus_text_encoder_lr_ratio")
"""Settings of the learning group that are arguments of the network."""


def network_module(settings: NetworkSettings) -> str:
    """The module of sd-scripts or LyCORIS that trains such a network."""
    needs_lycoris = any(getattr(settings, name) != getattr(type(settings), name) for name in OF_LYCORIS)
    if is_plain_lora(settings) and settings.network_preset.strip() == "attn-mlp" and not needs_lycoris:
        return "networks.lora_fa" if settings.lora_fa else "networks.lora"
    return LYCORIS


def network_arguments(network: NetworkSettings, learning: LearningSettings) -> dict[str, object]:
    """The arguments that are set, by name, in the types of the settings.

    LyCORIS adapts convolutions with other presets than attn-mlp alone; full is the nearest one.
    """
    arguments: dict[str, object] = {}
    names: tuple[str, ...] = OF_BOTH
    if network_module(network) == LYCORIS:
        arguments = {"algo": network.network_algorithm, "preset": network.network_preset.strip()}
        names = (*OF_BOTH, *OF_LYCORIS)
        if arguments["preset"] == "attn-mlp" and has_kernels(network):
            arguments |= {"preset": "full", "conv_alpha": 1.0}
    given = {name: getattr(network, name) for name in names}
    given |= {name: getattr(learning, name) for name in OF_LEARNING}
    defaults = {name: getattr(type(learning if name in OF_LEARNING else network), name) for name in given}
    arguments |= {name: value for name, value in given.items() if value != defaults[name]}
    return arguments | block_rate_arguments(learning.block_lr)


def block_rate_arguments(text: str) -> dict[str, object]:
    """The factors of the blocks on the way down, in the middle and on the way up; none where they are not set.

    SDXL's 23 begin and end with blocks that have no adapters.
    """
    numbers = parse_numbers(text) or []
    if len(numbers) not in (23, 25):
        return {}
    factors = [part.strip() for part in text.split(",")]
    first, middle = (1, 3) if len(factors) == 23 else (0, 1)
    half = (len(factors) - 2 * first - middle) // 2
    return {
        "down_lr_weight": ",".join(factors[first : first + half]),
        "mid_lr_weight": ",".join(factors[first + half : first + half + middle]),
        "up_lr_weight": ",".join(factors[first + half + middle : first + 2 * half + middle]),
    }
