"""Modules that change nothing because a factor is zero: as at the start of training, or because it was lost."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

from torch import Tensor

from lora_ext.config.arguments import finite_number
from lora_ext.merge.findings import Finding, modules_words, some_of
from lora_ext.networks.weight_delta.products import unused

_PRODUCTS = (
    ("lora_up.weight", "lora_mid.weight", "lora_down.weight"),
    ("lora_up.bias",),
    ("bias_values",),
    ("hada_w1_a", "hada_w1_b", "hada_t1", "hada_w2_a", "hada_w2_b", "hada_t2"),
    ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
    ("diff",),
    ("diff_b",),
    ("w_norm",),
    ("b_norm",),
    ("weight",),
    ("a1.weight", "a2.weight"),
    ("b1.weight", "b2.weight", "bm.weight"),
    ("oft_blocks",),
)
"""What a module's change is the sum of, by suffix; a factor of zeros makes its product zero. T-LoRA's start is no zero,
and is not in the file."""

_SCALED = ("lora_", "hada_", "lokr_", "a1.")
"""How suffixes of kinds begin whose products alpha multiplies."""

_TEXT_LAYER = re.compile(r"(lora_te\d?)_text_model_encoder_layers_(\d+)_")
_PARTS = {
    "lora_unet": "U-Net",
    "lora_te": "text encoder",
    "lora_te1": "first text encoder",
    "lora_te2": "second text encoder",
}


def has_zero_factors(tensors: Mapping[str, Tensor]) -> bool:
    """Whether one module's tensors, by suffix, come to ΔW = 0; the lengths of a DoRA are left out of account."""
    found = [[tensors[suffix] for suffix in product if suffix in tensors] for product in _PRODUCTS]
    products = [factors for factors in found if factors]
    scaled = tensors.get("rescale")
    if not products or (scaled is not None and bool((scaled != 1).any())):
        return False
    return all(any(map(_is_zero, factors)) for factors in products)


def _is_zero(tensor: Tensor) -> bool:
    return not bool((tensor.float() if tensor.element_size() == 1 else tensor).any())


def changes_nothing(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a module may be left out of its file without a difference, whatever checkpoint it is for."""
    return "dora_scale" not in tensors and (has_zero_factors(tensors) or _is_switched_off(tensors))


def _is_switched_off(tensors: Mapping[str, Tensor]) -> bool:
    """Whether an alpha of 0 multiplies all of it."""
    alpha = tensors.get("alpha")
    is_scaled = any(suffix.startswith(_SCALED) for suffix in tensors) and not unused(tensors)
    return alpha is not None and is_scaled and alpha.numel() == 1 and float(alpha) == 0


def dead_findings(modules: Mapping[str, Mapping[str, Tensor]], metadata: Mapping[str, str]) -> list[Finding]:
    """What there is to say of the modules that change nothing.

    The last layers of a text encoder that clip skip leaves out are normal, as is a part whose learning rate was 0.
    """
    dead = [key for key, tensors in modules.items() if has_zero_factors(tensors)]
    if not dead:
        return []
    if len(dead) == len(modules):
        text = "the network was never trained: a factor is zero in every module, and it changes nothing"
        return [Finding("doubtful", "untrained", f"{text}; take a later epoch, or train it again", tuple(dead))]
    findings, explained = [], set()
    for part in _PARTS:
        own = [key for key in modules if key.startswith(f"{part}_")]
        zero = [key for key in dead if key.startswith(f"{part}_")]
        if zero and len(zero) == len(own) and _rate(part, metadata) == 0:
            text = f"the {_PARTS[part]} was not trained (learning rate 0): its {modules_words(len(own))} change nothing"
            findings.append(Finding("note", "not trained", text, tuple(zero)))
            explained |= set(zero)
    skipped = _skipped_layers(modules, set(dead) - explained, metadata)
    if skipped:
        text = f"{modules_words(len(skipped))} in the last layer of the text encoder change nothing, which is normal: "
        findings.append(Finding("note", "clip skip", text + "clip skip leaves that layer out", tuple(skipped)))
        explained |= set(skipped)
    left = [key for key in dead if key not in explained]
    if left:
        text = (
            f"no effect in {modules_words(len(left))} of {len(modules)}, where a factor is zero ({some_of(left)}): not "
        )
        text += "trained, or lost; the file works without them, and `repair` writes it so"
        findings.append(Finding("doubtful", "zeros", text, tuple(left)))
    return findings


def _rate(part: str, metadata: Mapping[str, str]) -> float | None:
    """The learning rate of a part, None where nothing tells it; those of both text encoders may stand in a list."""
    rates = metadata.get("ss_unet_lr" if part == "lora_unet" else "ss_text_encoder_lr", "").strip("[]").split(",")
    return finite_number(rates[-1] if part == "lora_te2" else rates[0])


def _skipped_layers(modules: Iterable[str], dead: Collection[str], metadata: Mapping[str, str]) -> list[str]:
    """The modules of a text encoder's last layers, all of them dead, as far as clip skip explains them."""
    layers: dict[str, dict[int, list[str]]] = {}
    for key in modules:
        if place := _TEXT_LAYER.match(key):
            layers.setdefault(place[1], {}).setdefault(int(place[2]), []).append(key)
    found: list[str] = []
    for encoder, by_number in layers.items():
        for number in sorted(by_number, reverse=True)[: _allowed_skip(encoder, metadata)]:
            if not all(key in dead for key in by_number[number]):
                break
            found += by_number[number]
    return found


def _allowed_skip(encoder: str, metadata: Mapping[str, str]) -> int:
    """How many of an encoder's last layers are without effect; one where nothing tells: clip skip 2 is usual."""
    if encoder == "lora_te2":  # its last layer gives the pooled vector
        return 0
    told = metadata.get("ss_clip_skip")
    if encoder == "lora_te1" or told is None:
        return 1
    return int(finite_number(told) or 1) - 1
