"""How a setting is declared, and how a value from a file, a shell or a form is checked against it."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, get_args, get_origin, get_type_hints

_METADATA_KEY = "setting"
_TRUE = {"true", "yes", "on", "1"}
_FALSE = {"false", "no", "off", "0"}
_NONE = {"none", "null", ""}


@dataclass(frozen=True)
class Setting:
    """One declared setting. `type` is the plain type (bool, int, float or str) without its `| None`.

    `lines` is how many lines of text its field shows; from two on the text may have as many as it likes.
    `suggestions` are offered for a text that may be another one. `sd_scripts` is the setting's name there, empty where
    sd-scripts has none like it. `kind` is what a text names, where it is a file: "network", "networks" (one a line),
    "checkpoint" or "output".
    """

    name: str
    group: str
    type: type
    optional: bool
    default: Any
    label: str
    help: str
    minimum: float | None = None
    maximum: float | None = None
    multiple_of: int | None = None
    choices: tuple[str | int, ...] | None = None
    suggestions: tuple[str, ...] = ()
    unit: str = ""
    lines: int = 1
    sd_scripts: str = ""
    kind: str = ""

    def allowed(self) -> str:
        """What may stand here, in words for an error message or a help text."""
        if self.choices:
            choices = [f'"{choice}"' if "," in str(choice) else str(choice) for choice in self.choices]
            words = "one of " + ", ".join(choices)
        elif self.type is bool:
            words = "true or false"
        else:
            words = {int: "a whole number", float: "a number", str: "text"}[self.type]
            if self.minimum is not None and self.maximum is not None:
                words += f" from {self.minimum:.12g} to {self.maximum:.12g}"
            elif self.minimum is not None:
                words += f" of at least {self.minimum:.12g}"
            elif self.maximum is not None:
                words += f" of at most {self.maximum:.12g}"
            if self.multiple_of is not None:
                words += f", a multiple of {self.multiple_of}"
        return words + (', or "none"' if self.optional else "")


def setting(
    default: Any,
    label: str,
    help: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    multiple_of: int | None = None,
    choices: tuple[str | int, ...] | None = None,
    suggestions: tuple[str, ...] = (),
    unit: str = "",
    lines: int = 1,
    sd_scripts: str | None = None,
    kind: str = "",
) -> Any:
    """A dataclass field that carries what is known of the setting; its name in sd-scripts is its own if None."""
    known = {
        "label": label,
        "help": help,
        "minimum": minimum,
        "maximum": maximum,
        "multiple_of": multiple_of,
        "choices": choices,
        "suggestions": suggestions,
        "unit": unit,
        "lines": lines,
        "sd_scripts": sd_scripts,
        "kind": kind,
    }
    return dataclasses.field(default=default, metadata={_METADATA_KEY: known})


def declared_settings(group_class: type, group: str) -> tuple[Setting, ...]:
    """The settings of one group's dataclass, in the order they are declared."""
    hints = get_type_hints(group_class)
    found = []
    for each in dataclasses.fields(group_class):
        plain, optional = _plain_type(hints[each.name])
        known = dict(each.metadata[_METADATA_KEY])
        if known["sd_scripts"] is None:
            known["sd_scripts"] = each.name
        found.append(Setting(each.name, group, plain, optional, each.default, **known))
    return tuple(found)


@cache
def _plain_type(hint: Any) -> tuple[type, bool]:
    """Split `int | None` into (int, True)."""
    if get_origin(hint) in (types.UnionType, typing.Union):
        plain = [each for each in get_args(hint) if each is not type(None)]
        return plain[0], len(plain) < len(get_args(hint))
    return hint, False


def parse_value(declared: Setting, value: Any) -> tuple[Any, str | None]:
    """The value in the setting's own type, and a problem in words where it does not fit.

    Text is read as a shell or a form gives it ("1e-4", "true", "none"); other values must have the right type.
    """
    problem = f"{declared.name} = {value!r}: allowed is {declared.allowed()}"
    if value is None or (isinstance(value, str) and declared.type is not str and value.strip().lower() in _NONE):
        return (None, None) if declared.optional else (None, problem)
    if isinstance(value, str) and declared.optional and value.strip().lower() in _NONE:
        return None, None
    parsed = _convert(declared.type, value)
    if parsed is None or not _in_range(declared, parsed):
        return None, problem
    if declared.choices:
        return next((c for c in declared.choices if c == parsed), None), None if parsed in declared.choices else problem
    return parsed, None


def _convert(wanted: type, value: Any) -> Any:
    """The value as `wanted`, or None where it cannot be read as such."""
    if wanted is bool:
        word = str(value).strip().lower()
        return True if word in _TRUE else False if word in _FALSE else None
    if wanted is str:
        is_text = isinstance(value, str | int | float) and not isinstance(value, bool)
        return str(value) if is_text and _can_be_written(str(value)) else None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        number = float(value)
        if wanted is float:
            return number
        return int(value) if isinstance(value, str) and value.strip().lstrip("+-").isdigit() else _whole(number)
    except (ValueError, OverflowError):
        return None


def _can_be_written(text: str) -> bool:
    """Whether files and paths can hold a text: not with zero bytes, nor with halves of UTF-16 pairs."""
    return "\0" not in text and not any("\ud800" <= sign <= "\udfff" for sign in text)


def _whole(number: float) -> int | None:
    return int(number) if number == int(number) else None


def _in_range(declared: Setting, value: Any) -> bool:
    if declared.type not in (int, float):
        return True
    if value != value or value in (float("inf"), float("-inf")):
        return False
    if declared.minimum is not None and value < declared.minimum:
        return False
    if declared.maximum is not None and value > declared.maximum:
        return False
    return declared.multiple_of is None or value % declared.multiple_of == 0


def unknown_setting(name: str, known: Mapping[str, Any], command: str = "train") -> str:
    """The message for a name that is no setting of a command, with the nearest names that are."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    hint = f"; did you mean {' or '.join(near)}?" if near else f"; `{command} --help` lists all of them"
    return f"{name}: there is no setting of this name{hint}"
