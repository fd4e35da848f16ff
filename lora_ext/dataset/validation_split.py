"""Which pictures are held out to measure progress, and never trained on."""

from __future__ import annotations

import math
import random
from dataclasses import replace

from lora_ext.config.train_config import TrainConfig
from lora_ext.dataset.folder_scan import Inspect, scan_folder
from lora_ext.dataset.folders import DatasetScan, Subset, Terms, count_of, some_of
from lora_ext.dataset.images import inspect_image
from lora_ext.dataset.masks import mask_problems
from lora_ext.dataset.options import SubsetOptions, run_sizing, subset_options


def split_validation(
    scan: DatasetScan, config: TrainConfig, inspect: Inspect = inspect_image
) -> tuple[DatasetScan, DatasetScan | None]:
    """(what is trained on, what is held out): a share of each subset, or the folder of the settings; None: nothing is.

    Regularisation pictures are never held out. Held-out pictures come up once, as they are: no flips, no dropouts.
    """
    if config.samples.validation_data_dir.strip():
        held_out = DatasetScan()
        terms = Terms(as_measured(subset_options(config)), run_sizing(config))
        scan_folder("validation_data_dir", config.samples.validation_data_dir, terms, held_out, inspect)
        held_out.subsets = [replace(subset, repeats=1) for subset in held_out.subsets]
        problems = [*held_out.problems, *(mask_problems(held_out) if config.loss.masked_loss else [])]
        warnings = [*held_out.warnings, *_trained_too(scan, held_out)]
        both = replace(scan, problems=[*scan.problems, *problems], warnings=[*scan.warnings, *warnings])
        return both, held_out
    parts = [_split(subset) for subset in scan.subsets]
    measured = [subset for _, subset in parts if subset.images]
    if not measured:
        warnings, problems = _too_few(scan), _nothing_to_stop_by(config)
        told = replace(scan, problems=[*scan.problems, *problems], warnings=[*scan.warnings, *warnings])
        return told, None
    trained = [subset for subset, _ in parts if subset.images]
    return replace(scan, subsets=trained), DatasetScan(measured)


def as_measured(options: SubsetOptions) -> SubsetOptions:
    """The options without everything that makes a picture or its caption differ from time to time."""
    return replace(
        options,
        shuffle_caption=False,
        caption_dropout_rate=0.0,
        caption_dropout_every_n_epochs=0,
        caption_tag_dropout_rate=0.0,
        token_warmup_step=0.0,
        flip_aug=False,
        color_aug=False,
        random_crop=False,
        face_crop_aug_range=None,
    )


def held_out_indices(count: int, share: float, seed: int) -> list[int]:
    """Places, in order, of the pictures of a subset that are held out, drawn as sd-scripts does.

    The first ⌈count · (1 − share)⌉ of a shuffled list are trained on, the rest held out. (There it is the last
    round(count · share), which may be one more: that one is trained on as well.)
    """
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return sorted(order[math.ceil(count * (1 - share)) :])


def _trained_too(scan: DatasetScan, held_out: DatasetScan) -> list[str]:
    """What is said of held-out pictures that are trained on as well."""
    trained = {entry.content_hash for entry in scan.images}
    names = [entry.path.name for entry in held_out.images if entry.content_hash in trained]
    if not names:
        return []
    return [
        f"validation_data_dir: {count_of(len(names), 'picture')} ({some_of(names)}) trained on too, so that the "
        "validation loss falls whatever is learned: take them out of one of the two folders"
    ]


def _too_few(scan: DatasetScan) -> list[str]:
    """What is said of shares that are so small that they come to no picture."""
    asked = [subset for subset in scan.subsets if subset.options.validation_split > 0 and not subset.is_reg]
    if not asked:
        return []
    largest = max(asked, key=lambda subset: len(subset.images))
    count = len(largest.images)
    raised = f"raise it to {math.ceil(100 / count) / 100:g}, or " if count > 1 else ""
    return [
        f"validation_split = {largest.options.validation_split:g} holds none of {count_of(count, 'picture')} out, so "
        f"that nothing is measured: {raised}give validation_data_dir"
    ]


def _nothing_to_stop_by(config: TrainConfig) -> list[str]:
    """What is said of an early stop that is wanted, where nothing is measured."""
    patience = config.samples.early_stopping_patience
    if patience is None:
        return []
    return [
        f"early_stopping_patience = {patience}: no picture is held out, so that the run would never end early; hold "
        "some out (validation_split or validation_data_dir), or set early_stopping_patience to none"
    ]


def _split(subset: Subset) -> tuple[Subset, Subset]:
    """(what is trained on, what is held out) of a subset."""
    options = subset.options
    out: set[int] = set()
    if options.validation_split > 0 and not subset.is_reg:
        out = set(held_out_indices(len(subset.images), options.validation_split, options.validation_seed))
    trained = [entry for index, entry in enumerate(subset.images) if index not in out]
    measured = [entry for index, entry in enumerate(subset.images) if index in out]
    terms = replace(subset.terms, options=as_measured(options))
    return replace(subset, images=trained), replace(subset, images=measured, repeats=1, terms=terms)
