"""Lists of values as people write them for a grid: `1-5`, `0.4-1.2 (+0.2)`, `0.2-1.0 [5]`, `a, b`, mixed with commas.

The grammar is that of the WebUI's X/Y/Z plot; ranges include their end, and text that is neither is refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from lora_ext.networks.library import Epoch
from lora_ext.protocols import UserError

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)"
_RANGE = re.compile(rf"({_NUMBER})\s*-\s*({_NUMBER})\s*(?:\(\s*({_NUMBER})\s*\)|\[\s*(\d+)\s*\])?")
_DIGITS = 10  # decimals that are kept: 0.1 + 0.2 is 0.3 here
_MOST_VALUES = 1000
_ALLOWED = "allowed are numbers, ranges like 1-5, 0.4-1.2 (+0.2) or 0.2-1.0 [5], and lists of them with commas"


def parse_values(text: str, what: str = "values") -> list[int | float | str]:
    """Every value the text stands for, in its order; words that are no number stay as they are.

    `what` names the field in the message. Raises UserError for a range that cannot be counted through.
    """
    found: list[int | float | str] = []
    for item in (part.strip() for part in text.split(",")):
        if item:
            found += _expand(item, text, what)
        if len(found) > _MOST_VALUES:
            raise UserError(f"{what} = {text!r}: more than {_MOST_VALUES} values; use a larger step")
    return found


def parse_numbers(text: str, what: str = "weights") -> list[float]:
    """Like `parse_values` where only numbers make sense; raises UserError for words and for an empty text."""
    values = parse_values(text, what)
    words = [value for value in values if isinstance(value, str)]
    if words or not values:
        raise UserError(f"{what} = {text!r}: {_quoted(words) or 'nothing'} is not a number; {_ALLOWED}")
    return [float(value) for value in values if not isinstance(value, str)]


def parse_epochs(text: str, what: str = "epochs") -> list[Epoch] | None:
    """Whole numbers from 1 on and the word `last`; None, which is every epoch, for an empty text or `all`."""
    if text.strip().lower() in ("", "all"):
        return None
    epochs: list[Epoch] = []
    wrong: list[object] = []
    for value in parse_values(text, what):
        if isinstance(value, str) and value.lower() == "last":
            epochs.append("last")
        elif not isinstance(value, str) and value == int(value) and value >= 1:
            epochs.append(int(value))
        else:
            wrong.append(value)
    if wrong or not epochs:
        raise UserError(
            f"{what} = {text!r}: {_quoted(wrong) or 'nothing'} is no epoch; allowed are whole numbers from 1 on, "
            "ranges like 1-5 or 2-10 (+2), last, and all"
        )
    return epochs


def format_number(value: float) -> str:
    """The number as a person would write it: 1.0 is "1", 0.6000000000000001 is "0.6"."""
    return f"{round(value, _DIGITS) + 0.0:.10f}".rstrip("0").rstrip(".") or "0"


def _expand(item: str, text: str, what: str) -> Sequence[int | float | str]:
    matched = _RANGE.fullmatch(item)
    if matched:
        start, end, step, count = matched.groups()
        if count is not None:
            return _spaced(start, end, int(count), text, what)
        return _stepped(start, end, step, text, what)
    return [_number_or_word(item, text, what)]


def _number_or_word(item: str, text: str, what: str) -> int | float | str:
    if re.fullmatch(r"[+-]?\d+", item):
        return int(item)
    try:
        number = float(item)
    except ValueError:
        if re.match(rf"{_NUMBER}\s*-", item):  # begins like a range and is none
            raise UserError(f"{what} = {text!r}: {item!r} is not a range; {_ALLOWED}") from None
        return item
    if number != number or number in (float("inf"), float("-inf")):
        return item
    return number


def _stepped(start: str, end: str, step: str | None, text: str, what: str) -> list[int | float]:
    """start, start + step … up to and with end; whole numbers count by 1 (downwards too) where no step is given."""
    first, last = float(start), float(end)
    whole = all(_is_whole(part) for part in (start, end, step or "1"))
    if step is None and not whole:
        raise UserError(f"{what} = {text!r}: {start}-{end} needs a step or a count: {start}-{end} (+0.1) or [5]")
    stride = float(step) if step is not None else (1.0 if last >= first else -1.0)
    if stride == 0 or (last - first) * stride < 0:
        raise UserError(f"{what} = {text!r}: a step of {format_number(stride)} never comes from {start} to {end}")
    count = int((last - first) / stride + 1e-9) + 1
    if count > _MOST_VALUES:
        raise UserError(f"{what} = {text!r}: more than {_MOST_VALUES} values; use a larger step")
    return [_tidy(first + index * stride, whole) for index in range(count)]


def _spaced(start: str, end: str, count: int, text: str, what: str) -> list[int | float]:
    """`count` values at equal distances, both ends included; only the first for a count of 1."""
    if not 1 <= count <= _MOST_VALUES:
        raise UserError(f"{what} = {text!r}: [{count}] values; allowed are 1 to {_MOST_VALUES}")
    first, last = float(start), float(end)
    values = [first + (last - first) * index / max(count - 1, 1) for index in range(count)]
    whole = _is_whole(start) and _is_whole(end) and all(abs(value - round(value)) < 1e-9 for value in values)
    return [_tidy(value, whole) for value in values]


def _tidy(value: float, whole: bool) -> int | float:
    return round(value) if whole else round(value, _DIGITS)


def _is_whole(part: str) -> bool:
    return "." not in part


def _quoted(values: Sequence[object]) -> str:
    return ", ".join(repr(value) for value in values)
