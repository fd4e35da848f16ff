"""How many singular values of a module are kept: a fixed number, or by one of sd-scripts' three rules."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lora_ext.protocols import UserError

RULES = {
    "sv_ratio": "all of more than the largest divided by it, such as 20",
    "sv_cumulative": "the first that make up this share of their sum, such as 0.9",
    "sv_fro": "the first that make up this share of ‖ΔW‖, such as 0.9",
}
"""sd-scripts' `--dynamic_method`, and what the number after it says."""

_ZERO = 1e-6
"""A largest singular value of no more is a matrix of zeros, as in sd-scripts."""


@dataclass(frozen=True)
class RankRule:
    """One of `RULES` and its number. With `one_more` there is one rank more than it says, as in sd-scripts."""

    method: str
    parameter: float
    one_more: bool = True


def parse_rank_rule(text: str, one_more: bool = True) -> RankRule:
    """The rule of a text such as "sv_ratio=20"; UserError where it is none."""
    method, _, number = (part.strip() for part in text.partition("="))
    allowed = "; ".join(f"{name}=X: {meaning}" for name, meaning in RULES.items())
    try:
        parameter = float(number)
    except ValueError:
        parameter = float("nan")
    in_range = 1 <= parameter < float("inf") if method == "sv_ratio" else 0 < parameter <= 1
    if method not in RULES or not in_range:
        raise UserError(
            f"dynamic = {text!r}: allowed is one of {allowed}. The ratio is at least 1, shares are from 0 to 1"
        )
    return RankRule(method, parameter, one_more)


def rank_by_rule(values: Tensor, rule: RankRule, length: int) -> int:
    """The rank that a rule chooses for singular values (k,), the largest first, of a matrix with `length` of them.

    Those that are not given, `length - k`, are zero. A matrix of zeros gets rank 1.
    """
    if float(values[0]) <= _ZERO:
        return 1
    if rule.method == "sv_ratio":
        chosen = int((values > values[0] / rule.parameter).sum())
    elif rule.method == "sv_cumulative":
        chosen = _first_reaching(values, rule.parameter)
    else:
        chosen = _first_reaching(values.square(), rule.parameter**2)
    return max(1, min(chosen, length - 1)) + rule.one_more


def chosen_rank(values: Tensor, rule: RankRule | None, limit: int | None, length: int) -> int:
    """The rank that is kept: by the rule if there is one, never above the limit or the number of values.

    Where all values are zero it is 1, so that the module stays.
    """
    most = len(values) if limit is None else min(limit, len(values))
    if float(values[0]) <= _ZERO:
        return 1
    return most if rule is None else min(rank_by_rule(values, rule, length), most)


def is_decided(values: Tensor, off: Tensor, rule: RankRule) -> bool:
    """Whether a rule chooses the same rank though each of the values (k,) may be off by as much."""
    if rule.method == "sv_ratio":
        threshold = values[0] / rule.parameter
        return bool(((values - threshold).abs() > off + off[0] / rule.parameter).all())
    is_sum = rule.method == "sv_cumulative"
    shares, wanted = (values, rule.parameter) if is_sum else (values.square(), rule.parameter**2)
    margin = 2 * (off if is_sum else (2 * values + off) * off).sum()
    return bool(((shares.cumsum(0) - wanted * shares.sum()).abs()[:-1] > margin).all())


def _first_reaching(shares: Tensor, wanted: float) -> int:
    """How many of the numbers it takes to reach the wanted share of their sum."""
    reached = shares.cumsum(0) / shares.sum()
    return int(torch.searchsorted(reached, torch.tensor(wanted, dtype=reached.dtype, device=reached.device))) + 1
