"""Taking a tensor's name apart: which part of the checkpoint, which module in it, which tensor of that module."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lora_ext.networks.formats.blocks import is_diffusers_name, is_ldm_name
from lora_ext.networks.weight_delta import SUFFIXES

UNET, TEXT, TEXT_1, TEXT_2 = "unet", "te", "te1", "te2"
"""Parts as sd-scripts has them: `lora_unet_…`, `lora_te_…` (SD1, SD2), `lora_te1_…` and `lora_te2_…` (SDXL)."""

PEFT_LENGTHS = "lora_magnitude_vector"
"""peft's name for DoRA's lengths."""


@dataclass(frozen=True)
class TensorName:
    """A tensor's place: part, module with underscores for dots, suffix as sd-scripts or LyCORIS has it, dialect."""

    part: str
    module: str
    suffix: str
    dialect: str


_FOREIGN_SUFFIXES = {
    "lora_A.weight": "lora_down.weight",
    "lora_B.weight": "lora_up.weight",
    "lora_B.bias": "lora_up.bias",
    "lora.down.weight": "lora_down.weight",
    "lora.up.weight": "lora_up.weight",
    "lora_linear_layer.down.weight": "lora_down.weight",
    "lora_linear_layer.up.weight": "lora_up.weight",
    PEFT_LENGTHS: "dora_scale",
    f"{PEFT_LENGTHS}.weight": "dora_scale",
    "lora.alpha": "alpha",
    "lora_linear_layer.alpha": "alpha",
    "network_alpha": "alpha",
}
_SUFFIXES = {**{suffix: suffix for suffix in SUFFIXES}, **_FOREIGN_SUFFIXES}
_NEVER_DOTTED = {"weight", "bias"}  # what every checkpoint's tensors end with
_PEFT_MARKS = ("lora_A.", "lora_B.", PEFT_LENGTHS)

_FLAT = re.compile(r"(lora|lyco|lycoris|oft)_(?:prior_)?(unet|te\d?)_(.+)")
_OLD_PROCESSORS = (  # diffusers' attention processors before 0.22, and its text encoders before 0.17
    (re.compile(r"\.(?:processor\.)?to_out_lora\.(?=down|up|alpha)"), ".to_out.0.lora."),
    (re.compile(r"\.(?:processor\.)?to_([qkv])_lora\.(?=down|up|alpha)"), r".to_\1.lora."),
)
_ADAPTER = re.compile(r"\.(lora_A|lora_B|lora_magnitude_vector)\.(?!weight$|bias$)[^.]+(?=\.weight$|\.bias$|$)")
_DOTTED_PARTS = (
    ("model.diffusion_model.", UNET),
    ("diffusion_model.", UNET),
    ("unet.", UNET),
    ("text_encoder.", TEXT),
    ("text_encoder_1.", TEXT),
    ("text_encoder_2.", TEXT_2),
    ("text_encoders.clip_l.", TEXT),
    ("text_encoders.clip_g.", TEXT_2),
    ("clip_l.", TEXT),
    ("clip_g.", TEXT_2),
)
_WRAPPERS = re.compile(r"^(base_model\.model\.)+")
_TEXT_LAYERS = re.compile(r"(?:.*_)?encoder_layers_(\d+)_(.+)")
_OPENCLIP_LAYERS = re.compile(r"(?:model_)?transformer_resblocks_(\d+)_(.+)")
_OPENCLIP_PARTS = {
    "attn_q_proj": "self_attn_q_proj",
    "attn_k_proj": "self_attn_k_proj",
    "attn_v_proj": "self_attn_v_proj",
    "attn_out_proj": "self_attn_out_proj",
    "mlp_c_fc": "mlp_fc1",
    "mlp_c_proj": "mlp_fc2",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
}
_OLD_TEXT_PARTS = {f"self_attn_to_{letter}": f"self_attn_{letter}_proj" for letter in "qkv"} | {
    "self_attn_to_out_0": "self_attn_out_proj"
}


def parse_tensor_name(name: str) -> TensorName | None:
    """The place of a network's tensor; None for names that no known program gives.

    `lora_unet_x.alpha`, `unet.x.lora_A.weight` and `base_model.model.x.lora_A.default.weight` are understood alike.
    """
    flat, dot, suffix = name.partition(".")
    if dot and (parts := _FLAT.fullmatch(flat)):
        return _named(parts[2], parts[3], _SUFFIXES.get(_without_adapter(f".{suffix}")[1:], suffix), "sd-scripts")
    if dot and (plain := _part_of_plain(flat.removeprefix("lycoris_"))):
        known = _SUFFIXES.get(suffix)
        return None if known is None else _named(plain, flat.removeprefix("lycoris_"), known, "LyCORIS")
    if flat.startswith("diffusion_model_"):
        return _named(UNET, flat.removeprefix("diffusion_model_"), suffix, "ldm")
    return _dotted(name)


def _dotted(name: str) -> TensorName | None:
    for old, new in _OLD_PROCESSORS:
        name = old.sub(new, name)
    split = _split_suffix(_without_adapter(name))
    if split is None:
        return None
    path, foreign = split
    wrapped = path.startswith("base_model.model.")
    path = _WRAPPERS.sub("", path)
    found = next(((prefix, part) for prefix, part in _DOTTED_PARTS if path.startswith(prefix)), None)
    if found is not None:
        path = _WRAPPERS.sub("", path.removeprefix(found[0]))
    module = path.replace(".", "_")
    part = found[1] if found else _part_of_plain(module)
    if part is None:
        return None
    if found and "diffusion_model." in found[0]:
        dialect = "ComfyUI"
    else:
        dialect = "PEFT" if wrapped or (found is None and foreign.startswith(_PEFT_MARKS)) else "diffusers"
    return _named(part, module, _SUFFIXES[foreign], dialect)


def _split_suffix(name: str) -> tuple[str, str] | None:
    """(path, suffix) at the longest known suffix."""
    parts = name.split(".")
    for count in (3, 2, 1):
        suffix = ".".join(parts[-count:])
        if len(parts) > count and suffix in _SUFFIXES and suffix not in _NEVER_DOTTED:
            return ".".join(parts[:-count]), suffix
    return None


def _without_adapter(name: str) -> str:
    """peft's name of the adapter taken out: `.lora_A.default.weight` → `.lora_A.weight`."""
    return _ADAPTER.sub(r".\1", name)


def _part_of_plain(module: str) -> str | None:
    """The part that a module without a prefix is of."""
    if is_ldm_name(module) or is_diffusers_name(module):
        return UNET
    return TEXT if module.startswith(("text_model_", "encoder_layers_")) else None


def _named(part: str, module: str, suffix: str, dialect: str) -> TensorName:
    return TensorName(part, module if part == UNET else _text_module(module), suffix, dialect)


def _text_module(module: str) -> str:
    """A text encoder's module in transformers' words, whatever its program calls it."""
    if layers := _OPENCLIP_LAYERS.fullmatch(module):
        return f"text_model_encoder_layers_{layers[1]}_{_OPENCLIP_PARTS.get(layers[2], layers[2])}"
    if layers := _TEXT_LAYERS.fullmatch(module):
        return f"text_model_encoder_layers_{layers[1]}_{_OLD_TEXT_PARTS.get(layers[2], layers[2])}"
    return module
