"""Values of pictures, captions and masks that fight each other."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from lora_ext.config.face_crop import face_crop_range

if TYPE_CHECKING:
    from lora_ext.config.train_config import TrainConfig

_Problem = tuple[tuple[str, ...], str]


def dataset_contradictions(config: TrainConfig) -> Iterable[_Problem]:
    """Settings of the dataset that leave nothing to learn: (names involved, what is wrong and what to set)."""
    dataset = config.dataset
    by_file = dataset.dataset_config.strip()
    if config.loss.masked_loss and not (dataset.alpha_mask or dataset.conditioning_data_dir.strip() or by_file):
        yield (
            ("masked_loss", "alpha_mask", "conditioning_data_dir"),
            "masked_loss is on and there are no masks: switch alpha_mask on (transparency), or give "
            "conditioning_data_dir (a folder of masks)",
        )
    if dataset.num_class_images and not by_file:
        for name in ("reg_data_dir", "class_prompt"):
            if not getattr(dataset, name).strip():
                yield (
                    ("num_class_images", name),
                    f"num_class_images = {dataset.num_class_images} needs {name}: class pictures are drawn from "
                    "class_prompt into reg_data_dir; give both, or set num_class_images to 0",
                )
    try:
        face_crop_range(dataset.face_crop_aug_range)
    except ValueError:
        yield (
            ("face_crop_aug_range",),
            f"face_crop_aug_range = {dataset.face_crop_aug_range!r}: allowed are the smallest and the largest size "
            "with a comma between them, such as 2.0,4.0",
        )
    yield from _caption_contradictions(config)


def _caption_contradictions(config: TrainConfig) -> Iterable[_Problem]:
    captions = config.captions
    if not captions.caption_separator.strip():
        yield ("caption_separator",), "caption_separator is empty: give what stands between tags, a comma as a rule"
    if captions.secondary_separator.strip() and captions.secondary_separator == captions.caption_separator:
        yield (
            ("secondary_separator", "caption_separator"),
            f"secondary_separator = {captions.secondary_separator!r} is caption_separator too, so that nothing is held "
            "together: choose another sign, or leave it out",
        )
