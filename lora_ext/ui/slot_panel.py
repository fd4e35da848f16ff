"""The slot panel under txt2img and img2img: one text for gradio, plain fields for a person.

javascript/lora_workshop_slots.js keeps both alike and fetches the list of networks when the panel is opened, so that
the page neither carries that list ten times nor is built more slowly.
"""

from __future__ import annotations

from typing import Any

import gradio as gr

from lora_ext.apply.slots import SLOTS

_COLOURS = {"R": "red", "G": "green", "B": "blue"}
_REGIONS = '<option value="">everywhere</option>' + "".join(
    f'<option value="{channel}">{colour}</option>' for channel, colour in _COLOURS.items()
)
_BRUSHES = "".join(
    '<button type="button" class="lw-copy lw-brush" data-lw-action="mask-brush" role="radio" '
    f'aria-checked="{str(colour == "red").lower()}" data-brush="{colour}">{colour}</button>'
    for colour in (*_COLOURS.values(), "nothing")
)


def build_slot_panel(tab: str) -> Any:
    """The folded panel of `tab` (txt2img, img2img) in the present context; returns the component with its value."""
    with gr.Accordion("LoRA Workshop", open=False, elem_id=f"lw-slots-{tab}"):
        value = gr.Textbox(
            "", label="panel", show_label=False, elem_id=f"lw-slots-{tab}-value", elem_classes=["lw-kept"]
        )
        gr.HTML(panel_html(tab), elem_id=f"lw-slots-{tab}-panel")
    value.change(fn=None, inputs=[value], _js=f"(text) => {{ window.loraWorkshopSlots?.show('{tab}', text); }}")
    return value


def panel_html(tab: str) -> str:
    """The panel's fields, without the list of networks."""
    rows = "".join(_slot(tab, number) for number in range(1, SLOTS + 1))
    return f"""
<div class="lw-slots" data-tab="{tab}">
  <div class="lw-controls">
    <label class="lw-switch"><input type="checkbox" data-slot-field="enabled"> Enable</label>
    <label class="lw-switch"><input type="checkbox" data-slot-field="separate"> U-Net and text encoder apart</label>
    <span class="lw-spring"></span>
    <button type="button" class="lw-copy" data-lw-action="refresh-networks">Refresh the list</button>
  </div>
  <div class="lw-slot-rows">{rows}</div>
  <details class="lw-slot-mask">
    <summary>Regions <span class="lw-hint">networks in parts of the picture</span></summary>
    <div class="lw-mask-row"><canvas class="lw-mask" width="384" height="384" aria-label="mask"></canvas>
      <div class="lw-mask-tools">
        <div class="lw-controls" role="radiogroup" aria-label="paint with">{_BRUSHES}</div>
        <label class="lw-switch">Brush <input type="range" class="lw-mask-size" min="4" max="160" value="60"></label>
        <div class="lw-controls">
          <button type="button" class="lw-copy" data-lw-action="mask-parts" data-parts="2">Left | right</button>
          <button type="button" class="lw-copy" data-lw-action="mask-parts" data-parts="3">Thirds</button>
          <label class="lw-copy">Load a picture<input type="file" class="lw-mask-file" accept="image/*" hidden></label>
          <button type="button" class="lw-copy" data-lw-action="mask-clear">Clear</button>
        </div>
        <p class="lw-hint">A network with a region acts where the mask has its colour, its text encoder everywhere.</p>
      </div>
    </div>
  </details>
  <p class="lw-slot-note lw-hint" role="status"></p>
</div>
"""


def _slot(tab: str, number: int) -> str:
    weights = "".join(
        f'<span class="lw-slot-weight" data-part="{part}"><i>{word}</i>'
        f'<input type="range" min="-1" max="2" step="0.05" value="1" tabindex="-1" aria-hidden="true">'
        f'<input type="text" inputmode="decimal" data-slot-field="{part}" value="1" aria-label="{label} {number}">'
        f"</span>"
        for part, word, label in (("unet", "U-Net", "U-Net weight"), ("te", "TE", "text encoder weight"))
    )
    return (
        f'<div class="lw-slot" data-slot="{number}"><span class="lw-slot-picture">{number}</span>'
        f'<input type="text" data-slot-field="network" list="lw-networks" placeholder="no network" '
        f'aria-label="network of slot {number}" autocomplete="off" spellcheck="false">'
        '<button type="button" class="lw-copy" data-lw-action="show-slot" title="what this network is" disabled>'
        f'Details</button><select data-slot-field="region" aria-label="region of slot {number}">{_REGIONS}</select>'
        f"{weights}</div>"
    )
