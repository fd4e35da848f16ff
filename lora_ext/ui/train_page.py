"""The training page, top to bottom in the order of the work, as HTML; the scripts fill in what changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lora_ext.ui.form_layout import FOLDER_FIELD, MAIN_FIELDS, TRIGGER_FIELD
from lora_ext.ui.forms import field, groups
from lora_ext.ui.pieces import CONTROLS, live_panel, step_heading, try_panel
from lora_ext.web.markup import hint
from lora_ext.web.planning import NO_PICTURES, NO_PLAN

PRESET_ROW = """
<div class="lw-controls lw-kinds" id="lw-kinds" hidden>
  <span class="lw-kind-set" role="radiogroup" aria-label="what is it?" id="lw-kind-what"></span>
  <span class="lw-kind-set" role="radiogroup" aria-label="memory of the graphics card" id="lw-kind-card"></span>
</div>
"""

FORM_TOOLS = """
<div class="lw-controls lw-form-tools">
  <label class="lw-switch"><input type="checkbox" id="lw-all-settings"> All settings</label>
  <input type="search" id="lw-search" placeholder="Search the settings" aria-label="search the settings"
    autocomplete="off" spellcheck="false">
  <label class="lw-switch"><input type="checkbox" id="lw-changed-only"> Changed only
    <span id="lw-changed-count"></span></label>
  <span class="lw-spring"></span>
  <select id="lw-preset" aria-label="presets"><option value="">Load a preset …</option></select>
  <button type="button" class="lw-button" data-lw-action="open-save-preset">Save preset</button>
  <button type="button" class="lw-button" data-lw-action="open-import">Import</button>
  <button type="button" class="lw-button" data-lw-action="open-export">Export</button>
  <button type="button" class="lw-button" data-lw-action="defaults">Defaults</button>
</div>
<div id="lw-exchange" class="lw-exchange" hidden></div>
<p id="lw-no-match" class="lw-hint" hidden>No setting fits these words.</p>
"""

START_ROW = f"""
<div class="lw-controls" id="lw-start-row">
  <button type="button" class="lw-button" id="lw-start" data-lw-action="start">Start</button>
  {CONTROLS}
</div>
"""


def train_page(defaults: Mapping[str, Any], program: str, page_key: str) -> str:
    """The whole page; `defaults` are settings that differ from the declared ones."""
    main = "".join(field(name, defaults) for name in MAIN_FIELDS)
    return (
        f"{step_heading(1, 'Pictures')}"
        f'<div id="lw-folder-row">{field(FOLDER_FIELD, defaults)}'
        '<button type="button" class="lw-button" id="lw-look" data-lw-action="look">Look</button>'
        f"{field(TRIGGER_FIELD, defaults)}</div>"
        f'<div id="lw-report">{hint(NO_PICTURES)}</div>'
        f"{step_heading(2, 'What is it?')}{PRESET_ROW}"
        f'<div id="lw-main-fields" class="lw-fields">{main}</div>'
        f'{FORM_TOOLS}<div id="lw-groups">{groups(defaults)}</div>'
        f'{step_heading(3, "Plan")}<div id="lw-plan">{hint(NO_PLAN)}</div>'
        f"{step_heading(4, 'Training')}{START_ROW}{live_panel(page_key)}"
        f"{step_heading(5, 'Try it')}{try_panel(program)}"
    )
