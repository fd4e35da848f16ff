"""Low-rank modules as sd-scripts' tensors, and what a changed file says of itself: ranks, what was done, from what."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lora_ext.merge.spectrum import Svd
from lora_ext.networks.file import NetworkFile, model_hash

SOURCES = "lw_sources"
"""Metadata: the files that a file was made from, as JSON: their names, hashes, weights, and their own sources."""

_DYNAMIC = "Dynamic"
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
    """lora_up, lora_down and alpha, in fp32 by suffix, of ΔW = scale · svd in the shape (out, in) or (out, in, kh, kw).

    Alpha is scale · rank. Each factor has the root of a singular value, so that neither loses more than the other when
    they are rounded to half precision; where the value is zero, up alone is.
    """
    rank, kernel = len(svd.values), tuple(shape[2:])
    roots = svd.values.sqrt()
    rows = torch.where(roots > 0, roots, 1.0)[:, None] * svd.right
    return {
        "lora_up.weight": (svd.left * roots).reshape(shape[0], rank, *[1] * len(kernel)).contiguous(),
        "lora_down.weight": rows.reshape(rank, shape[1], *kernel).contiguous(),
        "alpha": torch.tensor(scale * rank),
    }


def named_tensors(modules: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors by their names in a file, from those by module key and suffix."""
    return {f"{key}.{suffix}": tensor for key, tensors in modules.items() for suffix, tensor in tensors.items()}


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
    arguments = _arguments(metadata)
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


def _arguments(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The network's arguments; none where there are none that can be read."""
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
