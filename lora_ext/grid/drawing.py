"""Pictures side by side on a white sheet, with a heading and labelled columns and rows."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias

from PIL import Image, ImageDraw, ImageFont

_SMALLEST_CELL = 168  # pixels; smaller pictures are enlarged by a whole factor
_GAP = 8
_MARGIN = 20
_INK, _FAINT, _PAPER = (31, 35, 43), (110, 117, 130), (255, 255, 255)

Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont


def draw_grid(
    pictures: Sequence[Sequence[Image.Image]],
    columns: Sequence[str],
    rows: Sequence[str],
    heading: str = "",
    remark: str = "",
) -> Image.Image:
    """A sheet of `pictures[row][column]`, all of one size, enlarged where they are too small to be seen."""
    cell_width, cell_height = cell_size(pictures[0][0].size)
    font, bold = label_font(16), label_font(17)
    left = _MARGIN + max((_text_size(row, font)[0] for row in rows), default=0) + _MARGIN // 2
    width = left + len(columns) * (cell_width + _GAP) - _GAP + _MARGIN
    lines = _wrap(heading, bold, width - 2 * _MARGIN) if heading else []
    remarks = _wrap(remark, font, width - 2 * _MARGIN) if remark else []
    header_lines = _labels(columns, font, cell_width)
    line = 23
    top = _MARGIN + (len(lines) + len(remarks)) * line + (line // 2 if lines or remarks else 0)
    first_row = top + max(len(label) for label in header_lines) * line + 4
    height = first_row + len(rows) * (cell_height + _GAP) - _GAP + _MARGIN
    sheet = Image.new("RGB", (width, height), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for index, text in enumerate([*lines, *remarks]):
        own = (bold, _INK) if index < len(lines) else (font, _FAINT)
        pen.text((_MARGIN, _MARGIN + index * line), text, font=own[0], fill=own[1])
    for index, label in enumerate(header_lines):
        centre = left + index * (cell_width + _GAP) + cell_width // 2
        for number, text in enumerate(label):
            pen.text((centre - _text_size(text, font)[0] // 2, top + number * line), text, font=font, fill=_INK)
    for row, label_text in enumerate(rows):
        y = first_row + row * (cell_height + _GAP)
        text_width, text_height = _text_size(label_text, font)
        pen.text((left - _MARGIN // 2 - text_width, y + (cell_height - text_height) // 2 - 2), label_text, _INK, font)
        for column, picture in enumerate(pictures[row]):
            sheet.paste(enlarge(picture, (cell_width, cell_height)), (left + column * (cell_width + _GAP), y))
    return sheet


def cell_size(size: tuple[int, int]) -> tuple[int, int]:
    """(width, height) of a picture on the sheet: a whole multiple of its own."""
    factor = -(-_SMALLEST_CELL // min(size)) if min(size) < _SMALLEST_CELL else 1
    return size[0] * factor, size[1] * factor


def enlarge(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The picture in the given size, its pixels smoothly joined."""
    return picture.convert("RGB") if picture.size == size else picture.convert("RGB").resize(size, Image.LANCZOS)


@lru_cache(maxsize=8)
def label_font(size: int) -> Font:
    """DejaVu Sans from matplotlib's own data (found without importing it), else Pillow's built-in letters."""
    found = importlib.util.find_spec("matplotlib")
    if found is not None and found.origin is not None:
        path = Path(found.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        if path.is_file():
            return ImageFont.truetype(str(path), size)
    return ImageFont.load_default()


def _text_size(text: str, font: Font) -> tuple[int, int]:
    left, top, right, bottom = font.getbbox(text)
    return int(right - left), int(bottom - top)


def _labels(labels: Sequence[str], font: Font, width: int) -> list[list[str]]:
    return [_wrap(label, font, width) for label in labels]


def _wrap(text: str, font: Font, width: int) -> list[str]:
    """Lines that fit into `width` pixels; a word that is too long for one is cut with an ellipsis."""
    lines: list[str] = []
    for word in text.split():
        if lines and _text_size(f"{lines[-1]} {word}", font)[0] <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(_fit(word, font, width))
    return lines


def _fit(word: str, font: Font, width: int) -> str:
    if _text_size(word, font)[0] <= width:
        return word
    while word and _text_size(f"{word}…", font)[0] > width:
        word = word[:-1]
    return f"{word}…"
