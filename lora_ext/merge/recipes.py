"""Recipes for ranks, as elias-gaeros' resize_lora has them: every singular value is scored, the best are kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lora_ext.protocols import UserError

OF_CHECKPOINT = ("spn_ckpt", "fro_ckpt", "subspace")
SCORES = ("spn_lora", "fro_lora", "params", *OF_CHECKPOINT)
"""What singular values are compared with: the spectral or Frobenius norm of the network's ΔW or of the checkpoint's
weight, m + n, and |uᵢᵀ W vᵢ|."""

_NUMBERS = ("thr", "size", "rescale")
_MIB = 2**20


@dataclass(frozen=True)
class Recipe:
    """One recipe: `text` as it was given, the weight of each score, which sum up to 1, and how many values are kept.

    Exactly one of `threshold`, the least score in powers of ten, and `size`, in MiB, is set.
    """

    text: str
    weights: dict[str, float]
    threshold: float | None = None
    size: float | None = None
    rescale: float = 1.0

    @property
    def needs_checkpoint(self) -> bool:
        """Whether weights of a checkpoint are compared with."""
        return any(name in self.weights for name in OF_CHECKPOINT)

    @property
    def slug(self) -> str:
        """A short name of it for file names."""
        return self.text.replace(" ", "").replace("=", "").replace(",", "_")


@dataclass(frozen=True)
class Reference:
    """What is known of the weight that a module changes; (k,) for the subspace, one number for each singular value."""

    frobenius: float = math.nan
    spectral: float = math.nan
    subspace: Tensor = field(default_factory=lambda: torch.full((1,), math.nan))


@dataclass(frozen=True)
class Scored:
    """One module: the scores of its singular values (k,), and the bytes that each of them takes."""

    scores: Tensor
    bytes_each: int


def parse_recipes(text: str) -> list[Recipe]:
    """The recipes in a text, joined by colons; none in an empty one. UserError for what cannot be understood."""
    return [_parse(part.strip()) for part in text.split(":")] if text.strip() else []


def scores_of(recipe: Recipe, values: Tensor, shape: tuple[int, int], reference: Reference) -> Tensor:
    """The scores (k,) of the singular values of ΔW, a matrix of `shape`: log₁₀ σᵢ·rescale - Σ weight·log₁₀ of each."""
    weighed = {
        "spn_lora": values[0],
        "fro_lora": values.norm(),
        "params": float(sum(shape)),
        "spn_ckpt": reference.spectral,
        "fro_ckpt": reference.frobenius,
        "subspace": reference.subspace.to(values),
    }
    scores = (values * recipe.rescale).log10()
    for name, weight in recipe.weights.items():
        scores = scores - weight * torch.as_tensor(weighed[name], dtype=values.dtype).log10()
    return scores


def threshold_of(recipe: Recipe, modules: Sequence[Scored]) -> float:
    """The least score that is kept: the recipe's own, or the one at which all modules together fill its size.

    The value that fills the size goes over it, as in the original; -infinity where all of them fit.
    """
    if recipe.threshold is not None:
        return recipe.threshold
    assert recipe.size is not None
    if not modules:
        return -math.inf
    scores = torch.cat([module.scores for module in modules])
    sizes = torch.cat([torch.full((len(module.scores),), module.bytes_each) for module in modules])
    scores, order = scores.sort(descending=True)
    used = sizes[order].cumsum(0).double()
    if recipe.size * _MIB >= float(used[-1]):
        return -math.inf
    return float(scores[torch.searchsorted(used, torch.tensor(recipe.size * _MIB, dtype=used.dtype))])


def _parse(text: str) -> Recipe:
    weights: dict[str, float] = {}
    numbers: dict[str, float] = {}
    for part in text.split(","):
        name, _, given = (piece.strip() for piece in part.partition("="))
        if name not in SCORES and name not in _NUMBERS:
            raise _refused(text, f"{name!r} is none of {', '.join((*SCORES, *_NUMBERS))}")
        target = weights if name in SCORES else numbers
        if name in target:
            raise _refused(text, f"{name} is given twice")
        target[name] = _number(text, name, given)
    total = sum(weights.values())
    if not weights or total == 0:
        raise _refused(text, f"it needs at least one of {', '.join(SCORES)}, such as fro_ckpt=1")
    if ("thr" in numbers) == ("size" in numbers):
        raise _refused(text, "it needs either thr or size")
    if numbers.get("size", 1.0) <= 0 or numbers.get("rescale", 1.0) <= 0:
        raise _refused(text, "size and rescale are above 0")
    weights = {name: weight / total for name, weight in weights.items() if weight}
    return Recipe(text, weights, numbers.get("thr"), numbers.get("size"), numbers.get("rescale", 1.0))


def _number(text: str, name: str, given: str) -> float:
    if not given and name in SCORES:
        return 1.0
    try:
        number = float(given)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise _refused(text, f"{name}={given} is no number")
    return number


def _refused(text: str, reason: str) -> UserError:
    return UserError(f"recipe = {text!r}: {reason}; a recipe looks like fro_ckpt=1,thr=-3.55")
