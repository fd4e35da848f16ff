"""Ranks by rule, on singular values whose answer can be counted."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lora_ext.merge.ranks import RankRule, chosen_rank, is_decided, parse_rank_rule
from lora_ext.merge.resized_ranks import Ranks
from lora_ext.protocols import UserError

VALUES = torch.tensor([8.0, 4.0, 2.0, 1.0, 1.0], dtype=torch.float64)
"""Their sum is 16, that of their squares 86."""


@pytest.mark.parametrize(
    ("text", "as_stated"),
    [
        ("sv_ratio=3", 2),  # more than 2.67: 8 and 4
        ("sv_ratio=4", 2),  # more than 2, not 2 itself
        ("sv_ratio=100", 5),
        ("sv_cumulative=0.5", 1),  # 8 of 16 reach it
        ("sv_cumulative=0.51", 2),
        ("sv_cumulative=0.875", 3),
        ("sv_cumulative=0.9", 4),
        ("sv_fro=0.86", 1),  # 64 of 86 are 0.863²
        ("sv_fro=0.87", 2),
        ("sv_fro=0.98", 3),  # 84 of 86 are 0.988²
    ],
)
def test_rules_as_stated_and_with_sd_scripts_one_more(text: str, as_stated: int) -> None:
    assert chosen_rank(VALUES, parse_rank_rule(text, one_more=False), None, 100) == as_stated
    assert chosen_rank(VALUES, parse_rank_rule(text), None, 100) == min(as_stated + 1, 5)


def test_a_rule_never_keeps_all_of_a_matrix_before_the_one_more() -> None:
    """sd-scripts' bounds, 1 and the matrix's length less one, stand before its + 1."""
    rule = RankRule("sv_ratio", 1000.0, one_more=False)
    assert chosen_rank(VALUES, rule, None, 5) == 4
    assert chosen_rank(VALUES, RankRule("sv_ratio", 1000.0), None, 5) == 5
    assert chosen_rank(torch.tensor([3.0]), rule, None, 1) == 1


def test_limits() -> None:
    assert chosen_rank(VALUES, None, 3, 100) == 3
    assert chosen_rank(VALUES, None, 64, 100) == 5
    assert chosen_rank(VALUES, parse_rank_rule("sv_ratio=100"), 2, 100) == 2


@pytest.mark.parametrize("rule", [None, RankRule("sv_ratio", 2.0), RankRule("sv_cumulative", 0.9)])
def test_zeros_keep_rank_1(rule: RankRule | None) -> None:
    assert chosen_rank(torch.zeros(4), rule, 3, 10) == 1


@pytest.mark.parametrize(
    "text", ["", "sv_fro", "sv_fro=", "sv_fro=1.5", "sv_fro=0", "sv_fro=nan", "sv_ratio=0.5", "sv_ratio=inf", "rank=3"]
)
def test_what_is_no_rule_is_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(UserError, match=r"allowed is one of sv_ratio=X.*sv_cumulative=X.*sv_fro=X"):
        parse_rank_rule(text)


def test_a_rule_at_its_limit_is_not_decided_either() -> None:
    """4 / 2 is so near the second value that it may be one less than the limit."""
    values = torch.tensor([4.0, 2.0000001, 0.1, 0.01], dtype=torch.float64)
    off, rule = torch.full((4,), 1e-6, dtype=torch.float64), parse_rank_rule("sv_ratio=2")
    assert not Ranks(rule, 3, 3).suffices((10, 10), values, off)
    assert Ranks(rule, 2, 2).suffices((10, 10), values, off)
    assert not Ranks(rule, None, None).suffices((10, 10), values, off)


@given(
    values=st.lists(st.floats(0.01, 10), min_size=3, max_size=12), share=st.floats(0, 0.02),
    seed=st.integers(0, 1000), text=st.sampled_from(["sv_ratio=5", "sv_cumulative=0.8", "sv_fro=0.9"]),
)  # fmt: skip
def test_a_decided_rank_is_the_same_however_far_the_values_are_off(
    values: list[float], share: float, seed: int, text: str
) -> None:
    rule, given_values = parse_rank_rule(text), torch.tensor(sorted(values, reverse=True), dtype=torch.float64)
    off = share * given_values
    if not is_decided(given_values, off, rule):
        return
    signs = torch.rand(len(values), generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1
    moved = (given_values + signs * off).sort(descending=True).values
    assert chosen_rank(moved, rule, None, 100) == chosen_rank(given_values, rule, None, 100)


@pytest.mark.parametrize(
    ("text", "is_near"), [("sv_ratio=4.01", True), ("sv_ratio=3", False), ("sv_cumulative=0.876", True),
                          ("sv_cumulative=0.8", False), ("sv_fro=0.9884", True), ("sv_fro=0.95", False)],
)  # fmt: skip
def test_what_is_near_a_rules_border_is_not_decided(text: str, is_near: bool) -> None:
    """8 / 4 is one of the values, the first three make up 14 of 16, and 84 of 86."""
    assert is_decided(VALUES, torch.full_like(VALUES, 0.01), parse_rank_rule(text)) != is_near
    assert is_decided(VALUES, torch.zeros_like(VALUES), parse_rank_rule(text))
