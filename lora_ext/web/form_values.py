"""A configuration as the page's fields show it, and which fields a problem is about."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from lora_ext.config.fields import Setting
from lora_ext.config.train_config import TrainConfig, all_settings, flat_values
from lora_ext.protocols import ConfigError, UserError

_NAME = re.compile(r"[a-z][a-z0-9_]*")


def shown_values(config: TrainConfig) -> dict[str, Any]:
    """Every setting by name, as its field takes it."""
    known = all_settings()
    return {name: shown_value(known[name], value) for name, value in flat_values(config).items()}


def shown_value(declared: Setting, value: Any) -> Any:
    """The value as its field takes it: text for everything but a tick box; an empty field is "none"."""
    if declared.type is bool:
        return value if isinstance(value, bool) else str(value).strip().lower() in ("true", "yes", "on", "1")
    if value is None:
        return ""
    if declared.type is float and not isinstance(value, str):
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


def problems_of(error: UserError) -> list[str]:
    """The problems of an error one by one."""
    return list(error.problems) if isinstance(error, ConfigError) else [str(error)]


def fields_of(problem: str) -> list[str]:
    """The settings that a problem is about: those that it names with their value or in front.

    Without such a one, the settings that it names at all; plain words that are names too (seed, vae) do not count.
    """
    known = all_settings()
    words = [(match.group(), match.start(), match.end()) for match in _NAME.finditer(problem) if match.group() in known]
    with_value = [word for word, start, end in words if start == 0 or problem[end:].startswith(" = ")]
    return list(dict.fromkeys(with_value or [word for word, _, _ in words if "_" in word]))


def problems_by_field(problems: Sequence[str]) -> dict[str, list[str]]:
    """The problems beside the fields that they are about."""
    found: dict[str, list[str]] = {}
    for problem in problems:
        for name in fields_of(problem):
            found.setdefault(name, []).append(problem)
    return found
