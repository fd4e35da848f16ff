"""Alphas and ranks: whether a network's modules have what its metadata and its other modules say."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from torch import Tensor

from lora_ext.config.arguments import finite_number
from lora_ext.merge.findings import Finding, Severity, modules_words, some_of
from lora_ext.networks.forms import effective_alpha
from lora_ext.networks.weight_delta import ModuleDelta
from lora_ext.networks.weight_delta.products import unused

_KERNEL = re.compile(r"_(conv[12]?|conv_in|conv_out|op|in_layers_2|out_layers_3|input_blocks_0_0|unet_out_2)$")
"""Modules that may have a kernel of 3×3, by how their keys end."""

_HIGHEST_SCALE = 1000.0
_FAR = 10.0
_CLOSE = 0.01  # half precision keeps alphas to this
_FEW, _ENOUGH = 0.1, 5
_ROTATIONS = ("oft_blocks", "oft_diag")
SPLIT = "split from DyLoRA, rank"
"""In the comment of what sd-scripts makes of a DyLoRA; it has the hash of another part."""

_RESIZED = ("dimension is resized from", "Dynamic resize with", SPLIT)
"""In the comments of sd-scripts' tools that write the new rank of layers, and leave that of convolutions as it was."""


@dataclass(frozen=True)
class _Alpha:
    """Alpha and rank of one module; None where it has no alpha."""

    key: str
    alpha: float | None
    rank: int

    @property
    def scale(self) -> float:
        """What up @ down is multiplied by."""
        return 1.0 if self.alpha is None else self.alpha / self.rank

    @property
    def has_kernel(self) -> bool:
        """Whether its rank and alpha are those of convolutions."""
        return _KERNEL.search(self.key) is not None


@dataclass(frozen=True)
class _Declared:
    """What metadata says of rank and alpha, of layers and of convolutions; None where it says nothing of all."""

    dim: int | None
    alpha: float | None
    conv_dim: int | None = None
    conv_alpha: float | None = None
    rank_stabilised: bool = False

    def rank_of(self, each: _Alpha) -> int | None:
        """The rank that a module should have."""
        return self.conv_dim if each.has_kernel else self.dim

    def folded(self, each: _Alpha) -> float:
        """What rsLoRA's alpha is multiplied by in files; a changed file's metadata may hold the product already."""
        return math.sqrt(each.rank) if self.rank_stabilised else 1.0

    def alpha_of(self, each: _Alpha) -> float | None:
        """The alpha that a module should have."""
        alpha = self.conv_alpha if each.has_kernel else self.alpha
        return None if alpha is None else effective_alpha(alpha, each.rank, self.rank_stabilised)


def alpha_findings(
    modules: Mapping[str, Mapping[str, Tensor]],
    deltas: Mapping[str, ModuleDelta],
    metadata: Mapping[str, str],
    dialect: str = "sd-scripts",
) -> list[Finding]:
    """What there is to say of them; `deltas` are those of the modules whose tensors fit together."""
    found = [_read(key, modules[key], delta) for key, delta in deltas.items() if _has_alpha(modules[key], delta)]
    declared = _declared(metadata)
    findings = [*_impossible(found), *_missing(found, declared, dialect)]
    given = [each for each in found if each.alpha is not None and 0 < each.scale <= _HIGHEST_SCALE]
    compared = [each for each in given if declared.rank_of(each) == each.rank and declared.alpha_of(each) is not None]
    findings += [*_other_ranks(found, declared), *_other_alphas(compared, declared)]
    return findings + _outliers([each for each in given if each not in compared])


def _has_alpha(tensors: Mapping[str, Tensor], delta: ModuleDelta) -> bool:
    is_rotation = any(suffix in tensors for suffix in _ROTATIONS)
    return delta.rank is not None and not is_rotation and not unused(tensors)


def _read(key: str, tensors: Mapping[str, Tensor], delta: ModuleDelta) -> _Alpha:
    assert delta.rank is not None
    return _Alpha(key, float(tensors["alpha"]) if "alpha" in tensors else None, delta.rank)


def _declared(metadata: Mapping[str, str]) -> _Declared:
    try:
        arguments: Any = json.loads(metadata.get("ss_network_args", "{}"))
    except ValueError:
        arguments = {}
    if not isinstance(arguments, dict):
        arguments = {}
    by_block = any("dims" in name or "alphas" in name for name in arguments)
    if by_block or str(arguments.get("preset", "")).endswith(".toml"):
        return _Declared(None, None)
    values = [
        _number(value)
        for value in (
            metadata.get("ss_network_dim"),
            metadata.get("ss_network_alpha"),
            arguments.get("conv_dim"),
            arguments.get("conv_alpha"),
        )
    ]
    dim, alpha, conv_dim, conv_alpha = values
    if any(words in metadata.get("ss_training_comment", "") for words in _RESIZED):
        conv_dim = conv_alpha = None
    return _Declared(
        None if dim is None else int(dim),
        alpha,
        None if conv_dim is None else int(conv_dim),
        conv_alpha,
        str(arguments.get("rs_lora", "")).lower() in ("true", "1"),
    )


