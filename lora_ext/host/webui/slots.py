"""The slot panel of txt2img and img2img: its networks go into the picture as if their tags stood in the prompt."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from modules import extra_networks, scripts
from modules.infotext_utils import PasteField

from lora_ext.apply.slots import SlotPanel, panel_infotext, panel_of_infotext, parse_panel
from lora_ext.apply.tags import LoraTag
from lora_ext.host.webui.state import get_host
from lora_ext.networks.library import NetworkLibrary
from lora_ext.protocols import UserError

TITLE = "LoRA Workshop"
PANEL = "LoRA Workshop panel"
"""The name under which "Send to img2img" and its like carry the panel to the other tab."""

AXES = "lora_workshop_slot_axes"
"""What an X/Y/Z plot's cell has put into slots: {(number, part): value}, on its copy of the request."""

_ON_REQUEST = "lora_workshop_panel"
_TOLD = "lora_workshop_panel_infotext"


def slot_script(build: Callable[[str], Any]) -> type:
    """The WebUI's script class for the panel; `build(tab)` makes its components and returns the one with its value."""

    class SlotScript(scripts.Script):
        """Five networks beside the prompt, in txt2img and in img2img."""

        def title(self) -> str:
            """Its name on the page, and in `alwayson_scripts` of the API."""
            return TITLE

        def show(self, is_img2img: bool) -> object:
            """Always there, as a folded panel."""
            return scripts.AlwaysVisible

        def ui(self, is_img2img: bool) -> list[Any]:
            """The panel's only value for gradio is one text, which the page's script writes."""
            value = build("img2img" if is_img2img else "txt2img")
            value.do_not_save_to_config = True
            self.infotext_fields = [PasteField(value, _pasted), PasteField(value, PANEL)]
            self.paste_field_names = [PANEL]
            return [value]

        def process(self, p: Any, value: Any = None, *_: Any) -> None:
            """Note the panel's networks on the request, for its tags and its infotext."""
            prepare(p, value)

    return SlotScript


def prepare(p: Any, value: Any) -> None:
    """Put what the panel and the cell of a plot ask for on the request; a wrong value is told with the picture."""
    try:
        panel = with_axes(parse_panel(value), getattr(p, AXES, {}))
    except UserError as error:
        panel = SlotPanel()
        p.comment(f"LoRA Workshop: the panel's networks are left out: {error}")
    setattr(p, _ON_REQUEST, panel)
    before, told = getattr(p, _TOLD, {}), panel_infotext(panel, _stored_hash)
    others = {name: value for name, value in p.extra_generation_params.items() if name not in before}
    p.extra_generation_params = {**others, **told}
    setattr(p, _TOLD, told)


def tags_of(p: Any, params_list: list[Any]) -> list[LoraTag]:
    """The tags that stand for the panel of a request; they are added to `params_list` for the built-in too."""
    panel: SlotPanel = getattr(p, _ON_REQUEST, None) or SlotPanel()
    for _, slot in panel.used:
        items = [slot.network, str(slot.te), str(slot.unet)]
        params_list.append(extra_networks.ExtraNetworkParams(items=items))
    return panel.tags()


def note_left(p: Any, reason: str | None) -> None:
    """Say with the picture that the built-in applies the panel's networks: for a reason, or because the settings do."""
    panel: SlotPanel = getattr(p, _ON_REQUEST, None) or SlotPanel()
    if not panel.used:
        return
    without = "; it knows no masks, and applies them everywhere" if panel.masks else ""
    why = "as the settings say" if reason is None else reason
    p.comment(f"LoRA Workshop: the panel's networks are left to the built-in, {why}{without}")


def with_axes(panel: SlotPanel, values: Mapping[tuple[int, str], Any]) -> SlotPanel:
    """The panel with a cell's values in its slots: a weight for both parts first, whatever the axes' order."""
    for (number, part), value in sorted(values.items(), key=lambda each: each[0][1] != "weight"):
        changes = {"unet": value, "te": value} if part == "weight" else {part: "" if value is None else value}
        panel = panel.with_slot(number, **changes)
    return panel


def _pasted(params: Mapping[str, Any]) -> str:
    """The panel's value for a pasted infotext."""
    return json.dumps(panel_of_infotext(params, lambda name, digits: known_name(get_host().library, name, digits)))


def known_name(library: NetworkLibrary, name: str, digits: str) -> str:
    """The name here of a network in an infotext: the same file may be called otherwise, which its hash tells."""
    if library.find(name) is not None or not digits:
        return name
    path = library.find_hash(digits)
    return name if path is None else path.stem


def _stored_hash(name: str) -> str:
    """The hash in a network's own metadata; empty where it has none."""
    library = get_host().library
    path = library.find(name)
    return library.short_metadata(path).get("sshs_model_hash", "") if path is not None else ""
