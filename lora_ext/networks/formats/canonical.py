"""A file's tensors by module and suffix as sd-scripts has them, whatever program wrote it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from lora_ext.checkpoint.checkpoint import Architecture
from lora_ext.networks.formats.adapter_config import adapter_alpha
from lora_ext.networks.formats.blocks import (
    Family,
    diffusers_name,
    family_by_names,
    is_diffusers_name,
    is_ldm_name,
    ldm_name,
)
from lora_ext.networks.formats.names import PEFT_LENGTHS, TEXT, TEXT_1, TEXT_2, UNET, TensorName, parse_tensor_name
from lora_ext.networks.formats.unnamed import numbered_places

EMBEDDING = "bundle_emb."
"""How the names of embeddings begin that a network's file has too."""

_WIDTHS: dict[int, Family] = {768: "SD", 1024: "SD", 2048: "SDXL"}
"""What the U-Net's cross-attention takes in."""


@dataclass
class NetworkModules:
    """What a network file holds: tensors by module and suffix, embeddings by name and tensor, names not understood.

    `places` says which module and suffix a name in the file stands for; where several stand for one, the first counts
    and the others are not understood.
    """

    modules: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    embeddings: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    dialect: str = "sd-scripts"
    places: dict[str, tuple[str, str]] = field(default_factory=dict)


def canonical_modules(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str], architecture: Architecture | None = None
) -> NetworkModules:
    """A file's tensors by sd-scripts' module keys and LyCORIS' suffixes; nothing is copied.

    SD1 and SD2 are called as in diffusers, SDXL as in ldm. Which of them a file is for follows from it, or, where it
    leaves that open, from the checkpoint's `architecture`. Names that are not understood are kept in `unknown`.
    Raises UserError for factors without names that are not those of a known network.
    """
    found = NetworkModules()
    places = numbered_places(tensors)
    for name, tensor in tensors.items():
        if name in places:
            continue
        if name.startswith(EMBEDDING):
            embedding, _, part = name.removeprefix(EMBEDDING).partition(".")
            found.embeddings.setdefault(embedding, {})[part] = tensor
        elif place := parse_tensor_name(name):
            places[name] = place
        else:
            found.unknown.append(name)
    family = _family(places, tensors, metadata) or _family_of(architecture)
    for name, place in places.items():
        key = _key(place, family)
        module = found.modules.setdefault(key, {})
        found.places[name] = (key, place.suffix)
        if place.suffix in module:
            found.unknown.append(name)
        else:
            is_pefts = PEFT_LENGTHS in name  # (1, out, 1, 1) of a convolution: by output, as it always is
            module[place.suffix] = tensors[name].reshape(-1) if is_pefts else tensors[name]
    found.dialect = _dialect(places, metadata)
    if found.dialect in ("diffusers", "PEFT"):
        _add_alphas(found.modules, metadata)
    return found


def _key(place: TensorName, family: Family | None) -> str:
    part, module = place.part, place.module
    if part == UNET:
        if family == "SD" and is_ldm_name(module):
            module = diffusers_name(module)
        elif family == "SDXL" and is_diffusers_name(module):
            module = ldm_name(module)
    elif family == "SD" and part == TEXT_1:
        part = TEXT
    elif family == "SDXL" and part == TEXT:
        part = TEXT_1
    return f"lora_{part}_{module}"


def _family(
    places: Mapping[str, TensorName], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> Family | None:
    """The U-Net's layout: by a second text encoder, by the metadata, by its blocks, by what its attention takes in."""
    if any(place.part == TEXT_2 for place in places.values()):
        return "SDXL"
    for text in (metadata.get("ss_base_model_version", ""), metadata.get("modelspec.architecture", "")):
        if text.startswith(("sdxl", "stable-diffusion-xl")):
            return "SDXL"
        if text.startswith(("sd_v", "stable-diffusion-v")):
            return "SD"
    by_names = family_by_names({place.module for place in places.values() if place.part == UNET})
    if by_names is not None:
        return by_names
    for name, place in places.items():
        shape = tensors[name].shape
        if place.module.endswith("_attn2_to_k") and place.suffix == "lora_down.weight" and len(shape) > 1:
            return _WIDTHS.get(shape[1])
    return None


def _family_of(architecture: Architecture | None) -> Family | None:
    return None if architecture is None else "SDXL" if architecture == "SDXL" else "SD"


def _dialect(places: Mapping[str, TensorName], metadata: Mapping[str, str]) -> str:
    """The program or library whose words most of the names are."""
    counts = Counter(place.dialect for place in places.values())
    dialect = counts.most_common(1)[0][0] if counts else "unknown"
    if dialect != "sd-scripts":
        return dialect
    if any(key.startswith("ot_") for key in metadata):
        return "OneTrainer"
    suffixes = {place.suffix for place in places.values()}
    is_plain = suffixes <= {"lora_up.weight", "lora_down.weight", "alpha"}
    return "LyCORIS" if not is_plain or "lycoris" in metadata.get("ss_network_module", "") else "sd-scripts"


def _add_alphas(modules: Mapping[str, dict[str, Tensor]], metadata: Mapping[str, str]) -> None:
    """peft keeps one alpha for all modules outside of the tensors, for LoRA and LoHa; its LoKr goes without."""
    for key, module in modules.items():
        down = module.get("lora_down.weight", module.get("hada_w1_b"))
        if "alpha" not in module and down is not None and down.ndim:
            alpha = adapter_alpha(key, down.shape[0], metadata)
            if alpha is not None:
                module["alpha"] = alpha
