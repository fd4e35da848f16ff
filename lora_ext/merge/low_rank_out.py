"""Low-rank modules as sd-scripts' tensors; what a changed file says of itself: kind, ranks, what was done, sources."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lora_ext.merge.spectrum import Svd, halved
from lora_ext.networks.file import NetworkFile, Precision, cast_tensors, model_hash
from lora_ext.networks.formats.adapter_config import CONFIG_KEY
from lora_ext.networks.weight_delta.decomposed import SUFFIX as LENGTHS
from lora_ext.networks.weight_delta.low_rank import BIAS_SUFFIX
from lora_ext.networks.weight_delta.low_rank import SUFFIXES as LOW_RANK
from lora_ext.networks.weight_delta.whole import FULL_SUFFIXES, NORM_SUFFIXES

SOURCES = "lw_sources"
"""Metadata: the files that a file was made from, as JSON: their names, hashes, weights, and their own sources."""

_DYNAMIC = "Dynamic"
PEFTS_OWN = (CONFIG_KEY, "lora_adapter_metadata")
"""Metadata in which peft and diffusers keep the strength that other files have in their tensors."""

_WITH_SCALE = ("lora_up.weight", BIAS_SUFFIX)
_PLAIN = {"lora_up.weight", "lora_down.weight", "alpha"}
_BESIDE_FACTORS = LOW_RANK | NORM_SUFFIXES | {BIAS_SUFFIX, LENGTHS, "diff_b"}
_OF_KINDS = (
    "algo", "factor", "unit", "block_size", "full_matrix", "decompose_both", "unbalanced_factorization", "use_tucker",
    "use_cp", "use_scalar", "constraint", "constrain", "rescaled", "bypass_mode", "rs_lora",
)  # fmt: skip
"""A network's arguments that say what kind it is, and how that kind is made."""

_STALE = ("sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256", "modelspec.thumbnail")


@dataclass(frozen=True)
class Source:
    """A file that went into another one; its weight where it had one."""

    path: Path
    metadata: Mapping[str, str]
    weight: float | None = None

    @staticmethod
    def of(file: NetworkFile, weight: float | None = None) -> Source:
        """A network file that was read."""
        return Source(file.path, file.metadata, weight)


def factor_tensors(svd: Svd, shape: Sequence[int], scale: float = 1.0) -> dict[str, Tensor]:
    """`stored_factors` of ΔW = scale · svd, each with the root of a singular value.

    So neither loses more than the other when they are rounded to half precision; where the value is zero, up alone is.
    """
    of_left, of_right = halved(svd.values)
    return stored_factors(svd.left * of_left, of_right[:, None] * svd.right, shape, scale)


def stored_factors(up: Tensor, down: Tensor, shape: Sequence[int], scale: float = 1.0) -> dict[str, Tensor]:
    """lora_up, lora_down and alpha by suffix, of ΔW = scale · up @ down in the shape (out, in) or (out, in, kh, kw).

    Alpha is scale · rank.
    """
    rank, kernel = len(down), tuple(shape[2:])
    return {
        "lora_up.weight": up.reshape(shape[0], rank, *[1] * len(kernel)).contiguous(),
        "lora_down.weight": down.reshape(rank, shape[1], *kernel).contiguous(),
        "alpha": torch.tensor(scale * rank),
    }


def factor_outlines(shape: Sequence[int], rank: int, scale: float = 1.0) -> dict[str, Tensor]:
    """The names and shapes of `stored_factors` (device "meta"), and its alpha."""
    return {
        "lora_up.weight": torch.empty(shape[0], rank, *[1] * len(shape[2:]), device="meta"),
        "lora_down.weight": torch.empty(rank, *shape[1:], device="meta"),
        "alpha": torch.tensor(scale * rank),
    }


def with_stored_alpha(tensors: Mapping[str, Tensor], precision: Precision) -> dict[str, Tensor]:
    """A module's tensors with the alpha that its file is going to hold; what rounding takes from it, up has.

    An alpha such as 39.45 is another number in half precision, and would make the whole module stronger or weaker.
    """
    alpha = cast_tensors({"alpha": tensors["alpha"]}, precision)["alpha"].float()
    share = float(tensors["alpha"]) / float(alpha) if alpha else 1.0
    if share == 1:
        return dict(tensors)
    scaled = {
        name: tensor if tensor.is_meta else tensor * share for name, tensor in tensors.items() if name in _WITH_SCALE
    }
    return dict(tensors) | scaled | {"alpha": alpha}


