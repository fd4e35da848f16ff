"""The dataset as training sees it: batches of latents and captions."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lora_ext.checkpoint.checkpoint import Checkpoint
from lora_ext.config.train_config import TrainConfig
from lora_ext.dataset.buckets import Size, choose_bucket
from lora_ext.dataset.captions import shuffle_caption
from lora_ext.dataset.folders import DatasetScan, ImageEntry
from lora_ext.dataset.latents import Picture, encode_pictures
from lora_ext.dataset.report import DatasetReport, make_report
from lora_ext.dataset.seeds import derived_seed
from lora_ext.protocols import Control, Events

_CAPTION_STREAM = 1
"""Third number of the seed of an epoch's caption shuffling, so that it leaves the pictures' order alone."""


@dataclass
class Batch:
    """Pictures of one bucket.

    latents (batch, 4, h/8, w/8), scaled for the U-Net, fp32 on the CPU; loss_weights (batch,); `sizes` are the
    training sizes (width, height) in pixels, one for each picture.
    """

    latents: Tensor
    captions: list[str]
    loss_weights: Tensor
    sizes: list[Size]


@dataclass(frozen=True)
class _Item:
    entry: ImageEntry
    repeats: int
    picture: Picture


class ImageDataset:
    """A scanned dataset under one configuration: caches its latents, then yields batches."""

    def __init__(self, scan: DatasetScan, config: TrainConfig) -> None:
        self.scan = scan
        self.config = config
        self.report: DatasetReport = make_report(scan, config)
        entries = [(entry, subset.repeats) for subset in scan.subsets for entry in subset.images]
        self._items = [
            _Item(entry, repeats, Picture(index, entry.path, choose_bucket(entry.width, entry.height, config.dataset)))
            for index, (entry, repeats) in enumerate(entries)
        ]
        self._latents: dict[Picture, Tensor] = {}
        self._latent_scale = 1.0

    @property
    def batches_per_epoch(self) -> int:
        """Batches of one epoch, partial ones included."""
        return self.report.batches_per_epoch(self.config.learning.train_batch_size)

    @property
    def captions(self) -> list[str]:
        """Every caption once, as it is trained where tags are not shuffled."""
        return list(dict.fromkeys(item.entry.caption.strip() for item in self._items))

    def cache_latents(
        self, checkpoint: Checkpoint, events: Events, control: Control, generator: torch.Generator | None = None
    ) -> None:
        """Encode every picture once, with one draw from the VAE's posterior.

        Each picture's draw depends on the seed (of `generator`, else the configuration's) and on its place in the
        dataset alone. Raises Cancelled when the run is to end, UserError where a picture cannot be encoded.
        """
        seed = self.config.learning.seed if generator is None else generator.initial_seed()
        pictures = [item.picture for item in self._items]
        self._latents = encode_pictures(pictures, checkpoint, self.config.memory.vae_batch_size, seed, events, control)
        self._latent_scale = checkpoint.latent_scale

    def batches(self, epoch: int) -> Iterator[Batch]:
        """The batches of one epoch; the same seed and epoch give the same ones. Latents must have been cached."""
        seed = self.config.learning.seed
        members: dict[Size, list[int]] = {}
        for index, item in enumerate(self._items):
            members.setdefault(item.picture.bucket.size, []).extend([index] * item.repeats)
        caption_rng = random.Random(derived_seed(seed, epoch, _CAPTION_STREAM))
        order = epoch_batches(members, self.config.learning.train_batch_size, random.Random(derived_seed(seed, epoch)))
        for indices in order:
            yield self._batch(indices, caption_rng)

    def _batch(self, indices: Sequence[int], caption_rng: random.Random) -> Batch:
        if not self._latents:
            raise RuntimeError("ImageDataset.batches() needs cache_latents() first")
        items = [self._items[index] for index in indices]
        latents = torch.stack([self._latents[item.picture] for item in items])  # (batch, 4, h/8, w/8)
        return Batch(
            latents=latents * self._latent_scale,
            captions=[self._caption(item.entry, caption_rng) for item in items],
            loss_weights=torch.ones(len(items)),
            sizes=[item.picture.bucket.size for item in items],
        )

    def _caption(self, entry: ImageEntry, rng: random.Random) -> str:
        settings = self.config.captions
        if settings.shuffle_caption:
            return shuffle_caption(entry.caption, settings.keep_tokens, rng)
        return entry.caption.strip()


def epoch_batches(members: Mapping[Size, Sequence[int]], batch_size: int, rng: random.Random) -> list[list[int]]:
    """An epoch's batches of picture indices: shuffled within each bucket, cut there, then brought into random order."""
    batches = []
    for size in sorted(members):
        indices = list(members[size])
        rng.shuffle(indices)
        batches += [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]
    rng.shuffle(batches)
    return batches
