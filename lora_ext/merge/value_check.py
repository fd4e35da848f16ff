"""The numbers in a network's tensors: those that are none, and what half precision has lost or would lose."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lora_ext.merge.findings import Finding, modules_words, some_of
from lora_ext.networks.formats import NetworkModules
from lora_ext.networks.weight_delta.products import unused

Place = tuple[str, str]
"""Module and suffix."""

_LARGEST, _SMALLEST_NORMAL = 65504.0, 2.0**-14
_BECOMES_ZERO = 2.0**-25  # half of the smallest number above 0, rounded to the even one of both
_MANY = 0.25
"""Share of a factor's numbers from which on it is told that fp16 loses them."""

_WHOLE = {"diff", "diff_b", "w_norm", "b_norm", "weight", "bias_values", "rescale", "alpha", "on_input"}
"""What is no factor: where zeros are normal, or few numbers stand."""


@dataclass(frozen=True)
class NumberFacts:
    """Counts of one tensor's numbers: `lost` are those other than 0 that fp16 makes 0, `fine` those that it has below
    its normal range, with fewer digits. `largest` is the largest magnitude among the finite ones.
    """

    dtype: torch.dtype
    count: int
    not_finite: int
    zeros: int
    lost: int
    fine: int
    largest: float

    @property
    def zero_share(self) -> float:
        """Share of the numbers that are 0."""
        return self.zeros / max(1, self.count)

    @property
    def has_underflow(self) -> bool:
        """Whether many of fp16's numbers are 0 because they were too small: then what is left is hardly larger.

        Ranks and kernels that were never trained have zeros too, beside numbers of the usual size.
        """
        left = self.count - self.zeros
        return self.dtype == torch.float16 and self.zero_share >= _MANY and left > 0 and self.fine >= left / 2

    @property
    def lost_share(self) -> float:
        """Share of the numbers other than 0 that are 0 in fp16."""
        return self.lost / max(1, self.count - self.zeros)


def number_facts(tensor: Tensor) -> NumberFacts:
    """The facts of one tensor of real numbers."""
    wide = tensor.float() if tensor.element_size() == 1 or not tensor.is_floating_point() else tensor
    sizes = wide.abs()
    largest = float(sizes.max()) if sizes.numel() else 0.0
    not_finite = 0
    if not torch.isfinite(torch.tensor(largest)):
        finite = torch.isfinite(sizes)
        not_finite = int(sizes.numel() - finite.sum())
        largest = float(sizes[finite].max()) if bool(finite.any()) else 0.0
    zeros = int((sizes == 0).sum())
    lost = 0 if tensor.dtype == torch.float16 else int((sizes <= _BECOMES_ZERO).sum()) - zeros
    fine = int((sizes < _SMALLEST_NORMAL).sum()) - zeros - lost
    return NumberFacts(tensor.dtype, sizes.numel(), not_finite, zeros, lost, fine, largest)


def measured_numbers(network: NetworkModules) -> dict[Place, NumberFacts]:
    """The facts of all tensors that have a meaning, the embeddings' too; complex ones, which have none, left out."""
    found = {}
    for key, tensors in (*network.modules.items(), *network.embeddings.items()):
        for suffix in tensors.keys() - unused(tensors):
            if not tensors[suffix].is_complex():
                found[key, suffix] = number_facts(tensors[suffix])
    return found


def number_findings(numbers: Mapping[Place, NumberFacts]) -> list[Finding]:
    """What there is to say of them."""
    return [*_not_finite(numbers), *_underflow(numbers), *_overflow(numbers)]


def number_words(numbers: Mapping[Place, NumberFacts]) -> dict[str, str]:
    """Shares over the whole file, in words by label."""
    factors = [facts for (_, suffix), facts in numbers.items() if suffix not in _WHOLE]
    count = sum(facts.count for facts in factors)
    if not count:
        return {}
    below = sum(facts.fine for facts in factors)
    words = {
        "zeros": f"{_percent(sum(facts.zeros for facts in factors) / count)} of the numbers",
        "too small for all digits of fp16": f"{_percent(below / count)} of the numbers",
    }
    if any(facts.dtype != torch.float16 for facts in factors):
        words["lost if saved as fp16"] = f"{_percent(sum(facts.lost for facts in factors) / count)} of the numbers"
    return words


def _percent(share: float) -> str:
    return f"{share:.2%}" if not 0 < share < 0.0001 else "less than 0.01%"


def _not_finite(numbers: Mapping[Place, NumberFacts]) -> Iterable[Finding]:
    found = {place: facts for place, facts in numbers.items() if facts.not_finite}
    if found:
        count = sum(facts.not_finite for facts in found.values())
        names = sorted({key for key, _ in found})
        tensors = some_of([f"{key}.{suffix}" for key, suffix in sorted(found)])
        text = f"{count} values are no numbers (NaN or infinity), in {tensors}: pictures turn black or to noise. Get "
        text += f"the file again, or take an earlier epoch; `repair` takes the {modules_words(len(names))} out"
        yield Finding("damaged", "not a number", text, tuple(names))


def _underflow(numbers: Mapping[Place, NumberFacts]) -> Iterable[Finding]:
    factors = {place: facts for place, facts in numbers.items() if place[1] not in _WHOLE}
    half = [p for p, facts in factors.items() if facts.has_underflow]
    if half:
        names = sorted({key for key, _ in half})
        share = max(factors[place].zero_share for place in half)
        text = f"values lost to fp16 in {modules_words(len(names))} ({some_of(names)}): up to {_percent(share)} of a "
        text += "factor are 0, as numbers below 0.00000003 become; save the network in fp32 or bf16 where it was made"
        yield Finding("doubtful", "fp16 underflow", text, tuple(names))
    wide = [place for place, facts in factors.items() if facts.lost_share >= _MANY and facts.lost]
    if wide:
        names = sorted({key for key, _ in wide})
        share = max(factors[place].lost_share for place in wide)
        text = f"saved as fp16, {modules_words(len(names))} ({some_of(names)}) would lose up to {_percent(share)} of a "
        text += "factor's values, which become 0 there: keep the file as it is, or convert it to bf16"
        yield Finding("note", "fp16 would underflow", text, tuple(names))


def _overflow(numbers: Mapping[Place, NumberFacts]) -> Iterable[Finding]:
    found = {place: facts.largest for place, facts in numbers.items() if facts.largest > _LARGEST}
    if found:
        names = sorted({key for key, _ in found})
        text = f"values up to {max(found.values()):.3g} in {modules_words(len(names))} ({some_of(names)}), and fp16 "
        text += "ends at 65504: a program that loads it in fp16 makes black pictures of it; take an earlier epoch"
        yield Finding("doubtful", "fp16 overflow", text, tuple(names))
