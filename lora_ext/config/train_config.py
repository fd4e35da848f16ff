"""`TrainConfig`: all settings of a training run, in the groups in which people think.

Field names are sd-scripts' option names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from lora_ext.config.contradictions import contradictions
from lora_ext.config.fields import Setting, declared_settings, parse_value, unknown_setting
from lora_ext.config.groups import (
    CaptionSettings,
    DatasetSettings,
    LearningSettings,
    LossSettings,
    MemorySettings,
    NetworkSettings,
    SampleSettings,
    SavingSettings,
)
from lora_ext.protocols import ConfigError


@dataclass(frozen=True)
class TrainConfig:
    """All settings of a run."""

    dataset: DatasetSettings = field(default_factory=DatasetSettings)
    captions: CaptionSettings = field(default_factory=CaptionSettings)
    network: NetworkSettings = field(default_factory=NetworkSettings)
    learning: LearningSettings = field(default_factory=LearningSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    memory: MemorySettings = field(default_factory=MemorySettings)
    saving: SavingSettings = field(default_factory=SavingSettings)
    samples: SampleSettings = field(default_factory=SampleSettings)


GROUP_TITLES = {
    "dataset": "Dataset",
    "captions": "Captions",
    "network": "Network",
    "learning": "Learning",
    "loss": "Noise and loss",
    "memory": "Memory and speed",
    "saving": "Saving",
    "samples": "Samples and validation",
}


@lru_cache(maxsize=1)
def all_settings() -> dict[str, Setting]:
    """Every setting by its name, in the order of the groups."""
    return {
        declared.name: declared
        for group in dataclasses.fields(TrainConfig)
        for declared in declared_settings(type(getattr(TrainConfig(), group.name)), group.name)
    }


def make_config(values: Mapping[str, Any], base: TrainConfig | None = None, whole: bool = True) -> TrainConfig:
    """A configuration from flat `name: value` pairs over `base` (or the defaults).

    Raises ConfigError with every unknown name, wrong type, value out of range, and contradiction at once. What is not
    the `whole` of a run, such as a preset, may lack what a value of it needs: contradictions are not looked for then.
    """
    known = all_settings()
    problems = [unknown_setting(name, known) for name in values if name not in known]
    changes: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        if name in known:
            parsed, problem = parse_value(known[name], value)
            if problem:
                problems.append(problem)
            else:
                changes.setdefault(known[name].group, {})[name] = parsed
    config = base or TrainConfig()
    groups = {group: dataclasses.replace(getattr(config, group), **change) for group, change in changes.items()}
    config = dataclasses.replace(config, **groups)
    refused = {problem.split(" = ")[0] for problem in problems}
    fighting = contradictions(config) if whole else ()
    problems += [text for names, text in fighting if not refused.intersection(names)]
    if problems:
        raise ConfigError(problems)
    return config


def flat_values(config: TrainConfig) -> dict[str, Any]:
    """The configuration as `name: value` pairs."""
    return {name: getattr(getattr(config, declared.group), name) for name, declared in all_settings().items()}
