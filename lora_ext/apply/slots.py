"""The slot panel's contents: up to five networks that apply to a picture without standing in its prompt.

Its names in infotexts are those of sd-webui-additional-networks, so that pictures of either fill in the other's panel.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lora_ext.apply.tags import LoraTag
from lora_ext.protocols import UserError

SLOTS = 5
INFOTEXT = "AddNet "
"""How each of the panel's names in an infotext begins."""

_ENABLED, _SEPARATE = "AddNet Enabled", "AddNet Separate Weights"
_NOTHING = ("", "None")
_HASHED = re.compile(r"(.+)\(([0-9a-f]{8,64})\)")
_SLOT_KEYS = ("network", "weight", "unet", "te")
_PANEL_KEYS = ("enabled", "separate", "slots")


@dataclass(frozen=True)
class Slot:
    """A network by the name that a tag would hold, and its multipliers; an empty name is an empty slot."""

    network: str = ""
    unet: float = 1.0
    te: float = 1.0

    @property
    def used(self) -> bool:
        """Whether it changes a picture."""
        return bool(self.network) and bool(self.unet or self.te)


@dataclass(frozen=True)
class SlotPanel:
    """All slots, the first first; nothing of them applies unless the panel is enabled."""

    enabled: bool = False
    slots: tuple[Slot, ...] = field(default=(Slot(),) * SLOTS)

    @property
    def used(self) -> list[tuple[int, Slot]]:
        """(number from 1, slot) of those that change a picture."""
        numbered = enumerate(self.slots, 1) if self.enabled else ()
        return [(number, slot) for number, slot in numbered if slot.used]

    def tags(self) -> list[LoraTag]:
        """The tags that would do the same in a prompt."""
        return [slot_tag(slot) for _, slot in self.used]

    def with_slot(self, number: int, **changes: Any) -> SlotPanel:
        """The panel, enabled, with other values in the slot of this number (from 1)."""
        slots = list(self.slots)
        slots[number - 1] = replace(slots[number - 1], **changes)
        return SlotPanel(True, tuple(slots))


def slot_tag(slot: Slot) -> LoraTag:
    """The tag that would do the same in a prompt."""
    return LoraTag(slot.network, slot.te, None if slot.te == slot.unet else slot.unet)


def parse_panel(value: str | Mapping[str, Any] | None) -> SlotPanel:
    """The panel of a request: an object or its JSON text, as the page and the API give it; nothing is a closed panel.

    `{"enabled": true, "slots": [{"network": "name", "unet": 0.8, "te": 0.6}, …]}`; `weight` stands for both, a missing
    weight is 1. Raises UserError naming what is wrong.
    """
    values = _object(value)
    _refuse_unknown(values, _PANEL_KEYS, "the panel")
    slots = values.get("slots") or []
    if not isinstance(slots, list) or len(slots) > SLOTS:
        raise UserError(f"slots = {str(slots)[:80]}: allowed is a list of at most {SLOTS} slots")
    enabled = values.get("enabled", bool(slots))
    if not isinstance(enabled, bool):
        raise UserError(f"enabled = {enabled!r}: allowed are true and false")
    parsed = [_parse_slot(each, number) for number, each in enumerate(slots, 1)]
    return SlotPanel(enabled, (*parsed, *(Slot(),) * (SLOTS - len(parsed))))


def _object(value: str | Mapping[str, Any] | None) -> Mapping[str, Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else {}
        except ValueError as error:
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
    return Slot("" if name in _NOTHING else name, **weights)


def _number(value: Any, what: str) -> float:
    if not isinstance(value, int | float | str) or isinstance(value, bool):
        raise UserError(f"{what} = {value!r} is no number; write one like 0.8")
    try:
        number = float(value)
    except ValueError as error:
        raise UserError(f"{what} = {value!r} is no number; write one like 0.8") from error
    if not math.isfinite(number):
        raise UserError(f"{what} = {value!r} is no number; write one like 0.8")
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
    return told


def _text(number: float) -> str:
    return f"{number:.10g}"


def panel_of_infotext(params: Mapping[str, Any], name_of: Callable[[str, str], str]) -> dict[str, Any]:
    """The panel, as `parse_panel` takes it, of an infotext's parameters; disabled where they say nothing of it.

    `name_of(name, hash)` is the name of that network here; the hash is empty where the infotext has none.
    """
    if str(params.get(_ENABLED, "False")) != "True":
        return {"enabled": False}
    slots = []
    for number in range(1, SLOTS + 1):
        model = str(params.get(f"AddNet Model {number}", ""))
        both = params.get(f"AddNet Weight {number}", 1.0)
        unet, te = (params.get(f"AddNet Weight {part} {number}", both) for part in "AB")
        hashed = _HASHED.fullmatch(model)
        name = name_of(hashed[1], hashed[2]) if hashed else name_of(model, "")
        slots.append({"network": "" if model in _NOTHING else name, "unet": float(unet), "te": float(te)})
    separate = any(slot["unet"] != slot["te"] for slot in slots)
    return {"enabled": True, "separate": separate, "slots": slots}
