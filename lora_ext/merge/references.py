"""What recipes compare a network with: norms of a checkpoint's weights, and what they do along singular vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from lora_ext.checkpoint.file_weights import CheckpointFile
from lora_ext.merge.module_spectra import ModuleSpectrum
from lora_ext.merge.recipes import OF_CHECKPOINT, Recipe, Reference
from lora_ext.merge.spectrum import spectral_norm
from lora_ext.networks.weight_delta import exact_matmul


def references_of(
    modules: Sequence[ModuleSpectrum],
    checkpoint: CheckpointFile,
    recipes: Iterable[Recipe],
    device: torch.device,
    step: Callable[[int, int], None],
) -> dict[str, Reference]:
    """By module key what the recipes need of the checkpoint's weights, one of them in memory at a time."""
    wanted = {name for recipe in recipes for name in recipe.weights if name in OF_CHECKPOINT}
    by_key = {module.key: module for module in modules}
    found: dict[str, Reference] = {}
    for key, weight in checkpoint.values(set(by_key)):
        same = weight[:, : by_key[key].shape[1]]  # of inpainting's first convolution the channels that others have
        matrix = same.to(device, torch.float32).reshape(len(weight), -1)
        reference = Reference(frobenius=float(matrix.norm()))
        if "spn_ckpt" in wanted:
            reference = Reference(reference.frobenius, spectral_norm(matrix))
        if "subspace" in wanted:
            reference = Reference(reference.frobenius, reference.spectral, _along(by_key[key], matrix))
        found[key] = reference
        step(len(found), len(by_key))
    return found


def _along(module: ModuleSpectrum, matrix: Tensor) -> Tensor:
    """|uᵢᵀ W vᵢ| (k,) for the singular vectors of the module's ΔW, on the CPU."""
    svd = module.cut(len(module.values))
    with exact_matmul():
        return ((svd.right @ matrix.T) * svd.left.T).sum(dim=1).abs().cpu()
