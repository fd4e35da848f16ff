"""The file tools by name: what each is told, what it tells before it writes, and what it does."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lora_ext.config.fields import Setting, declared_settings, parse_value, unknown_setting
from lora_ext.merge.work import ToolReport, Work
from lora_ext.protocols import ConfigError


@dataclass(frozen=True)
class Tool:
    """One of the file tools. `settings` is a dataclass of declared settings; both functions take one of it.

    `preview` writes nothing, and is None where `run` writes nothing either. `writes_checkpoints` says that its
    output is a checkpoint, no network; `changes_input` that it writes into its `file`.
    """

    name: str
    title: str
    summary: str
    settings: type
    run: Callable[[Any, Work], ToolReport]
    preview: Callable[[Any, Work], ToolReport] | None = None
    writes_checkpoints: bool = False
    changes_input: bool = False

    def declared(self) -> tuple[Setting, ...]:
        """Its settings, in the order in which a person is asked for them."""
        return declared_settings(self.settings, self.name)


MODULES: dict[str, str] = {
    "resize": "lora_ext.merge.resize",
    "merge-networks": "lora_ext.merge.merge_networks",
    "merge-checkpoint": "lora_ext.merge.merge_checkpoint",
    "extract": "lora_ext.merge.extract",
    "check": "lora_ext.merge.check",
    "repair": "lora_ext.merge.repair",
    "inspect": "lora_ext.merge.inspect",
    "interrogate": "lora_ext.merge.interrogate",
    "metadata": "lora_ext.merge.metadata",
    "convert": "lora_ext.merge.convert",
    "dylora-split": "lora_ext.merge.dylora_split",
}
"""Each tool's module, which has it as `TOOL`; imported when it is asked for."""


def tool_named(name: str) -> Tool:
    """A tool by its name; KeyError for a name that is none."""
    found: Tool = importlib.import_module(MODULES[name]).TOOL
    return found


def make_settings(tool: Tool, values: Mapping[str, Any]) -> Any:
    """The tool's settings from values as a form, a shell or JSON gives them; the others have their defaults.

    Raises ConfigError with every problem at once.
    """
    declared = {each.name: each for each in tool.declared()}
    problems, parsed = [], {}
    for name, value in values.items():
        if name not in declared:
            problems.append(unknown_setting(name, declared, tool.name))
            continue
        parsed[name], problem = parse_value(declared[name], value)
        if problem is not None:
            problems.append(problem)
    if problems:
        raise ConfigError(problems)
    return tool.settings(**parsed)
