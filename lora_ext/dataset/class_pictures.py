"""Regularisation pictures of a class that the loaded checkpoint draws itself, before the first step."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from lora_ext.config.given_path import given_path
from lora_ext.config.sample_prompts import sampler_name
from lora_ext.config.train_config import TrainConfig
from lora_ext.dataset.buckets import training_size
from lora_ext.dataset.dataset_paths import is_there
from lora_ext.dataset.folder_scan import Inspect, list_folder, repeats_and_concept, scan_folder
from lora_ext.dataset.folders import DatasetScan, ImageEntry, PictureOrder, Subset, Terms
from lora_ext.dataset.images import inspect_image
from lora_ext.dataset.seeds import random_for
from lora_ext.protocols import Control, Events, GenerateRequest, ImageGenerator, UserError

_PHASE = "drawing class pictures"


@dataclass(frozen=True)
class ClassPictures:
    """So many pictures are `wanted` in a folder; missing ones are drawn from the prompts in turn."""

    folder: Path
    prompts: Sequence[str]
    wanted: int
    negative_prompt: str = ""
    steps: int = 20
    cfg_scale: float = 7.0


def add_class_pictures(wanted: ClassPictures, terms: Terms, scan: DatasetScan, seed: int) -> None:
    """Put the pictures that are missing into the scan, as they will be; terms are those of regularisation pictures.

    They go to the folder's subset, or to the first N_name folder in it. A picture's name, prompt and seed depend on
    its number alone: what was drawn before an interruption is kept, and the rest comes out the same.
    """
    inside = [each for each in scan.subsets if each.is_reg and wanted.folder in (each.folder, each.folder.parent)]
    missing = wanted.wanted - sum(len(subset.images) for subset in inside)
    if missing <= 0:
        return
    if not inside:
        repeats, concept = repeats_and_concept(wanted.folder.name) or (terms.options.num_repeats, "")
        inside = [Subset(wanted.folder, repeats, concept or terms.options.class_tokens, [], terms)]
        scan.subsets += inside
    subset = inside[0]
    width, height = training_size(terms.sizing)
    extension = terms.options.caption_extension
    number = 0
    while missing:
        number += 1
        path = subset.folder / f"class-{number:05d}.png"
        if path.exists():
            continue
        order = PictureOrder(
            prompt=wanted.prompts[(number - 1) % len(wanted.prompts)],
            negative_prompt=wanted.negative_prompt,
            steps=wanted.steps,
            cfg_scale=wanted.cfg_scale,
            seed=random_for(seed, "class picture", number).randrange(2**32),
        )
        caption_file = path.with_suffix(".txt" if extension == "auto" else extension)
        subset.images.append(ImageEntry(path, width, height, order.prompt, caption_file, order=order))
        missing -= 1
    subset.images.sort(key=lambda entry: entry.path.name)  # as they are found the next time


def scan_class_folder(setting: str, text: str, wanted: int, terms: Terms, scan: DatasetScan, inspect: Inspect) -> Path:
    """Add the regularisation pictures of the folder that a setting names, and return it.

    Where some are `wanted` that may be drawn, the folder may be empty, or not there yet.
    """
    folder = Path(os.path.abspath(given_path(text)))
    if not wanted or _holds_pictures(folder):
        scan_folder(setting, text, terms, scan, inspect)
    return folder


def pictures_to_draw(scan: DatasetScan) -> list[ImageEntry]:
    """The pictures of a scan that are still to be drawn."""
    return [entry for entry in scan.images if entry.order is not None]


def check_class_pictures(scan: DatasetScan, generator: ImageGenerator | None) -> None:
    """Raise UserError where pictures are to be drawn, and cannot be."""
    to_draw = pictures_to_draw(scan)
    if not to_draw:
        return
    if generator is None:
        raise UserError(
            f"{len(to_draw)} class pictures are to be drawn, and this program renders none while it trains: "
            "set num_class_images = 0, or draw them before and put them into reg_data_dir"
        )
    for folder in {entry.path.parent for entry in to_draw}:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"{folder}: the folder for class pictures cannot be made ({error.strerror}): choose another"
            ) from error


def draw_class_pictures(
    scan: DatasetScan, config: TrainConfig, generator: ImageGenerator, events: Events, control: Control
) -> DatasetScan:
    """Draw what is missing into files, and return the scan with the facts of these.

    Raises Cancelled when the run is to end; what is drawn by then is kept.
    """
    total, done = len(pictures_to_draw(scan)), 0
    subsets = []
    for subset in scan.subsets:
        entries = []
        for entry in subset.images:
            if entry.order is not None:
                control.raise_if_stopping()
                events.phase(_PHASE, done, total)
                entry = _draw(entry, entry.order, config, generator, control)
                done += 1
            entries.append(entry)
        subsets.append(replace(subset, images=entries))
    if total:
        events.phase(_PHASE, done, total)
    return replace(scan, subsets=subsets)


def _draw(
    entry: ImageEntry, order: PictureOrder, config: TrainConfig, generator: ImageGenerator, control: Control
) -> ImageEntry:
    """Draw one picture into its file, the caption before it: a picture that is there has its caption."""

    def go_on(done: int, total: int) -> None:
        control.raise_if_stopping()

    request = GenerateRequest(
        prompt=order.prompt,
        negative_prompt=order.negative_prompt,
        width=entry.width,
        height=entry.height,
        steps=order.steps,
        cfg_scale=order.cfg_scale,
        sampler=sampler_name(config.samples.sample_sampler),
        seed=order.seed,
        clip_skip=config.captions.clip_skip,
    )
    (drawn,) = generator.generate(request, go_on)
    control.raise_if_stopping()  # the host may have given up in the middle
    try:
        if entry.caption_file is not None:
            entry.caption_file.write_text(order.prompt, encoding="utf-8")
        _save(drawn.image, entry.path)
    except OSError as error:
        raise UserError(f"{entry.path}: the class picture cannot be written ({error.strerror or error})") from error
    facts = inspect_image(entry.path)
    return replace(entry, width=facts.width, height=facts.height, content_hash=facts.content_hash, order=None)


def _holds_pictures(folder: Path) -> bool:
    """Whether pictures lie in a folder, or in an N_name folder in it."""
    if not is_there(folder) or not folder.is_dir():
        return False
    listing = list_folder(folder)
    inner = (list_folder(each) for each in listing.folders if repeats_and_concept(each.name))
    return any(each.pictures for each in (listing, *inner))


def _save(image: Image.Image, path: Path) -> None:
    """Write a picture so that it is there whole or not at all."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    image.save(unfinished, format="PNG")
    os.replace(unfinished, path)
