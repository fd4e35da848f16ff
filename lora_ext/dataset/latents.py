"""Latents of a dataset's pictures, encoded once before the first step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from lora_ext.checkpoint.checkpoint import Checkpoint
from lora_ext.dataset.buckets import Bucket
from lora_ext.dataset.images import load_image
from lora_ext.dataset.seeds import derived_seed
from lora_ext.protocols import Control, Events, UserError


@dataclass(frozen=True)
class Picture:
    """A picture to encode. `index` is its place in the dataset: with the seed it decides the posterior's draw."""

    index: int
    path: Path
    bucket: Bucket


@torch.no_grad()
def encode_pictures(
    pictures: Sequence[Picture], checkpoint: Checkpoint, batch_size: int, seed: int, events: Events, control: Control
) -> dict[Picture, Tensor]:
    """Unscaled latents (4, h/8, w/8), fp32 on the CPU, one draw from the posterior of each picture.

    Up to `batch_size` pictures of one bucket size are encoded at once; the draws do not depend on that. Raises
    Cancelled between such groups when the run is to end, UserError for a latent that is not finite.
    """
    latents: dict[Picture, Tensor] = {}
    events.phase("caching latents", 0, len(pictures))
    for group, images in _loaded_groups(pictures, batch_size):
        control.raise_if_stopping()
        generators = [torch.Generator().manual_seed(derived_seed(seed, picture.index)) for picture in group]
        encoded = checkpoint.encode_images(images, generators).float().cpu()  # (batch, 4, h/8, w/8)
        for picture, latent in zip(group, encoded, strict=True):
            _check_finite(picture.path, latent, checkpoint)
            latents[picture] = latent.clone()
        events.phase("caching latents", len(latents), len(pictures))
    return latents


def _groups(pictures: Sequence[Picture], batch_size: int) -> list[list[Picture]]:
    """Groups of at most `batch_size` pictures of one size."""
    groups = []
    ordered = sorted(pictures, key=lambda picture: (picture.bucket.size, picture.index))
    for _, same_size in groupby(ordered, key=lambda picture: picture.bucket.size):
        members = list(same_size)
        groups += [members[start : start + batch_size] for start in range(0, len(members), batch_size)]
    return groups


def _loaded_groups(pictures: Sequence[Picture], batch_size: int) -> Iterator[tuple[list[Picture], Tensor]]:
    """Each group with its images (batch, 3, h, w) in −1…1; the next group is read while one is used."""
    groups = _groups(pictures, batch_size)
    with ThreadPoolExecutor(max_workers=1) as reader:
        coming = [reader.submit(_load_group, group) for group in groups[:1]]
        for position, group in enumerate(groups):
            images = coming.pop().result()
            coming += [reader.submit(_load_group, following) for following in groups[position + 1 : position + 2]]
            yield group, images


def _load_group(group: Sequence[Picture]) -> Tensor:
    return torch.stack([load_image(each.path, each.bucket.resized, each.bucket.size) for each in group])


def _check_finite(path: Path, latent: Tensor, checkpoint: Checkpoint) -> None:
    if not bool(torch.isfinite(latent).all()):
        dtype = str(next(checkpoint.vae.parameters()).dtype).removeprefix("torch.")
        raise UserError(
            f"{path}: the VAE, which computes in {dtype}, returns values that are not numbers for this picture: "
            "let the VAE compute in fp32 or bf16, or use another VAE"
        )
