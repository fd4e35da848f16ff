"""What a comparison of one case came to, and how it is told."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Side:
    """One program's run of one operation, in a process of its own, without its start and imports.

    Wall time in seconds; anonymous memory in MB (1e6 bytes), the largest during the operation beyond what the process
    had taken with its imports; seconds of the processor, all threads together, which other work on the machine
    disturbs less.
    """

    seconds: float
    anonymous_mb: float
    processor: float = math.nan


@dataclass(frozen=True)
class Figure:
    """One case of one tool: both sides, how far their results are apart, and which limits are missed.

    `facts` are figures by what they are, such as {"ΔW, largest relative difference": 3e-6}; `missed` limits in words.
    """

    tool: str
    case: str
    ours: Side
    theirs: Side | None = None
    facts: Mapping[str, float | str] = field(default_factory=dict)
    missed: Sequence[str] = ()


def beyond(facts: Mapping[str, float], limits: Mapping[str, float]) -> list[str]:
    """The facts above their limits, in words; what is no number is above every limit."""
    return [
        f"{name} is {facts[name]:.3g}, at most {most:g}" for name, most in limits.items() if not facts[name] <= most
    ]


def too_slow(ours: Side, theirs: Side, least: float) -> list[str]:
    """In words, where we are not `least` times as fast."""
    found = theirs.seconds / ours.seconds
    return [] if found >= least else [f"{found:.1f} times as fast, at least {least:g}"]


def too_large(ours: Side, theirs: Side, most: float) -> list[str]:
    """In words, where we take more than the share `most` of their memory."""
    found = ours.anonymous_mb / theirs.anonymous_mb
    return [] if found <= most else [f"{found:.2f} of their memory, at most {most:g}"]


def table(figures: Sequence[Figure]) -> str:
    """The figures in columns for a terminal, with their facts below each, and what is missed."""
    rows = [("tool", "case", "ours s", "theirs s", "times", "of the processor", "ours MB", "theirs MB")]
    rows += [_row(figure) for figure in figures]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    for number, figure in reversed(list(enumerate(figures, start=1))):
        told = [f"{name}: {_words(value)}" for name, value in figure.facts.items()]
        told += [f"MISSED: {each}" for each in figure.missed]
        lines[number + 1 : number + 1] = [f"    {each}" for each in told]
    return "\n".join(lines)


def _row(figure: Figure) -> tuple[str, ...]:
    ours, theirs = figure.ours, figure.theirs
    ours_words = (f"{ours.seconds:.2f}", f"{ours.anonymous_mb:,.0f}")
    if theirs is None:
        return (figure.tool, figure.case, ours_words[0], "", "", "", ours_words[1], "")
    times = (f"{theirs.seconds / ours.seconds:.1f}", f"{theirs.processor / ours.processor:.1f}")
    memory = (ours_words[1], f"{theirs.anonymous_mb:,.0f}")
    return (figure.tool, figure.case, ours_words[0], f"{theirs.seconds:.2f}", *times, *memory)


def _words(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.3g}"
