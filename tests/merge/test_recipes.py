"""Recipes: what they mean, and scores that can be worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from lora_ext.merge.recipes import Recipe, Reference, Scored, parse_recipes, scores_of, threshold_of
from lora_ext.protocols import UserError

VALUES = torch.tensor([100.0, 10.0, 1.0], dtype=torch.float64)


def recipe(text: str) -> Recipe:
    [parsed] = parse_recipes(text)
    return parsed


def scores(text: str, reference: Reference | None = None, shape: tuple[int, int] = (40, 60)) -> list[float]:
    return [round(float(each), 6) for each in scores_of(recipe(text), VALUES, shape, reference or Reference())]


def test_a_recipe_is_read() -> None:
    first, second = parse_recipes(" fro_ckpt=3, params ,thr=-3.5 : spn_lora , size=32,rescale=0.8")
    assert first.weights == {"fro_ckpt": 0.75, "params": 0.25}
    assert (first.threshold, first.size, first.rescale, first.needs_checkpoint) == (-3.5, None, 1.0, True)
    assert second.weights == {"spn_lora": 1.0}
    assert (second.threshold, second.size, second.rescale, second.needs_checkpoint) == (None, 32.0, 0.8, False)
    assert second.slug == "spn_lora_size32_rescale0.8"
    assert parse_recipes("  ") == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("thr=-3", "at least one of"),
        ("fro_ckpt=1", "either thr or size"),
        ("fro_ckpt=1,thr=-3,size=3", "either thr or size"),
        ("fro_ckpt=1,thr=", "thr= is no number"),
        ("fro_ckpt=x,thr=-3", "fro_ckpt=x is no number"),
        ("fro_ckpt=nan,thr=-3", "is no number"),
        ("fro_chpt=1,thr=-3", "'fro_chpt' is none of"),
        ("fro_ckpt=0,thr=-3", "at least one of"),
        ("fro_ckpt,fro_ckpt=2,thr=-3", "given twice"),
        ("fro_ckpt,size=0", "above 0"),
        ("fro_ckpt,thr=-3,rescale=-1", "above 0"),
        ("fro_ckpt,thr=-3:", "'' is none of"),
    ],
)
def test_what_is_no_recipe_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        parse_recipes(text)


def test_scores_are_powers_of_ten_of_what_is_compared() -> None:
    assert scores("spn_lora,thr=0") == [0.0, -1.0, -2.0]
    assert scores("spn_lora,thr=0,rescale=10") == [1.0, 0.0, -1.0]
    assert scores("params,thr=0") == [0.0, -1.0, -2.0]  # m + n = 100
    assert scores("fro_ckpt,thr=0", Reference(frobenius=1000.0)) == [-1.0, -2.0, -3.0]
    assert scores("spn_ckpt,thr=0", Reference(spectral=10.0)) == [1.0, 0.0, -1.0]
    along = Reference(subspace=torch.tensor([10.0, 1.0, 0.1]))
    assert scores("subspace,thr=0", along) == [1.0, 1.0, 1.0]
    assert scores("fro_lora,thr=0")[0] == pytest.approx(-math.log10(math.sqrt(10101) / 100), abs=1e-6)
    assert scores("spn_lora=1,fro_ckpt=1,thr=0", Reference(frobenius=1e4)) == [-1.0, -2.0, -3.0]


def test_a_size_is_filled_with_the_best_scores_of_all_modules() -> None:
    """A value of the first module takes 1 MiB, one of the second half of that."""
    modules = [
        Scored(torch.tensor([0.0, -2.0, -4.0], dtype=torch.float64), 2**20),
        Scored(torch.tensor([-1.0, -3.0], dtype=torch.float64), 2**19),
    ]
    assert threshold_of(recipe("spn_lora,size=1"), modules) == 0.0
    assert threshold_of(recipe("spn_lora,size=1.5"), modules) == -1.0
    assert threshold_of(recipe("spn_lora,size=1.6"), modules) == -2.0  # over the size by the last one
    assert threshold_of(recipe("spn_lora,size=100"), modules) == -math.inf
    assert threshold_of(recipe("spn_lora,thr=-2.5"), modules) == -2.5