def _number(value: Any) -> float | None:
    return finite_number(value) if isinstance(value, str | int | float) else None


def _impossible(found: Iterable[_Alpha]) -> Iterator[Finding]:
    for kind, words in (
        ("alpha zero", "alpha 0, which switches it off"),
        ("alpha negative", "a negative alpha, which turns the effect around"),
        ("alpha huge", f"an alpha of more than {_HIGHEST_SCALE:,.0f} times the rank, which no trainer writes"),
    ):
        odd = [each for each in found if _impossible_kind(each) == kind]
        if odd:
            numbers = sorted({each.alpha for each in odd if each.alpha is not None}, key=abs)
            told = "" if kind == "alpha zero" else f" (up to {numbers[-1]:g})"
            names = tuple(each.key for each in odd)
            text = f"{words}{told} in {modules_words(len(odd))} ({some_of(names)}): get the file again"
            severity: Severity = (
                "doubtful" if kind == "alpha negative" else "damaged"
            )  # a merge may write its sign there
            yield Finding(severity, kind, text, names)


def _impossible_kind(each: _Alpha) -> str | None:
    if each.alpha is None or not math.isfinite(each.alpha):
        return None
    if each.alpha == 0:
        return "alpha zero"
    if abs(each.scale) > _HIGHEST_SCALE:
        return "alpha huge"
    return "alpha negative" if each.alpha < 0 else None


def _missing(found: Sequence[_Alpha], declared: _Declared, dialect: str) -> Iterator[Finding]:
    without = [each for each in found if each.alpha is None]
    if not without or dialect in ("diffusers", "PEFT"):
        return
    names = tuple(each.key for each in without)
    expected = [alpha / each.rank for each in without if (alpha := declared.alpha_of(each)) is not None]
    wrong = [scale for scale in expected if not math.isclose(scale, 1.0, rel_tol=_CLOSE)]
    words = f"no alpha in {modules_words(len(without))} of {len(found)} ({some_of(names)})"
    if wrong:
        text = f"{words}, though the metadata says one: they act {1 / wrong[0]:g} times as strongly as trained; "
        yield Finding("doubtful", "alpha missing", f"{text}get the file again, or use that part of the weight", names)
    elif len(without) < len(found):
        text = f"{words}, though the others have one: the rank is taken for it; get the file again"
        yield Finding("doubtful", "alpha missing", text, names)
    else:
        text = "no module has an alpha, as in files of early programs: the rank is taken for it"
        yield Finding("note", "no alphas", text, names)


def _other_ranks(found: Iterable[_Alpha], declared: _Declared) -> Iterator[Finding]:
    other = [each for each in found if declared.rank_of(each) not in (None, each.rank)]
    if other:
        ranks = ", ".join(str(rank) for rank in sorted({each.rank for each in other})[:5])
        said = " and ".join(str(rank) for rank in sorted({declared.rank_of(each) or 0 for each in other}))
        names = tuple(each.key for each in other)
        text = f"rank {ranks} in {modules_words(len(other))}, and the metadata says {said} ({some_of(names)}): the "
        text += "file was changed and its metadata were not; `metadata --set ss_network_dim=…` puts them right"
        yield Finding("doubtful", "rank", text, names)


def _other_alphas(compared: Iterable[_Alpha], declared: _Declared) -> Iterator[Finding]:
    other = []
    for each in compared:
        alpha, said = each.alpha, declared.alpha_of(each)
        assert alpha is not None and said is not None
        if not any(math.isclose(alpha, right, rel_tol=_CLOSE) for right in (said, said / declared.folded(each))):
            other.append((each.key, alpha, said))
    if other:
        key, alpha, said = other[0]
        names = tuple(key for key, _, _ in other)
        text = f"another alpha than the metadata says in {modules_words(len(other))} ({key} {alpha:g}, not {said:g}):"
        text += f" they act {alpha / said:g} times as strongly as that; get the file again, or correct the metadata"
        yield Finding("doubtful", "alpha", text, names)


def _outliers(found: Sequence[_Alpha]) -> list[Finding]:
    """A few modules whose scale is far from that of all others of their kind."""
    odd = []
    for has_kernel in (False, True):
        own = [each for each in found if each.has_kernel == has_kernel]
        if len(own) < _ENOUGH:
            continue
        usual = median(each.scale for each in own)
        far = [each for each in own if not usual / _FAR < each.scale < usual * _FAR]
        odd += far if len(far) <= _FEW * len(own) else []
    if not odd:
        return []
    names = tuple(each.key for each in odd)
    text = f"an alpha far from the others' in {modules_words(len(odd))} ({odd[0].key}: {odd[0].scale:g} of its rank)"
    return [Finding("doubtful", "alpha", f"{text}: get the file again", names)]
