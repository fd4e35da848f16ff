"""The tab of the file tools as HTML: a form for each, made from what it declares, and a place for its report."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from lora_ext.config.fields import Setting
from lora_ext.merge.tools import MODULES, Tool, tool_named
from lora_ext.ui.forms import declared_field

_SHOWN = 5
"""Settings of a tool that are no files and show without unfolding the others."""

_OF_THE_OUTPUT = ("precision", "device", "overwrite")

_RESULT = """
  <section id="lw-tool-live" class="lw-live" data-state="idle" aria-label="work with files">
    <p class="lw-run-line"><span role="status"><span id="lw-tool-state" class="lw-pill">idle</span>
      <b id="lw-tool-name"></b></span> <span id="lw-tool-facts" class="lw-hint"></span>
      <button type="button" class="lw-button" id="lw-tool-cancel" data-lw-action="cancel-tool" hidden>Cancel</button>
    </p>
    <div id="lw-tool-bar" class="lw-bar" role="progressbar" aria-label="progress" aria-valuemin="0" aria-valuemax="100">
      <div class="lw-bar-fill" id="lw-tool-bar-fill"></div></div>
    <p class="lw-control-error" role="alert" data-lw-error></p>
    <ul id="lw-tool-problems" class="lw-errors" role="alert"></ul>
    <div id="lw-tool-next" class="lw-controls"></div>
    <div id="lw-tool-report"></div>
  </section>
"""


def files_page() -> str:
    """The whole page; javascript/lora_workshop_files.js brings it to life."""
    tools = [tool_named(name) for name in MODULES]
    if not tools:
        return '<p class="lw-hint">There are no tools for files yet.</p>'
    choices = "".join(
        f'<button type="button" class="lw-button lw-kind" role="radio" aria-checked="{str(number == 0).lower()}" '
        f'tabindex="{0 if number == 0 else -1}" data-lw-action="choose-tool" data-tool="{tool.name}" '
        f'title="{escape(tool.summary)}">{escape(tool.title)}</button>'
        for number, tool in enumerate(tools)
    )
    forms = "".join(_form(tool, hidden=number > 0) for number, tool in enumerate(tools))
    return (
        '<section id="lw-files" class="lw-files-page"><div class="lw-controls lw-kinds" role="radiogroup" '
        f'aria-label="tool">{choices}</div><datalist id="lw-files-networks"></datalist>'
        f'<datalist id="lw-files-checkpoints"></datalist>{forms}{_RESULT}</section>'
    )


def _form(tool: Tool, hidden: bool) -> str:
    declared = tool.declared()
    inputs = [each for each in declared if each.kind and each.kind != "output"]
    outputs = [each for each in declared if each.kind == "output"]
    outputs += [each for each in declared if each.name in _OF_THE_OUTPUT]
    others = [each for each in declared if each not in (*inputs, *outputs)]
    more = others[_SHOWN:]
    folded = f"<details><summary>More settings</summary>{_fields(tool, more)}</details>" if more else ""
    preview = (
        '<button type="button" class="lw-button" data-lw-action="preview-tool">Preview</button>' if tool.preview else ""
    )
    word = "Write" if any(each.kind == "output" for each in outputs) else escape(tool.title)
    return (
        f'<div class="lw-tool" data-tool="{tool.name}" data-title="{escape(tool.title)}" '
        f'data-checkpoints="{str(tool.writes_checkpoints).lower()}"{" hidden" if hidden else ""}>'
        f'<p class="lw-hint">{escape(tool.summary)}</p>'
        f"{_fields(tool, inputs)}{_fields(tool, others[:_SHOWN])}{folded}{_fields(tool, outputs)}"
        f'<div class="lw-controls">{preview}<button type="button" class="lw-button lw-main" data-lw-action="run-tool">'
        f"{word}</button></div></div>"
    )


def _fields(tool: Tool, settings: Sequence[Setting]) -> str:
    fields = "".join(declared_field(each, each.default, f"{tool.name}-{each.name}") for each in settings)
    return f'<div class="lw-fields">{fields}</div>' if fields else ""
