"""The slot panel's contents: up to five networks that apply to a picture without standing in its prompt.

Its names in infotexts are those of sd-webui-additional-networks, so that pictures of either fill in the other's panel.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from PIL import Image

from lora_ext.apply.regions import CHANNELS, channel_mask
from lora_ext.apply.tags import LoraTag
from lora_ext.config.arguments import finite_number
from lora_ext.networks.region_mask import RegionMask
from lora_ext.protocols import UserError

SLOTS = 5
_ENABLED, _SEPARATE = "AddNet Enabled", "AddNet Separate Weights"
_NOTHING = ("", "None")
_HASHED = re.compile(r"(.+)\(([0-9a-f]{8,64})\)")
_SLOT_KEYS = ("network", "weight", "unet", "te", "region")
_OF_THE_PAGE = ("separate", "told_regions")
_PANEL_KEYS = ("enabled", "slots", "mask")
_LONGEST_MASK = 16 << 20  # characters
_MOST_PIXELS = 16 << 20


@dataclass(frozen=True)
class Slot:
    """A network by the name that a tag would hold, and its multipliers; an empty name is an empty slot.

    `region` is the channel of the panel's mask (R, G, B) where the U-Net's part acts, empty everywhere.
    """

    network: str = ""
    unet: float = 1.0
    te: float = 1.0
    region: str = ""

    @property
    def used(self) -> bool:
        """Whether it changes a picture."""
        return bool(self.network) and bool(self.unet or self.te)


@dataclass(frozen=True)
class SlotPanel:
    """All slots, the first first; nothing of them applies unless the panel is enabled.

    `masks` are the regions of the channels that have one: a channel that is black has none, and its networks act
    everywhere.
    """

    enabled: bool = False
    slots: tuple[Slot, ...] = field(default=(Slot(),) * SLOTS)
    masks: Mapping[str, RegionMask] = field(default_factory=dict)

    @property
    def used(self) -> list[tuple[int, Slot]]:
        """(number from 1, slot) of those that change a picture."""
        numbered = enumerate(self.slots, 1) if self.enabled else ()
        return [(number, slot) for number, slot in numbered if slot.used]

    def tags(self) -> list[LoraTag]:
        """The tags that would do the same in a prompt."""
        return [
            LoraTag(
                slot.network,
                slot.te,
                None if slot.te == slot.unet else slot.unet,
                region=self.masks.get(slot.region) if slot.unet else None,
            )
            for _, slot in self.used
        ]

    def with_slot(self, number: int, **changes: Any) -> SlotPanel:
        """The panel, enabled, with other values in the slot of this number (from 1)."""
        slots = list(self.slots)
        slots[number - 1] = replace(slots[number - 1], **changes)
        return replace(self, enabled=True, slots=tuple(slots))


def parse_panel(value: str | Mapping[str, Any] | None) -> SlotPanel:
    """The panel of a request: an object or its JSON text, as the page and the API give it; nothing is a closed panel.

    `{"enabled": true, "slots": [{"network": "name", "unet": 0.8, "te": 0.6, "region": "R"}, …], "mask": "…"}`; `weight`
    stands for both weights, a missing one is 1; the mask is a picture as base64 or as a data address. Raises UserError
    naming what is wrong.
    """
    values = _object(value)
    _refuse_unknown({key: given for key, given in values.items() if key not in _OF_THE_PAGE}, _PANEL_KEYS, "the panel")
    slots = values.get("slots") or []
    if not isinstance(slots, list) or len(slots) > SLOTS:
        raise UserError(f"slots = {str(slots)[:80]}: allowed is a list of at most {SLOTS} slots")
    enabled = values.get("enabled", bool(slots))
    if not isinstance(enabled, bool):
        raise UserError(f"enabled = {enabled!r}: allowed are true and false")
    parsed = [_parse_slot(each, number) for number, each in enumerate(slots, 1)]
    masks = _masks(values.get("mask"), parsed)
    return SlotPanel(enabled, (*parsed, *(Slot(),) * (SLOTS - len(parsed))), masks)


def _masks(value: Any, slots: Sequence[Slot]) -> dict[str, RegionMask]:
    """The mask's channels that slots name, without those that are black."""
    wanted = dict.fromkeys(slot.region for slot in slots if slot.region)
    if not value:
        if wanted:
            raise UserError(f"region {', '.join(wanted)}: there is no mask; give a picture, or leave the region out")
        return {}
    picture = _picture(value)
    masks = {channel: channel_mask(picture, channel) for channel in wanted}
    return {channel: mask for channel, mask in masks.items() if mask is not None}


