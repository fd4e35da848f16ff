"""The WebUI's emphasis grammar: `(more)`, `((more))`, `(exactly:1.3)`, `[less]`, `\\(` for a literal bracket, BREAK."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

BRACKET_FACTOR = 1.1
BREAK: tuple[str, float] = ("BREAK", -1.0)
"""Stands among the pieces where a new chunk of 75 tokens begins."""

_PIECES = re.compile(
    r"(?P<escaped>\\[()\[\]\\]?)"
    r"|(?P<weight>:\s*(?P<number>[+-]?(?:\d+\.?\d*|\.\d+))\s*\))"
    r"|(?P<bracket>[()\[\]])"
    r"|(?P<text>[^\\()\[\]:]+|:)"
)
_BREAK = re.compile(r"\s*\bBREAK\b\s*")


@dataclass
class _Piece:
    """Text with the product of the weights around it; `is_break` ones are never weighted."""

    text: str
    weight: float = 1.0
    is_break: bool = False


def _split_breaks(text: str) -> Iterator[_Piece]:
    for index, part in enumerate(_BREAK.split(text)):
        if index:
            yield _Piece(*BREAK, is_break=True)
        yield _Piece(part)


def _weigh(pieces: list[_Piece], start: int, factor: float) -> None:
    for piece in pieces[start:]:
        if not piece.is_break:
            piece.weight *= factor


def _merge(pieces: list[_Piece]) -> list[tuple[str, float]]:
    """Neighbours of one weight joined, then empty ones dropped."""
    merged: list[tuple[str, float]] = []
    for piece in pieces:
        if piece.is_break:
            merged.append(BREAK)
        elif merged and merged[-1] != BREAK and merged[-1][1] == piece.weight:
            merged[-1] = (merged[-1][0] + piece.text, piece.weight)
        else:
            merged.append((piece.text, piece.weight))
    return [each for each in merged if each[0]] or [("", 1.0)]


def parse_emphasis(prompt: str, breaks: bool = True) -> list[tuple[str, float]]:
    """Split a prompt into (text, weight), `BREAK` standing between chunks.

    Round brackets multiply by 1.1 or by their number, square ones divide by 1.1; they nest; brackets left open end
    with the prompt, and closing ones without an opening are text. A backslash before anything else vanishes. BREAK
    inside brackets is still a break; without `breaks` it is text.
    """
    pieces: list[_Piece] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}
    for match in _PIECES.finditer(prompt):
        token = match.group()
        if match["escaped"]:
            pieces.append(_Piece(token[1:]))
        elif token in opened:
            opened[token].append(len(pieces))
        elif match["weight"] and opened["("]:
            _weigh(pieces, opened["("].pop(), float(match["number"]))
        elif token == ")" and opened["("]:
            _weigh(pieces, opened["("].pop(), BRACKET_FACTOR)
        elif token == "]" and opened["["]:
            _weigh(pieces, opened["["].pop(), 1 / BRACKET_FACTOR)
        else:
            pieces.extend(_split_breaks(token) if breaks else [_Piece(token)])
    for start in opened["("]:
        _weigh(pieces, start, BRACKET_FACTOR)
    for start in opened["["]:
        _weigh(pieces, start, 1 / BRACKET_FACTOR)
    return _merge(pieces)
