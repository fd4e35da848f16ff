"""Ranks by rule, on singular values whose answer can be counted."""

from __future__ import annotations

import pytest
import torch

from lora_ext.merge.ranks import RankRule, chosen_rank, parse_rank_rule
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