def _picture(value: Any) -> Image.Image:
    if not isinstance(value, str) or len(value) > _LONGEST_MASK:
        raise UserError(f"the mask is no text of at most {_LONGEST_MASK:,} characters: give a picture as base64")
    text = value.partition(",")[2] if value.startswith("data:") else value
    try:
        with Image.open(io.BytesIO(base64.b64decode(text, validate=True))) as opened:
            if opened.width * opened.height > _MOST_PIXELS:
                raise UserError(
                    f"the mask has {opened.width}×{opened.height} pixels: 512 on the longer side are plenty"
                )
            return opened.convert("RGB")
    except (binascii.Error, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"the mask is no picture that can be read ({error}): give a PNG, JPEG or WebP file") from error


def _object(value: str | Mapping[str, Any] | None) -> Mapping[str, Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else {}
        except (ValueError, RecursionError) as error:
            raise UserError(f"the slot panel's text is no JSON ({error}): load the page again") from error
    if value is None or isinstance(value, Mapping):
        return value or {}
    raise UserError(f'the slot panel = {value!r}: give an object like {{"slots": [{{"network": "name"}}]}}')


def _parse_slot(value: Any, number: int) -> Slot:
    if not isinstance(value, Mapping):
        raise UserError(f'slot {number} = {value!r}: give an object like {{"network": "name", "weight": 1}}')
    _refuse_unknown(value, _SLOT_KEYS, f"slot {number}")
    network = value.get("network") or ""
    if not isinstance(network, str):
        raise UserError(f"slot {number}: network = {network!r}: give the name of a network's file")
    name = network.strip()
    weight = value.get("weight", 1.0)
    weights = {part: _number(value.get(part, weight), f"slot {number}: {part}") for part in ("unet", "te")}
    region = value.get("region") or ""
    if region and region not in CHANNELS:
        raise UserError(
            f"slot {number}: region = {region!r}: allowed are {', '.join(CHANNELS)}, and none for everywhere"
        )
    return Slot("" if name in _NOTHING else name, **weights, region=region)


def _number(value: Any, what: str) -> float:
    if not isinstance(value, int | float | str) or isinstance(value, bool):
        raise UserError(f"{what} = {value!r} is no number; write one like 0.8")
    number = finite_number(value)
    if number is None:
        raise UserError(f"{what} = {str(value)[:80]!r} is no number; write one like 0.8")
    return number


def _refuse_unknown(values: Mapping[str, Any], known: tuple[str, ...], what: str) -> None:
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise UserError(f"{what} has no {', '.join(unknown)}; there are {', '.join(known)}")


def panel_infotext(panel: SlotPanel, hash_of: Callable[[str], str]) -> dict[str, str]:
    """What an infotext says of the panel; empty where it changes nothing. `hash_of(name)` may know the file's hash."""
    used = panel.used
    if not used:
        return {}
    told = {_ENABLED: "True"}
    if any(slot.unet != slot.te for _, slot in used):
        told[_SEPARATE] = "True"
    for number, slot in used:
        digits = hash_of(slot.network)[:12]
        told[f"AddNet Model {number}"] = f"{slot.network}({digits})" if digits else slot.network
        told[f"AddNet Weight A {number}"] = _text(slot.unet)
        told[f"AddNet Weight B {number}"] = _text(slot.te)
        if slot.region in panel.masks:
            told[f"AddNet Region {number}"] = slot.region
    return told


def _text(number: float) -> str:
    return f"{number:.10g}"


def panel_of_infotext(params: Mapping[str, Any], name_of: Callable[[str, str], str]) -> dict[str, Any]:
    """The panel, as `parse_panel` takes it, of an infotext's parameters; disabled where they say nothing of it.

    An infotext holds no mask: its regions are only told (`told_regions`), for a page that still has one.

    `name_of(name, hash)` is the name of that network here; the hash is empty where the infotext has none.
    """
    if str(params.get(_ENABLED, "False")) != "True":
        return {"enabled": False}
    slots = []
    for number in range(1, SLOTS + 1):
        model = str(params.get(f"AddNet Model {number}", ""))
        both = params.get(f"AddNet Weight {number}", 1.0)
        unet, te = (_told_number(params.get(f"AddNet Weight {part} {number}", both)) for part in "AB")
        hashed = _HASHED.fullmatch(model)
        name = name_of(hashed[1], hashed[2]) if hashed else name_of(model, "")
        slots.append({"network": "" if model in _NOTHING else name, "unet": unet, "te": te})
    separate = any(slot["unet"] != slot["te"] for slot in slots)
    regions = [str(params.get(f"AddNet Region {number}", "")) for number in range(1, SLOTS + 1)]
    return {"enabled": True, "separate": separate, "slots": slots, "told_regions": regions}


def _told_number(value: Any) -> float:
    """A weight of an infotext, 1 where somebody has written something else."""
    try:
        return _number(value, "weight")
    except UserError:
        return 1.0
