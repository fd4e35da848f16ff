"""Masks: which part of a picture is learned, by its own transparency or by a picture of the same name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lora_ext.config.given_path import given_path
from lora_ext.dataset.folders import IMAGE_EXTENSIONS, DatasetScan, ImageEntry
from lora_ext.dataset.images import BrokenImageError, inspect_image, read_mask, read_opacity
from lora_ext.dataset.options import SubsetOptions
from lora_ext.dataset.views import View

PIXELS_PER_LATENT = 8


def masks_of(scan: DatasetScan) -> list[Path | None]:
    """The mask of each picture of a scan, None where it has none, in the order of `scan.images`."""
    found: list[Path | None] = []
    for subset in scan.subsets:
        folder = mask_folder(subset.options)
        if folder is None:
            found += [None] * len(subset.images)
        else:
            inner, outer = _by_stem(folder / subset.folder.name), _by_stem(folder)
            found += [inner.get(entry.path.stem) or outer.get(entry.path.stem) for entry in subset.images]
    return found


def mask_folder(options: SubsetOptions) -> Path | None:
    """Where a subset's masks lie, or lie in a folder of its name; None where it has none."""
    text = options.conditioning_data_dir.strip()
    return given_path(text) if text else None


def mask_problems(scan: DatasetScan) -> list[str]:
    """Pictures whose mask is missing, broken, or of another size than they are; in words."""
    folders = dict.fromkeys(filter(None, (mask_folder(subset.options) for subset in scan.subsets)))
    absent = [folder for folder in folders if not folder.is_dir()]
    if absent:
        return [f"conditioning_data_dir = {folder}: there is no such folder; give the masks' one" for folder in absent]
    owners = [subset for subset in scan.subsets for _ in subset.images]
    problems = (
        _problem_of(entry, mask, folder)
        for owner, entry, mask in zip(owners, scan.images, masks_of(scan), strict=True)
        if (folder := mask_folder(owner.options)) is not None
    )
    return [problem for problem in problems if problem]


def _by_stem(folder: Path) -> dict[str, Path]:
    """The pictures in a folder by their names without extension; of several the first."""
    paths = sorted(folder.iterdir(), reverse=True) if folder.is_dir() else []
    return {path.stem: path for path in paths if path.suffix.lower() in IMAGE_EXTENSIONS and path.is_file()}


def _problem_of(entry: ImageEntry, mask: Path | None, folder: Path) -> str | None:
    if mask is None:
        return f"{entry.path}: has no mask in {folder}: put one there, called {entry.path.stem} with any extension"
    try:
        facts = inspect_image(mask)
    except BrokenImageError as error:
        return f"{mask}: broken mask of {entry.path.name} ({error}): replace it"
    if (facts.width, facts.height) == (entry.width, entry.height):
        return None
    return (
        f"{mask}: the mask is {facts.width}×{facts.height}, its picture {entry.path.name} is "
        f"{entry.width}×{entry.height}: make both the same size"
    )


def latent_mask(picture: Path, mask: Path | None, view: View) -> Tensor:
    """What is learned of a view, 0…1: (1, h/8, w/8), by the red channel of `mask` or else the picture's opacity.

    It follows the picture's scaling, cutting and mirroring; each value is the mean over its 8×8 pixels.
    """
    pixels = view.cut(read_opacity(picture) if mask is None else read_mask(mask))  # (h, w, 1)
    values = torch.from_numpy(np.ascontiguousarray(pixels[..., 0], dtype=np.float32))  # (h, w), 0…255
    return F.avg_pool2d(values[None], PIXELS_PER_LATENT) / 255
