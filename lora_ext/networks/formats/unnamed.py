"""sd_dreambooth's and cloneofsimo's networks: factors without names, in the order of diffusers' modules."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from lora_ext.networks.formats.names import TEXT, UNET, TensorName
from lora_ext.protocols import UserError

DIALECT = "sd_dreambooth"
_NUMBERED = re.compile(r"(unet|text_encoder):(\d{1,4}):(up|down)")

_ATTENTION = ("to_q", "to_k", "to_v", "to_out_0")
_TRANSFORMERS = (
    *(f"down_blocks_{level}_attentions_{layer}" for level in range(3) for layer in range(2)),
    *(f"up_blocks_{level}_attentions_{layer}" for level in range(1, 4) for layer in range(3)),
    "mid_block_attentions_0",  # diffusers registers it last
)
_TEXT_ORDER = ("k_proj", "v_proj", "q_proj", "out_proj")


def numbered_tensors(unet: Sequence[Tensor], text: Sequence[Tensor] = ()) -> dict[str, Tensor]:
    """Lists of up, down, up, down, … as tensors by cloneofsimo's names: `unet:0:up`, `unet:0:down`, …"""
    found: dict[str, Tensor] = {}
    for part, tensors in (("unet", unet), ("text_encoder", text)):
        for place, tensor in enumerate(tensors):
            found[f"{part}:{place // 2}:{'down' if place % 2 else 'up'}"] = tensor
    return found


def numbered_places(tensors: Mapping[str, Tensor]) -> dict[str, TensorName]:
    """The places of tensors with cloneofsimo's names, without all others.

    Raises UserError where they are not as many as an SD1 or SD2 checkpoint has modules.
    """
    names = [parts for parts in map(_NUMBERED.fullmatch, tensors) if parts]
    places: dict[str, TensorName] = {}
    for part in ("unet", "text_encoder"):
        numbers = {int(parts[2]) for parts in names if parts[1] == part}
        pairs = [(f"{part}:{number}:up", f"{part}:{number}:down") for number in range(len(numbers))]
        missing = [name for pair in pairs for name in pair if name not in tensors]
        modules = list(_unet_modules(pairs, tensors) if part == "unet" and not missing else _text_modules(len(pairs)))
        if missing or len(modules) != len(pairs):
            raise UserError(
                f"{len(pairs)} pairs of tensors without names for the {part} are not those of a network that is known: "
                "128 or 144 for the U-Net, four a layer for the text encoder; convert it with the program that made it"
            )
        for (up, down), module in zip(pairs, modules, strict=True):
            kind = UNET if part == "unet" else TEXT
            places[up] = TensorName(kind, module, "lora_up.weight", DIALECT)
            places[down] = TensorName(kind, module, "lora_down.weight", DIALECT)
    return places


def _unet_modules(pairs: Sequence[tuple[str, str]], tensors: Mapping[str, Tensor]) -> Iterator[str]:
    """Modules in the order of diffusers': with the feed-forward's first layer, as most have it, or attention alone."""
    if not pairs or len(pairs) % len(_TRANSFORMERS):
        return
    attention = [f"{which}_{layer}" for which in ("attn1", "attn2") for layer in _ATTENTION]
    orders = {
        8: attention,
        9: [*attention[:4], "ff_net_0_proj", *attention[4:]]  # diffusers before 0.15 made it between them
        if len(pairs) > 4 and _widens(pairs[4], tensors)
        else [*attention, "ff_net_0_proj"],
    }
    for transformer in _TRANSFORMERS:
        for layer in orders.get(len(pairs) // len(_TRANSFORMERS), ()):
            yield f"{transformer}_transformer_blocks_0_{layer}"


def _widens(pair: tuple[str, str], tensors: Mapping[str, Tensor]) -> bool:
    up, down = tensors[pair[0]], tensors[pair[1]]
    return up.ndim == down.ndim == 2 and up.shape[0] > down.shape[1]


def _text_modules(count: int) -> Iterator[str]:
    for layer in range(count // len(_TEXT_ORDER)):
        for name in _TEXT_ORDER:
            yield f"text_model_encoder_layers_{layer}_self_attn_{name}"
