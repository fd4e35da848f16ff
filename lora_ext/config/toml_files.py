"""Settings in TOML files: one table a group, or flat; comments explain each value."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from lora_ext.config.train_config import GROUP_TITLES, TrainConfig, all_settings, flat_values, make_config
from lora_ext.protocols import ConfigError, UserError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def read_config(path: Path, base: TrainConfig | None = None, whole: bool = True) -> TrainConfig:
    """The configuration in a TOML file, over `base` or the defaults; see `make_config` for `whole`.

    Raises UserError where the file cannot be read, ConfigError with all problems of its values at once.
    """
    return make_config(read_values(path), base, whole)


def read_values(path: Path) -> dict[str, Any]:
    """The settings that a TOML file gives, as they stand there; UserError where it cannot be read."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such settings file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}): save it as UTF-8") from error
    except (tomllib.TOMLDecodeError, OSError) as error:
        raise UserError(f"{path} cannot be read as TOML: {error}") from error
    return flatten_tables(document)


def flatten_tables(document: dict[str, Any]) -> dict[str, Any]:
    """Flat `name: value` pairs of a document whose settings stand in tables or at the top."""
    values: dict[str, Any] = {}
    problems = []
    for key, value in document.items():
        pairs = value.items() if isinstance(value, dict) else [(key, value)]
        for name, inner in pairs:
            if name in values:
                problems.append(f"{name} stands twice in the file: keep one of the two")
            values[name] = inner
    if problems:
        raise ConfigError(problems)
    return values


def config_to_toml(config: TrainConfig) -> str:
    """The configuration as TOML text; a setting that is none stands as "none"."""
    values = flat_values(config)
    lines: list[str] = []
    for group, title in GROUP_TITLES.items():
        lines += [f"# {title}", f"[{group}]"]
        lines += [
            f"{name} = {_toml_value(values[name])}" if values[name] is not None else f'{name} = "none"'
            for name, declared in all_settings().items()
            if declared.group == group
        ]
        lines.append("")
    return "\n".join(lines)


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)
