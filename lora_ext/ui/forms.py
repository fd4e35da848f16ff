"""Form fields from the declared settings: one component a setting, nothing said twice."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from lora_ext.config.fields import Setting
from lora_ext.config.train_config import GROUP_TITLES, TrainConfig, all_settings, flat_values, make_config

FOLDER_FIELD = "train_data_dir"
MAIN_FIELDS = (
    "output_name",
    "resolution",
    "train_batch_size",
    "max_train_epochs",
    "network_dim",
    "network_alpha",
    "learning_rate",
)


@dataclass(frozen=True)
class SettingsForm:
    """The fields of a page by the names of their settings, in one fixed order."""

    fields: Mapping[str, gr.components.Component]

    @property
    def inputs(self) -> list[gr.components.Component]:
        """The components, as an event listener takes them."""
        return list(self.fields.values())

    def config(self, values: Sequence[Any]) -> TrainConfig:
        """The configuration that stands in the fields; raises ConfigError with all problems at once."""
        return make_config(dict(zip(self.fields, values, strict=True)))

    def updates(self, config: TrainConfig) -> list[dict[str, Any]]:
        """What an event listener returns to show a configuration in the fields."""
        values = flat_values(config)
        return [gr.update(value=shown_value(all_settings()[name], values[name])) for name in self.fields]


def make_field(declared: Setting, defaults: Mapping[str, Any], **layout: Any) -> gr.components.Component:
    """The component for one setting; `defaults` may hold another value than the declared one."""
    common = {
        "label": declared.label + (f" ({declared.unit})" if declared.unit else ""),
        "info": f"{declared.help} [{declared.name}]",
        "value": shown_value(declared, defaults.get(declared.name, declared.default)),
        "elem_id": f"lw-{declared.name}",
        "elem_classes": ["lw-field"],
        "interactive": True,
        **layout,
    }
    if declared.choices:
        return gr.Dropdown(choices=[str(choice) for choice in declared.choices], **common)
    if declared.type is bool:
        return gr.Checkbox(**common)
    if declared.lines > 1:
        common["elem_classes"] = ["lw-field", "lw-wide"]
        return gr.Textbox(lines=declared.lines, max_lines=4 * declared.lines, **common)
    return gr.Textbox(max_lines=1, placeholder="none" if declared.optional else "", **common)


def make_group(group: str, names: Iterable[str], defaults: Mapping[str, Any]) -> dict[str, gr.components.Component]:
    """A folded group of fields."""
    known = all_settings()
    title = GROUP_TITLES[group]
    with (
        gr.Accordion(title, open=False, elem_id=f"lw-group-{group}", elem_classes=["lw-group"]),
        gr.Row(elem_classes=["lw-fields"]),
    ):
        return {name: make_field(known[name], defaults, min_width=220) for name in names}


def folded_fields(already_shown: Iterable[str]) -> dict[str, list[str]]:
    """Names of the settings that no simple field shows, by group."""
    shown = set(already_shown)
    groups: dict[str, list[str]] = {group: [] for group in GROUP_TITLES}
    for name, declared in all_settings().items():
        if name not in shown:
            groups[declared.group].append(name)
    return {group: names for group, names in groups.items() if names}


def shown_value(declared: Setting, value: Any) -> Any:
    """The value as its field takes it: text for everything but a tick box; an empty field is "none"."""
    if declared.type is bool:
        return bool(value)
    if value is None:
        return ""
    if declared.type is float:
        return short_number(float(value))
    return str(value)


def short_number(value: float) -> str:
    """1e-4 for 0.0001, 16 for 16.0, all digits that matter."""
    text = repr(value)
    if "e" in text:
        digits, power = text.split("e")
        return f"{digits.removesuffix('.0')}e{int(power)}"
    if value != 0 and abs(value) < 0.01:
        digits, power = f"{value:.12e}".split("e")
        return f"{digits.rstrip('0').rstrip('.')}e{int(power)}"
    return text.removesuffix(".0")
