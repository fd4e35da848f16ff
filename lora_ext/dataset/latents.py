"""Latents of a dataset's pictures: encoded once before the first step, or anew each time where they differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from lora_ext.checkpoint.picture_encoder import PictureEncoder, Posterior
from lora_ext.config.groups import MemorySettings
from lora_ext.dataset.images import load_image
from lora_ext.dataset.latent_files import LatentFiles
from lora_ext.dataset.masks import PIXELS_PER_LATENT, latent_mask
from lora_ext.dataset.pictures import Picture
from lora_ext.dataset.read_ahead import read_ahead
from lora_ext.dataset.seeds import Occurrence, derived_seed
from lora_ext.dataset.views import View
from lora_ext.protocols import Control, Events, UserError

_FLIPPED, _ANEW = 1, 2
"""Third number of the seed of a draw that is not the one of the picture as it is."""


@dataclass(frozen=True)
class Loaded:
    """A batch of pictures, read: what is shown of each, its image (3, h, w) where it has to be encoded, the masks
    (batch, 1, h/8, w/8), None where no picture has one.
    """

    occurrences: Sequence[Occurrence]
    views: Sequence[View]
    images: Sequence[Tensor | None]
    masks: Tensor | None


class Latents:
    """Gives the unscaled latents of pictures, fp32 on the CPU, and their masks.

    What is the same each time is encoded once in `prepare`, both ways round where pictures are mirrored, and kept in
    memory; the rest is encoded when it comes up. Draws from the posterior depend on `seed` and the picture's index, and
    on the occurrence only where the picture is random: kept or not, a picture has the same latents.
    """

    def __init__(
        self, pictures: Sequence[Picture], encoder: PictureEncoder, settings: MemorySettings, seed: int
    ) -> None:
        self.encoder = encoder
        self._pictures = {picture.index: picture for picture in pictures}
        self._settings = settings
        self._seed = seed
        self._kept: dict[tuple[int, bool], Tensor] = {}  # (index, flipped) → (4, h/8, w/8)
        self._masks: dict[int, Tensor] = {}  # index → (1, h/8, w/8)

    def prepare(self, events: Events, control: Control) -> None:
        """Encode, or read from files, what is kept.

        Raises Cancelled when the run is to end, UserError for a picture that cannot be read or encoded.
        """
        on_disk = self._settings.cache_latents_to_disk
        keeps = self._settings.cache_latents or on_disk
        kept = [picture for picture in self._pictures.values() if keeps and not picture.is_random]
        if len(kept) < len(self._pictures):
            events.message("info", _not_kept(len(self._pictures) - len(kept), len(self._pictures), keeps))
        if kept:
            events.phase("caching latents", 0, len(kept))
            files = LatentFiles(kept, self.encoder, events) if on_disk else None
            missing = kept if files is None else [picture for picture in kept if not self._read(picture, files)]
            self._encode(missing, files, len(kept), events, control)
        for picture in kept:
            if picture.is_masked:
                control.raise_if_stopping()
                self._masks[picture.index] = latent_mask(picture.path, picture.mask, picture.plain())
        self.encoder.release()

    def load(self, occurrences: Sequence[Occurrence]) -> Loaded:
        """Read from files what a batch needs of them."""
        views = [self._pictures[each.picture].view(each, self._seed) for each in occurrences]
        shown = list(zip(occurrences, views, strict=True))
        images = [
            None if (each.picture, view.flipped) in self._kept else load_image(self._pictures[each.picture].path, view)
            for each, view in shown
        ]
        masked = any(self._pictures[each.picture].is_masked for each in occurrences)
        masks = torch.stack([self._mask(each.picture, view) for each, view in shown]) if masked else None
        return Loaded(occurrences, views, images, masks)

    def __call__(self, loaded: Loaded) -> Tensor:
        """Latents (batch, 4, h/8, w/8) of a batch."""
        shown = list(zip(loaded.occurrences, loaded.views, loaded.images, strict=True))
        anew = self._encoded_anew([(each, view, image) for each, view, image in shown if image is not None])
        return torch.stack(
            [self._kept[each.picture, view.flipped] if image is None else next(anew) for each, view, image in shown]
        )

    def batches(self, order: Sequence[Sequence[Occurrence]]) -> Iterator[tuple[Tensor, Loaded]]:
        """Latents (batch, 4, h/8, w/8) of each batch, and what else was read of it.

        Where pictures are read, those of the next batch are read while one is trained.
        """
        reads = len(self._kept) < sum(len(picture.sides) for picture in self._pictures.values())
        for loaded in read_ahead(self.load, order) if reads else map(self.load, order):
            yield self(loaded), loaded

    def _read(self, picture: Picture, files: LatentFiles) -> bool:
        """Take a picture's latents from files; False where one of them is not there."""
        posteriors = [files.read(picture, flipped) for flipped in picture.sides]
        for flipped, posterior in zip(picture.sides, posteriors, strict=True):
            if posterior is not None:
                self._keep(picture, flipped, posterior)
        return None not in posteriors

    def _encode(
        self, pictures: Sequence[Picture], files: LatentFiles | None, total: int, events: Events, control: Control
    ) -> None:
        done = total - len(pictures)
        if done:
            events.phase("caching latents", done, total)
        groups = _groups(pictures, self._settings.vae_batch_size)
        for group, images in zip(groups, read_ahead(_load_group, groups), strict=True):
            control.raise_if_stopping()
            for flipped in (False, True):
                places = [place for place, picture in enumerate(group) if flipped in picture.sides]
                if not places:
                    continue
                chosen = images[places]  # (batch, 3, h, w)
                posterior = self.encoder(chosen.flip(3) if flipped else chosen)
                for place, picture_place in enumerate(places):
                    picture, own = group[picture_place], posterior.of(place)
                    self._keep(picture, flipped, own)
                    if files is not None:
                        files.write(picture, flipped, own)
            done += len(group)
            events.phase("caching latents", done, total)

    def _keep(self, picture: Picture, flipped: bool, posterior: Posterior) -> None:
        latent = posterior.draw([self._generator(picture, flipped)])[0]
        _check_finite(picture.path, latent)
        self._kept[picture.index, flipped] = latent

    def _encoded_anew(self, shown: Sequence[tuple[Occurrence, View, Tensor]]) -> Iterator[Tensor]:
        """Latents (4, h/8, w/8) of each image (3, h, w), `vae_batch_size` at a time."""
        for start in range(0, len(shown), self._settings.vae_batch_size):
            group = shown[start : start + self._settings.vae_batch_size]
            pictures = [self._pictures[occurrence.picture] for occurrence, _, _ in group]
            generators = [
                self._generator(picture, view.flipped, occurrence if picture.is_random else None)
                for picture, (occurrence, view, _) in zip(pictures, group, strict=True)
            ]
            drawn = self.encoder(torch.stack([image for _, _, image in group])).draw(generators)
            for picture, latent in zip(pictures, drawn, strict=True):
                _check_finite(picture.path, latent)
                yield latent

    def _generator(self, picture: Picture, flipped: bool, occurrence: Occurrence | None = None) -> torch.Generator:
        """Of the draw from a picture's posterior."""
        numbers = [self._seed, picture.index]
        if occurrence is not None:
            numbers += [_ANEW, occurrence.epoch, occurrence.repeat]
        elif flipped:
            numbers += [_FLIPPED]
        return torch.Generator().manual_seed(derived_seed(*numbers))

    def _mask(self, index: int, view: View) -> Tensor:
        """What is learned of a picture this time: (1, h/8, w/8)."""
        picture, kept = self._pictures[index], self._masks.get(index)
        if kept is not None:
            return kept.flip(2) if view.flipped else kept
        if picture.is_masked:
            return latent_mask(picture.path, picture.mask, view)
        return torch.ones(1, view.size[1] // PIXELS_PER_LATENT, view.size[0] // PIXELS_PER_LATENT)


def _not_kept(count: int, total: int, keeps: bool) -> str:
    why = "they differ each time (color_aug, random_crop or face_crop_aug_range)" if keeps else "cache_latents is off"
    return (
        f"The latents of {count} of {total} pictures are not kept, because {why}: the VAE encodes them anew each time, "
        "which makes every step longer."
    )


def _groups(pictures: Sequence[Picture], batch_size: int) -> list[list[Picture]]:
    """Groups of at most `batch_size` pictures of one size."""
    groups = []
    ordered = sorted(pictures, key=lambda picture: (picture.bucket.size, picture.index))
    for _, same_size in groupby(ordered, key=lambda picture: picture.bucket.size):
        members = list(same_size)
        groups += [members[start : start + batch_size] for start in range(0, len(members), batch_size)]
    return groups


def _load_group(group: Sequence[Picture]) -> Tensor:
    """Images (batch, 3, h, w) in −1…1 of pictures of one size."""
    return torch.stack([load_image(each.path, each.plain()) for each in group])


def _check_finite(path: Path, latent: Tensor) -> None:
    if not bool(torch.isfinite(latent).all()):
        raise UserError(
            f"{path}: the VAE returns values that are not numbers for this picture, though it computes in fp32: "
            "choose another VAE (setting vae), or another checkpoint"
        )
