"""A network against a checkpoint: what of it finds its place there, and how large its changes are to the weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from lora_ext.checkpoint.file_weights import CheckpointFile
from lora_ext.merge.findings import Finding, modules_words, some_of
from lora_ext.merge.inputs import base_of
from lora_ext.networks.block_weights import block_name
from lora_ext.networks.matching import Match, match
from lora_ext.networks.weight_delta import LowRankFactors, ModuleDelta, exact_matmul
from lora_ext.protocols import UserError

_OTHERS = "others"
_LARGE = 2.0
_STANDS_OUT, _NOTABLE = 20.0, 0.5
_ENOUGH = 5


@dataclass(frozen=True)
class Strengths:
    """‖ΔW‖ / ‖W‖ of modules, and of all modules of a block together; without those that have none."""

    modules: Mapping[str, float]
    blocks: Mapping[str, float]


def matched_modules(
    deltas: Mapping[str, ModuleDelta], metadata: Mapping[str, str], checkpoint: CheckpointFile
) -> tuple[Match | None, list[Finding]]:
    """Where the modules are in the checkpoint, None where it is of another kind; and what there is to say of that."""
    base = base_of(deltas, metadata)
    is_told = base not in ("", checkpoint.architecture)  # a network may have only what both kinds have names for
    said = f"the network is for {base} checkpoints" if is_told else "the network is for another kind of checkpoint"
    wrong = f"{said}, and {checkpoint.name} is of the kind {checkpoint.architecture}: use it with its own kind"
    try:
        matched = match(deltas, checkpoint.weights, checkpoint)
    except UserError as error:
        return None, [Finding("doubtful", "wrong base", f"{wrong} ({error})")]
    unmatched = tuple(matched.unmatched)
    if not unmatched:
        return matched, []
    if not matched.views:
        return None, [Finding("doubtful", "wrong base", f"{wrong} (no module fits: {some_of(unmatched)})", unmatched)]
    text = f"{checkpoint.name} does not have {modules_words(len(unmatched))} of {len(deltas)} ({some_of(unmatched)}): "
    text += "they do nothing there; it may be a network for another kind of checkpoint, or of another program"
    return matched, [Finding("doubtful", "unmatched", text, unmatched)]


@torch.no_grad()
def strengths(
    deltas: Mapping[str, ModuleDelta],
    matched: Match,
    checkpoint: CheckpointFile,
    step: Callable[[int, int], None] = lambda done, total: None,
) -> Strengths:
    """‖ΔW‖ / ‖W‖ in Frobenius norms; one weight of the checkpoint is in memory at a time."""
    keys = {key for key, parameter in matched.views if parameter == "weight"}
    squares: dict[str, tuple[float, float]] = {}
    for done, (key, weight) in enumerate(checkpoint.values(keys)):
        step(done, len(keys))
        view = matched.views[key, "weight"]
        base = weight if weight.shape == view.shape else view.of(weight)
        squares[key] = delta_norm(deltas[key], base) ** 2, float(base.float().norm()) ** 2
    blocks: dict[str, tuple[float, float]] = {}
    for key, (change, size) in sorted(squares.items()):
        block = block_name(key, checkpoint.architecture) or _OTHERS
        before = blocks.get(block, (0.0, 0.0))
        blocks[block] = before[0] + change, before[1] + size
    return Strengths(_ratios(squares), dict(sorted(_ratios(blocks).items(), key=lambda item: block_order(item[0]))))


def block_order(block: str) -> tuple[int, str]:
    """Sorts the blocks as the network has them: text encoders, in, middle, out, and what is in none."""
    order = ("BASE", "IN", "MID", "OUT", _OTHERS)
    return next(number for number, start in enumerate(order) if block.startswith(start)), block


def _ratios(squares: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    return {name: math.sqrt(change / size) for name, (change, size) in squares.items() if size and math.isfinite(size)}


def delta_norm(delta: ModuleDelta, base: Tensor) -> float:
    """‖ΔW‖ in the Frobenius norm at multiplier 1; of low-rank changes without making them."""
    factors = delta.low_rank
    return float(delta.delta(base).norm()) if factors is None else factors_norm(factors)


def factors_norm(factors: LowRankFactors) -> float:
    """‖scale · up · down‖: the root of ⟨upᵀup, down downᵀ⟩, both (rank, rank)."""
    up, down = factors.up.double(), factors.down.double()
    with exact_matmul():
        square = float(((up.T @ up) * (down @ down.T)).sum())
    return abs(factors.scale) * math.sqrt(max(square, 0.0))


def strength_findings(found: Strengths) -> list[Finding]:
    """Modules whose change is too large beside their weight, or far from that of the others."""
    usual = median(found.modules.values()) if len(found.modules) >= _ENOUGH else math.inf
    odd = {
        key: ratio
        for key, ratio in found.modules.items()
        if ratio > _LARGE or (ratio > _NOTABLE and ratio > _STANDS_OUT * usual)
    }
    if not odd:
        return []
    key = max(odd, key=lambda each: odd[each])
    text = f"changes larger than is usual in {modules_words(len(odd))} ({key}: {odd[key]:.0%} of the weight's"
    text += " length): such pictures are mostly burnt; use a smaller weight or an earlier epoch, or get the file again"
    return [Finding("doubtful", "strength", text, tuple(sorted(odd)))]
