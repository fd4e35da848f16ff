"""The page of all settings, docs/settings.md, from their declarations."""

from __future__ import annotations

from lora_ext.config.fields import Setting
from lora_ext.config.groups.learning import OPTIMIZERS, SCHEDULES
from lora_ext.config.presets import presets
from lora_ext.config.train_config import GROUP_TITLES, all_settings

_HEAD = """\
# Settings

<!-- Written by `python run.py docs` from the declarations in lora_ext/config/groups: change it there. -->

Every setting of a training, by groups, as in the tab, in `python run.py train --help`, in `--set NAME=VALUE` and in
settings files. A name in the last column is sd-scripts' own, where it has another; a dash stands where sd-scripts has
nothing like it. "none" and "empty" are values too: nothing is set.
"""


def settings_page() -> str:
    """The page as Markdown."""
    parts = [_HEAD]
    for group, title in GROUP_TITLES.items():
        rows = [_row(declared) for declared in all_settings().values() if declared.group == group]
        parts.append("\n".join([f"## {title}", "", "| setting | default | allowed | what it does | sd-scripts |",
                                "|---|---|---|---|---|", *rows, ""]))  # fmt: skip
    parts.append(f"## Optimizers\n\n{_names(OPTIMIZERS)}, and `package.Class` for any other.\n")
    parts.append(f"## Schedules\n\n{_names(SCHEDULES)}, and `package.Class` for any other.\n")
    rows = [f"| `{preset.name}` | {preset.title} | {_cell(preset.description)} |" for preset in presets()]
    head = [
        "## Presets",
        "",
        "`--preset NAME`; several go one over the other: `--preset style --preset card-12gb`.",
        "",
    ]
    parts.append("\n".join([*head, "| preset | | what for |", "|---|---|---|", *rows, ""]))
    return "\n".join(parts)


def _row(declared: Setting) -> str:
    allowed = declared.allowed() + (f" ({declared.unit})" if declared.unit else "")
    theirs = (
        "—" if not declared.sd_scripts else "" if declared.sd_scripts == declared.name else f"`{declared.sd_scripts}`"
    )
    return f"| `{declared.name}` | {_default(declared)} | {_cell(allowed)} | {_cell(declared.help)} | {theirs} |"


def _default(declared: Setting) -> str:
    value = declared.default
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    return "empty" if value == "" else f"`{_cell(f'{value:g}' if isinstance(value, float) else str(value))}`"


def _cell(text: str) -> str:
    """A text that a table's cell can hold."""
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def _names(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)
