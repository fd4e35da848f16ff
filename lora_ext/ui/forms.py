"""Form fields from the declared settings as HTML: one field a setting, nothing said twice.

They are plain fields of the page, not components of gradio: with well over a hundred of these the page would take
seconds to build, and each change would carry all of them through gradio. javascript/lora_workshop_form.js reads them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from lora_ext.config.fields import Setting
from lora_ext.config.train_config import GROUP_TITLES, all_settings
from lora_ext.ui.form_layout import grouped_fields
from lora_ext.web.form_values import shown_value


def field(name: str, defaults: Mapping[str, Any], classes: str = "") -> str:
    """The field of one of a training's settings; `defaults` may hold another value than the declared one."""
    declared = all_settings()[name]
    return declared_field(declared, defaults.get(name, declared.default), name, classes, _names(declared))


def declared_field(declared: Setting, default: Any, identity: str, classes: str = "", names: str = "") -> str:
    """The field of a setting; `identity` tells it from others on the page, `names` is HTML that ends its help.

    `data-default` is what stands in it before anything is set; what differs from it counts as changed.
    """
    value = shown_value(declared, default)
    wide = " lw-wide" if declared.lines > 1 else ""
    unit = f" ({escape(declared.unit)})" if declared.unit and declared.unit != declared.label.lower() else ""
    words = f"{declared.label} {declared.help} {declared.name} {declared.sd_scripts}".lower()
    kind = "lw-tick" if declared.type is bool else "lw-text"
    return (
        f'<div class="lw-field {kind}{wide} {classes}" id="lw-{identity}" data-name="{declared.name}" '
        f'data-words="{escape(words)}" data-default="{escape(_as_text(value))}">'
        f'<label for="lw-field-{identity}">{escape(declared.label)}{unit}</label>{_control(declared, value, identity)}'
        f'<p class="lw-help" id="lw-help-{identity}">{escape(declared.help)} {names}</p>'
        f'<p class="lw-field-error" role="alert" hidden></p></div>'
    )


def groups(defaults: Mapping[str, Any]) -> str:
    """The folded groups, each with its headings and fields."""
    return "".join(
        f'<details class="lw-group" id="lw-group-{group}"><summary>{escape(GROUP_TITLES[group])}'
        f'<span class="lw-group-note"></span></summary>{_sections(sections, defaults)}</details>'
        for group, sections in grouped_fields().items()
    )


def _sections(sections: Mapping[str, Iterable[str]], defaults: Mapping[str, Any]) -> str:
    return "".join(
        f'<section class="lw-section"><h5>{escape(heading)}</h5>'
        f'<div class="lw-fields">{"".join(field(name, defaults) for name in names)}</div></section>'
        for heading, names in sections.items()
    )


def _control(declared: Setting, value: Any, identity: str) -> str:
    common = f'id="lw-field-{identity}" name="{declared.name}" aria-describedby="lw-help-{identity}"'
    if declared.type is bool:
        return f'<input type="checkbox" {common}{" checked" if value else ""}>'
    if declared.choices:
        choices = [""] if declared.optional else []
        return f"<select {common}>{_options([*choices, *map(str, declared.choices)], value)}</select>"
    if declared.lines > 1 or declared.kind == "networks":
        rows = max(2, declared.lines)
        text = f'<textarea {common} rows="{rows}" spellcheck="false">{escape(value)}</textarea>'
        return text + (_adding(declared) if declared.kind else "")
    empty = ' placeholder="none"' if declared.optional else ""
    digits = ' inputmode="decimal"' if declared.type in (int, float) else ""
    known = f' list="lw-files-{declared.kind}s"' if declared.kind in ("network", "checkpoint") else ""
    line = (
        f'<input type="text" {common} value="{escape(value)}"{empty}{digits}{known} autocomplete="off" '
        'spellcheck="false">'
    )
    if not declared.suggestions:
        return line
    label = escape(f"{declared.label}: suggestions")
    choose = f'<select class="lw-suggest" aria-label="{label}">{_options(declared.suggestions, value)}</select>'
    return f'<span class="lw-combo">{line}{choose}</span>'


def _adding(declared: Setting) -> str:
    """A line that adds a chosen network to the text above it."""
    label = escape(f"{declared.label}: add a network")
    return (
        f'<input type="text" class="lw-add-network" list="lw-files-networks" aria-label="{label}" '
        f'placeholder="add a network …" autocomplete="off" spellcheck="false">'
    )


def _options(choices: Iterable[str], chosen: str) -> str:
    return "".join(
        f'<option{" selected" if choice == chosen else ""} value="{escape(choice)}">{escape(choice) or "none"}</option>'
        for choice in choices
    )


def _names(declared: Setting) -> str:
    """The setting's name, and the one that sd-scripts has for it where that is another one."""
    other = declared.sd_scripts if declared.sd_scripts not in ("", declared.name) else ""
    return f"<code>{declared.name}</code>" + (f" <code>sd-scripts: {escape(other)}</code>" if other else "")


def _as_text(value: Any) -> str:
    return ("true" if value else "false") if isinstance(value, bool) else str(value)
