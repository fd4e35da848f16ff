"""What of the network settings fights each other, and what an algorithm leaves without effect."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from lora_ext.config import algorithms
from lora_ext.config.arguments import parse_numbers
from lora_ext.config.groups.network import PRESETS

if TYPE_CHECKING:
    from lora_ext.config.groups import NetworkSettings
    from lora_ext.config.train_config import TrainConfig

_Problem = tuple[tuple[str, ...], str]
_LORAPLUS = ("loraplus_lr_ratio", "loraplus_unet_lr_ratio", "loraplus_text_encoder_lr_ratio")


def network_contradictions(config: TrainConfig) -> Iterable[_Problem]:
    """Values of the network group that fight each other: (names involved, what is wrong and what to set)."""
    network = config.network
    preset = network.network_preset.strip()
    if preset not in PRESETS and not algorithms.is_own_preset(network):
        near = difflib.get_close_matches(preset, PRESETS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        yield (
            ("network_preset",),
            f"network_preset = {preset!r}: allowed are {', '.join(PRESETS)}, and the path of a .toml file{hint}",
        )
    if preset in algorithms.UNET_PRESETS and network.network_train_text_encoder_only:
        yield (
            ("network_preset", "network_train_text_encoder_only"),
            f"network_preset = {preset} leaves the text encoder as it is and network_train_text_encoder_only the "
            "U-Net, so nothing is left to train: choose another preset, or switch the latter off",
        )
    yield from _lora_fa(config)
    yield from _of_algorithms(network)


def _lora_fa(config: TrainConfig) -> Iterable[_Problem]:
    network = config.network
    if not network.lora_fa or network.network_algorithm != "lora":
        return
    extras = [name for name in ("dora_wd", "use_tucker", "use_scalar") if getattr(network, name)]
    if extras:
        yield ("lora_fa", *extras), f"lora_fa is for plain LoRA and LoCon: switch {' and '.join(extras)} off"
    ratios = [name for name in _LORAPLUS if getattr(config.learning, name) is not None]
    if ratios:
        yield (
            ("lora_fa", *ratios),
            f"lora_fa trains the up factors alone, and {ratios[0]} is their rate over that of the others: leave it "
            "out and set the learning rate itself",
        )


def _of_algorithms(network: NetworkSettings) -> Iterable[_Problem]:
    name, unit = network.network_algorithm, network.block_size
    if name == "dylora":
        ranks: dict[str, list[float]] = {"network_dim": [network.network_dim], "conv_dim": [network.conv_dim or 0]}
        ranks |= {each: parse_numbers(getattr(network, each)) or [] for each in ("block_dims", "conv_block_dims")}
        for setting, numbers in ranks.items():
            odd = [number for number in numbers if number % unit]
            if odd:
                yield (
                    (setting, "block_size"),
                    f"{setting} = {odd[0]:g} is no multiple of block_size = {unit}, the ranks that dylora trains at a "
                    "time: change one of them",
                )
    if name == "tlora" and (network.conv_dim is not None or network.conv_block_dims.strip()):
        yield (
            ("network_algorithm", "conv_dim", "conv_block_dims"),
            "network_algorithm = tlora cannot adapt 3×3 convolutions: leave conv_dim and conv_block_dims out",
        )
    if name == "tlora" and network.network_weights.strip():
        yield (
            ("network_algorithm", "network_weights"),
            "network_algorithm = tlora cannot train on a file: its files are plain LoRA and do not tell where the "
            "training began; set network_algorithm to lora, or resume a saved state",
        )


def network_advice(config: TrainConfig) -> Iterable[str]:
    """What is no mistake and surprises all the same."""
    network = config.network
    if network.network_algorithm == "ia3" and network.network_preset.strip() != "ia3":
        yield "network_algorithm = ia3 is meant for network_preset = ia3: keys, values and the feed-forward's output"
    if network.network_algorithm == "full":
        yield (
            "network_algorithm = full trains and saves every adapted weight whole: files of gigabytes, and as much "
            "memory for the optimizer; lokr with full_matrix comes close to it with a fraction"
        )


def _without(known: frozenset[str]) -> Callable[[TrainConfig], bool]:
    def idle(config: TrainConfig) -> bool:
        network = config.network
        return network.network_algorithm not in known and not algorithms.is_own_preset(network)

    return idle


def _has_no_kernels(config: TrainConfig) -> bool:
    return not algorithms.has_kernels(config.network)


def _for(known: Iterable[str]) -> str:
    return f" with this network_algorithm: it is for {', '.join(sorted(known))}"


WITHOUT_EFFECT: tuple[tuple[str, tuple[str, ...], Callable[[TrainConfig], bool], str], ...] = (
    ("network", ("conv_dim", "conv_block_dims"), lambda c: c.network.network_preset.strip() != "attn-mlp"
     and _has_no_kernels(c), ", because network_preset leaves the 3×3 convolutions as they are"),
    ("network", ("network_dropout",), lambda c: not algorithms.is_plain_lora(c.network)
     and not algorithms.is_own_preset(c.network),
     " with this network_algorithm: plain lora alone has it; rank_dropout and module_dropout are there for others"),
    ("network", ("rank_dropout",), _without(algorithms.HAS_RANK_DROPOUT), _for(algorithms.HAS_RANK_DROPOUT)),
    ("network", ("rank_dropout_scale",), lambda c: not c.network.rank_dropout, " without rank_dropout: set it too"),
    ("network", ("rank_dropout_scale",), lambda c: bool(c.network.rank_dropout) and algorithms.is_plain_lora(c.network),
     ", because plain lora makes up for it at all times"),
    ("network", ("scale_weight_norms",), _without(algorithms.HAS_MAX_NORM), _for(algorithms.HAS_MAX_NORM)),
    ("network", ("use_tucker",), _without(algorithms.HAS_TUCKER), _for(algorithms.HAS_TUCKER)),
    ("network", ("use_tucker",), lambda c: c.network.network_algorithm in algorithms.HAS_TUCKER and _has_no_kernels(c),
     ", because no 3×3 convolutions are adapted: set conv_dim, or a preset that has them"),
    ("network", ("use_scalar",), _without(algorithms.HAS_SCALAR), _for(algorithms.HAS_SCALAR)),
    ("network", ("dora_wd",), _without(algorithms.HAS_DORA), _for(algorithms.HAS_DORA)),
    ("network", ("rs_lora",), _without(algorithms.HAS_ALPHA), _for(algorithms.HAS_ALPHA)),
    ("network", ("lora_fa",), _without(frozenset({"lora"})), _for(("lora",))),
    ("network", ("block_size",), _without(frozenset({"dylora"})), _for(("dylora",))),
    ("network", ("factor", "decompose_both", "full_matrix", "unbalanced_factorization"),
     _without(frozenset({"lokr"})), _for(("lokr",))),
    ("network", ("constraint", "rescaled"), _without(frozenset({"diag-oft", "boft"})), _for(("diag-oft", "boft"))),
    ("learning", _LORAPLUS, _without(algorithms.HAS_UP_FACTORS), _for(algorithms.HAS_UP_FACTORS)),
)  # fmt: skip
"""Rules as those of without_effect.py, of algorithms and presets."""
