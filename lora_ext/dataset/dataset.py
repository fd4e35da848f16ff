"""The dataset as training sees it: batches of latents and captions."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from lora_ext.checkpoint.checkpoint import Checkpoint
from lora_ext.checkpoint.conditioning import Frame
from lora_ext.checkpoint.picture_encoder import PictureEncoder, vae_file
from lora_ext.config.train_config import TrainConfig
from lora_ext.dataset.buckets import Size, choose_bucket
from lora_ext.dataset.captions import caption_version, is_dropped, longest_captions, process_caption
from lora_ext.dataset.folders import DatasetScan, Member
from lora_ext.dataset.latents import Latents, Loaded
from lora_ext.dataset.masks import masks_of
from lora_ext.dataset.options import SubsetOptions
from lora_ext.dataset.pictures import Picture
from lora_ext.dataset.report import DatasetReport, make_report
from lora_ext.dataset.seeds import Occurrence, derived_seed, random_for
from lora_ext.dataset.step_count import count_steps
from lora_ext.protocols import Control, Events

_Member = TypeVar("_Member")


@dataclass
class Batch:
    """Pictures of one bucket.

    latents (batch, 4, h/8, w/8), scaled for the U-Net, fp32 on the CPU; loss_weights (batch,); masks
    (batch, 1, h/8, w/8) in 0…1, or None where all of each picture counts. `sizes` are the training sizes
    (width, height) in pixels, `frames` what SDXL is told of each picture, `entries` the pictures' places in the scan,
    `is_reg` tells regularisation pictures.
    """

    latents: Tensor
    captions: list[str]
    loss_weights: Tensor
    sizes: list[Size]
    entries: list[int] = field(default_factory=list)
    is_reg: list[bool] = field(default_factory=list)
    frames: list[Frame] = field(default_factory=list)
    masks: Tensor | None = None


@dataclass(frozen=True)
class _Item:
    member: Member
    picture: Picture


class ImageDataset:
    """A scanned dataset under one configuration: caches its latents, then yields batches.

    With `caption_variants` above 0 every picture has that many versions of its caption, drawn once, instead of a new
    one each time it comes up: their encodings can be kept. With token_warmup_step there are none.
    """

    def __init__(self, scan: DatasetScan, config: TrainConfig) -> None:
        self.scan = scan
        self.config = config
        self.caption_variants = 0
        self.report: DatasetReport = make_report(scan, config)
        masks = masks_of(scan) if config.loss.masked_loss else [None] * len(scan.members)
        self._items = [
            _Item(member, _picture(index, member, mask))
            for index, (member, mask) in enumerate(zip(scan.members, masks, strict=True))
        ]
        self._used = [item for item in self._items if item.member.repeats]  # regularisation pictures may be too many
        self.latents: Latents | None = None

    @property
    def batches_per_epoch(self) -> int:
        """Batches of one epoch, partial ones included."""
        return self.report.batches_per_epoch

    @property
    def captions_are_known(self) -> bool:
        """Whether `captions` holds every caption that can come up, so that their encodings can be kept."""
        options = [item.member.subset.options for item in self._used]
        return all(self._has_versions(each) or not each.changes_tags for each in options)

    @property
    def captions(self) -> list[str]:
        """Every caption once; where tags change from time to time the longest form of each."""
        found: list[str] = []
        for item in self._used:
            options, caption = item.member.subset.options, item.member.entry.caption
            if self._has_versions(options):
                found += [self._variant(item, number) for number in range(self.caption_variants)]
            else:
                found += longest_captions(caption, options)
            found += [""] if options.drops_captions else []
        return list(dict.fromkeys(found))

    def cache_latents(
        self, checkpoint: Checkpoint, events: Events, control: Control, generator: torch.Generator | None = None
    ) -> None:
        """Encode every picture that is the same each time once, with one draw from the VAE's posterior.

        Each picture's draw depends on the seed (of `generator`, else the configuration's) and on its place in the
        dataset alone. Raises Cancelled when the run is to end, UserError where a picture cannot be encoded.
        """
        seed = self.config.learning.seed if generator is None else generator.initial_seed()
        encoder = PictureEncoder(checkpoint, vae_file(self.config.memory.vae))
        self.latents = Latents([item.picture for item in self._used], encoder, self.config.memory, seed)
        self.latents.prepare(events, control)

    def release_checkpoint(self) -> None:
        """Free what is kept of the checkpoint's VAE, before the checkpoint is handed back for a while."""
        if self.latents is not None:
            self.latents.encoder.release()

    def use_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Encode with this instance of the checkpoint from now on."""
        if self.latents is not None:
            self.latents.encoder.use(checkpoint)

    def batches(self, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """The batches of one epoch, counted from 1, without the first `skip`; latents must have been cached.

        The same seed and epoch give the same ones, wherever an epoch is begun.
        """
        if self.latents is None:
            raise RuntimeError("ImageDataset.batches() needs cache_latents() first")
        counts = count_steps(self.config.learning, self.batches_per_epoch)
        before = (epoch - 1) * counts.updates_per_epoch
        order = self.epoch_order(epoch)[skip:]
        for number, (latents, loaded) in enumerate(self.latents.batches(order)):
            step = before + (skip + number) // self.config.learning.gradient_accumulation_steps
            captions = [self._caption(each, step, counts.total_steps) for each in order[number]]
            yield self._batch(loaded, captions, latents * self.latents.encoder.latent_scale)

    def epoch_order(self, epoch: int) -> list[list[Occurrence]]:
        """Which pictures the batches of an epoch hold; buckets and datasets never mix."""
        groups: dict[tuple[int, Size], list[Occurrence]] = {}
        for item in self._used:
            index, terms = item.picture.index, item.member.subset.terms
            same = groups.setdefault((terms.dataset, item.picture.bucket.size), [])
            same += [Occurrence(epoch, index, repeat) for repeat in range(item.member.repeats)]
        sizes = {item.member.subset.terms.dataset: item.member.subset.sizing.batch_size for item in self._used}
        rng = random.Random(derived_seed(self.config.learning.seed, epoch))
        return epoch_batches([(groups[key], sizes[key[0]]) for key in sorted(groups)], rng)

    def _batch(self, loaded: Loaded, captions: list[str], latents: Tensor) -> Batch:
        items = [self._items[each.picture] for each in loaded.occurrences]
        reg = [item.member.subset.is_reg for item in items]
        weights = [self.config.dataset.prior_loss_weight if each else 1.0 for each in reg]
        return Batch(
            latents=latents,
            captions=captions,
            loss_weights=torch.tensor(weights),
            sizes=[item.picture.bucket.size for item in items],
            entries=[each.picture for each in loaded.occurrences],
            is_reg=reg,
            frames=[item.picture.frame(view) for item, view in zip(items, loaded.views, strict=True)],
            masks=loaded.masks,
        )

    def _caption(self, occurrence: Occurrence, step: int, total_steps: int) -> str:
        """The caption of a picture this time it comes up."""
        item = self._items[occurrence.picture]
        options, caption = item.member.subset.options, item.member.entry.caption
        rng = occurrence.random(self.config.learning.seed, "caption")
        if self._has_versions(options):
            dropped = is_dropped(options, rng, occurrence.epoch)
            return "" if dropped else self._variant(item, rng.randrange(self.caption_variants))
        return process_caption(caption, options, rng, occurrence.epoch, step, total_steps)

    def _has_versions(self, options: SubsetOptions) -> bool:
        """Whether captions with these options come up in a few versions; those that grow with the steps cannot."""
        return self.caption_variants > 0 and options.changes_tags and options.token_warmup_step == 0

    def _variant(self, item: _Item, number: int) -> str:
        """One of the caption's versions; the same each time."""
        rng = random_for(self.config.learning.seed, "caption variant", item.picture.index, number)
        return caption_version(item.member.entry.caption, item.member.subset.options, rng)


def epoch_batches(groups: Sequence[tuple[Sequence[_Member], int]], rng: random.Random) -> list[list[_Member]]:
    """An epoch's batches of (members, batch size) groups: shuffled within each, cut there, then in random order."""
    batches = []
    for members, batch_size in groups:
        shuffled = list(members)
        rng.shuffle(shuffled)
        batches += [shuffled[start : start + batch_size] for start in range(0, len(shuffled), batch_size)]
    rng.shuffle(batches)
    return batches


def _picture(index: int, member: Member, mask: Path | None) -> Picture:
    entry, options = member.entry, member.subset.options
    bucket = choose_bucket(entry.width, entry.height, member.subset.sizing)
    return Picture(index, entry.path, bucket, (entry.width, entry.height), options, entry.content_hash, mask)