def named_tensors(modules: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors by their names in a file, from those by module key and suffix."""
    return {f"{key}.{suffix}": tensor for key, tensors in modules.items() for suffix, tensor in tensors.items()}


def bias_words(modules: Iterable[Mapping[str, Tensor]]) -> list[str]:
    """What becomes of biases beside factors, in words; nothing where there are none."""
    count = sum(BIAS_SUFFIX in tensors for tensors in modules)
    if not count:
        return []
    return [
        f"{count} modules change a bias too, which stands beside the factors as peft has it ({BIAS_SUFFIX}): it takes "
        "effect here, and other programs leave it out"
    ]


def lengths_column(lengths: Tensor, axes: int) -> Tensor:
    """DoRA's lengths by output as LyCORIS stores them, (out, 1, …) of as many axes as the weight; peft has (out,)."""
    return lengths.reshape(-1, *[1] * (axes - 1)) if lengths.ndim == 1 else lengths


def kind_metadata(metadata: Mapping[str, str], modules: Mapping[str, Mapping[str, Tensor]]) -> dict[str, str]:
    """What a file said of itself, its kind being that of modules that are not stored as they were.

    Plain LoRA is sd-scripts' own network, all others are LyCORIS'. What peft keeps outside of tensors is taken out.
    """
    changed = {key: value for key, value in metadata.items() if key not in PEFTS_OWN}
    arguments = {name: value for name, value in network_arguments(metadata).items() if name not in _OF_KINDS}
    suffixes = {suffix for tensors in modules.values() for suffix in tensors}
    changed["ss_network_module"] = "networks.lora" if suffixes <= _PLAIN else "lycoris.kohya"
    if not suffixes <= _PLAIN and suffixes <= _BESIDE_FACTORS:
        arguments["algo"] = "locon"
    elif suffixes <= FULL_SUFFIXES | NORM_SUFFIXES:
        arguments["algo"] = "full"
    if arguments or "ss_network_args" in changed:
        changed["ss_network_args"] = json.dumps(arguments)
    return changed


def changed_metadata(
    metadata: Mapping[str, str],
    modules: Mapping[str, Mapping[str, Tensor]],
    what: str,
    sources: Iterable[Source],
    out: Path,
) -> dict[str, str]:
    """What a file of these low-rank (and other) modules says of itself, from what the first of its sources said.

    `what` was done stands before the training comment, as sd-scripts writes it; ranks and alphas are those of the
    modules, "Dynamic" where they differ. Hashes are left to the writer.
    """
    changed = {key: value for key, value in metadata.items() if key not in _STALE}
    comment = changed.get("ss_training_comment", "")
    changed["ss_training_comment"] = f"{what}; {comment}" if comment not in ("", "None") else what
    changed["ss_output_name"] = out.stem
    changed.update(_ranks(changed, modules))
    changed[SOURCES] = json.dumps([_described(source) for source in sources], ensure_ascii=False)
    return changed


def _ranks(metadata: Mapping[str, str], modules: Mapping[str, Mapping[str, Tensor]]) -> dict[str, str]:
    """Ranks and alphas of layers, and in the network's arguments those of convolutions with a kernel."""
    layers: set[tuple[int, float]] = set()
    kernels: set[tuple[int, float]] = set()
    for tensors in modules.values():
        if "lora_down.weight" not in tensors:
            continue
        down, core = tensors["lora_down.weight"], tensors.get("lora_mid.weight")
        is_kernel = prod((down if core is None else core).shape[2:]) != 1
        alpha = float(tensors["alpha"]) if "alpha" in tensors else float(len(down))
        (kernels if is_kernel else layers).add((len(down), round(alpha, 6)))
    dims, alphas = _joined(layers or kernels)
    values = {"ss_network_dim": dims, "ss_network_alpha": alphas} if layers or kernels else {}
    arguments = network_arguments(metadata)
    if kernels:
        conv_dims, conv_alphas = _joined(kernels)
        arguments |= {"conv_dim": conv_dims, "conv_alpha": conv_alphas}
    if arguments:
        values["ss_network_args"] = json.dumps(arguments)
    return values


def _joined(found: set[tuple[int, float]]) -> tuple[str, str]:
    """Rank and alpha as text, "Dynamic" where there are several."""
    ranks, alphas = ({pair[place] for pair in found} for place in (0, 1))
    return (
        str(next(iter(ranks))) if len(ranks) == 1 else _DYNAMIC,
        str(next(iter(alphas))) if len(alphas) == 1 else _DYNAMIC,
    )


def network_arguments(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The arguments that a network was made with; none where there are none that can be read."""
    try:
        found = json.loads(metadata.get("ss_network_args", "{}"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _described(source: Source) -> dict[str, Any]:
    described: dict[str, Any] = {
        "name": source.path.name,
        "hash": source.metadata.get("sshs_model_hash") or model_hash(source.path),
    }
    if source.weight is not None:
        described["weight"] = source.weight
    try:
        own = json.loads(source.metadata.get(SOURCES, "[]"))
    except ValueError:
        own = []
    return described | ({"sources": own} if own else {})
