"""Singular values of a network's layers, block by block, as inline SVG. Colours come from style.css."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from lora_ext.checkpoint.checkpoint import Architecture
from lora_ext.merge.work import ModuleReport
from lora_ext.networks.block_weights import BASE, block_name

_WIDTH, _HEIGHT = 168, 84
_DECADES = 4
"""How far down a chart goes: to 10⁻⁴ of a layer's largest singular value."""

_MOST_POINTS = 64
_TEXT_ENCODERS = {"lora_te1": "text encoder 1", "lora_te2": "text encoder 2"}
_SDXL_PARTS = ("lora_unet_input_blocks", "lora_unet_middle_block", "lora_unet_output_blocks")


def spectrum_charts(modules: Sequence[ModuleReport]) -> str:
    """A small chart for each block: a curve for each of its layers, σₖ ÷ σ₁ by k on a logarithmic scale.

    A mark shows where the ranks that are kept end; nothing where no report has singular values.
    """
    by_block: dict[str, list[ModuleReport]] = {}
    for each in modules:
        if each.singular_values is not None and each.singular_values.numel() > 0:
            by_block.setdefault(block_label(each.key), []).append(each)
    if not by_block:
        return ""
    charts = "".join(_chart(label, by_block[label]) for label in sorted(by_block, key=_order))
    return (
        f'<div class="lw-spectra">{charts}</div><p class="lw-hint">Each line is a layer: its singular values, the '
        f"largest first, down to 10<sup>-{_DECADES}</sup> of it. The mark is the rank that is kept.</p>"
    )


def block_label(key: str) -> str:
    """The block of a module by its key in files: IN01, MID, OUT03, a text encoder, or "other"."""
    if key.startswith("lora_te"):
        return next((words for start, words in _TEXT_ENCODERS.items() if key.startswith(start)), "text encoder")
    architecture: Architecture = "SDXL" if key.startswith(_SDXL_PARTS) else "SD1"
    return (block_name(key, architecture) if key.startswith("lora_unet") else None) or "other"


def _order(label: str) -> tuple[int, str]:
    starts = ("text encoder", BASE, "IN", "MID", "OUT")
    return next((place for place, start in enumerate(starts) if label.startswith(start)), len(starts)), label


def _chart(label: str, modules: Sequence[ModuleReport]) -> str:
    longest = max(_values(each) for each in modules)
    kept = [each.rank_after for each in modules if each.rank_after is not None]
    mark = _mark(sum(kept) / len(kept), longest) if kept else ""
    lines = "".join(
        f'<path class="lw-spectrum-line" d="{line}"/>' for each in modules if (line := _line(each, longest))
    )
    rules = "".join(
        f'<path class="lw-chart-rule" d="M0 {_y(10.0**-power)}H{_WIDTH}"/>' for power in range(_DECADES + 1)
    )
    words = _words(modules)
    return (
        f'<figure><svg class="lw-spectrum" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{escape(f"singular values of {label}: {words}")}">{rules}{lines}{mark}</svg>'
        f"<figcaption><b>{escape(label)}</b> {escape(words)}</figcaption></figure>"
    )


def _values(module: ModuleReport) -> int:
    return module.singular_values.numel() if module.singular_values is not None else 0


def _line(module: ModuleReport, longest: int) -> str:
    """The curve's path data, ending where it leaves the chart; empty where all values are zero."""
    if module.singular_values is None:
        return ""
    values = module.singular_values.tolist()
    if not values[0] > 0:
        return ""
    every = max(1, len(values) // _MOST_POINTS)
    points = [(number, values[number] / values[0]) for number in range(0, len(values), every)]
    shown = [(number, value) for number, value in points if value >= 10.0**-_DECADES]
    return "M" + "L".join(f"{_x(number, longest)} {_y(value)}" for number, value in shown)


def _mark(rank: float, longest: int) -> str:
    x = _x(rank - 0.5, longest)
    return f'<path class="lw-spectrum-mark" d="M{x} 0V{_HEIGHT}"/>'


def _x(number: float, longest: int) -> float:
    return round(4 + (_WIDTH - 8) * number / max(longest - 1, 1), 1)


def _y(value: float) -> float:
    return round(4 + (_HEIGHT - 8) * min(1.0, -math.log10(max(value, 1e-30)) / _DECADES), 1)


def _words(modules: Sequence[ModuleReport]) -> str:
    """ "rank 128 → 9–32 · 96.1 % kept": ranges over the block's layers, and the mean share that is kept."""
    before = _range([each.rank_before for each in modules])
    after = _range([each.rank_after for each in modules])
    ranks = f"rank {before} → {after}" if before and after else f"rank {after or before}" if after or before else ""
    kept = [each.kept for each in modules if each.kept is not None]
    share = f"{100 * sum(kept) / len(kept):.1f} % kept" if kept else ""
    return " · ".join(filter(None, (ranks, share)))


def _range(ranks: Sequence[int | None]) -> str:
    known = [rank for rank in ranks if rank is not None]
    if not known:
        return ""
    return str(min(known)) if min(known) == max(known) else f"{min(known)}–{max(known)}"
