"""Which singular values of a network's modules are kept, and by what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from lora_ext.merge.factored import cut_is_exact
from lora_ext.merge.module_spectra import ModuleSpectrum
from lora_ext.merge.ranks import RankRule, chosen_rank, is_decided, rank_by_rule
from lora_ext.merge.recipes import Recipe, Reference, Scored, scores_of, threshold_of
from lora_ext.networks.weight_delta.decomposed import SUFFIX as DORA
from lora_ext.protocols import UserError

_ZERO = 1e-6
"""A module whose largest singular value is less is empty to a recipe."""


@dataclass(frozen=True)
class Ranks:
    """A rule, or none where the limits are the ranks; `conv_limit` is for weights of four axes. None is no limit."""

    rule: RankRule | None
    limit: int | None
    conv_limit: int | None

    def limit_of(self, shape: Sequence[int]) -> int | None:
        """The highest rank for a weight of this shape."""
        return self.conv_limit if len(shape) == 4 else self.limit

    def suffices(self, shape: Sequence[int], values: Tensor, off: Tensor) -> bool:
        """Whether singular values that may be `off` by as much do for choosing a weight's rank, and for making it."""
        limit = self.limit_of(shape)
        length = min(shape[0], prod(shape[1:]))
        rank = chosen_rank(values, self.rule, limit, length)
        may_differ = self.rule is not None and (limit is None or rank_by_rule(values, self.rule, length) <= limit)
        if self.rule is not None and may_differ and not is_decided(values, off, self.rule):
            return False
        return cut_is_exact(values, off, rank)


@dataclass(frozen=True)
class Selection:
    """The places (rank,) of the singular values that are kept, by module key; modules that are left out are not there.

    `what` was done is in sd-scripts' words where it has some, as they are written into the file.
    """

    places: dict[str, Tensor]
    what: str
    rescale: float = 1.0
    threshold: float | None = None


def selected_by_rank(modules: Sequence[ModuleSpectrum], ranks: Ranks) -> Selection:
    """The first singular values of each module: as many as its limit, or as a rule chooses."""
    places = {}
    for module in modules:
        length = min(module.matrix_shape)
        rank = chosen_rank(module.values, ranks.rule, ranks.limit_of(module.shape), length)
        places[module.key] = torch.arange(rank)
    rule, before = ranks.rule, _largest_rank(modules)
    if rule is not None:
        return Selection(places, f"Dynamic resize with {rule.method}: {rule.parameter:g} from {before}")
    convolutions = "" if ranks.conv_limit == ranks.limit else f" (conv: {ranks.conv_limit})"
    return Selection(places, f"dimension is resized from {before} to {ranks.limit}{convolutions}")


def selected_by_recipe(
    modules: Sequence[ModuleSpectrum], recipe: Recipe, references: Mapping[str, Reference], element_size: int
) -> Selection:
    """The singular values of all modules with a score of at least the recipe's threshold.

    Modules without any are left out; of those whose lengths or biases change as well (DoRA) the first value stays.
    `element_size` is the bytes of a number in the file. UserError where a DoRA is to be multiplied.
    """
    scored: dict[str, Scored] = {}
    for module in modules:
        values = module.scaled_values
        if recipe.rescale != 1 and DORA in module.extra:
            raise UserError(
                f"recipe = {recipe.text!r}: {module.key} is a DoRA, which cannot be multiplied; leave rescale out"
            )
        if float(values[0]) >= _ZERO:
            scores = scores_of(recipe, values, module.matrix_shape, references.get(module.key, Reference()))
            scored[module.key] = Scored(scores, element_size * sum(module.matrix_shape))
    threshold = threshold_of(recipe, list(scored.values()))
    places: dict[str, Tensor] = {}
    for module in modules:
        if module.key in scored:
            chosen = torch.nonzero(scored[module.key].scores >= threshold).flatten()
            if len(chosen):
                places[module.key] = chosen
        if module.extra:
            places.setdefault(module.key, torch.arange(1))
    what = f"Resized with the recipe {recipe.text} from {_largest_rank(modules)}"
    if recipe.size is not None:
        what += f", threshold {threshold:.4g}"
    return Selection(places, what, recipe.rescale, threshold)


def _largest_rank(modules: Sequence[ModuleSpectrum]) -> int:
    return max((module.rank or min(module.matrix_shape) for module in modules), default=0)
