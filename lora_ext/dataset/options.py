"""What may differ from one folder of pictures to the next, under sd-scripts' names: the options of a subset."""

from __future__ import annotations

from dataclasses import dataclass

from lora_ext.config.face_crop import face_crop_range
from lora_ext.config.train_config import TrainConfig


@dataclass(frozen=True)
class SubsetOptions:
    """How the pictures and captions of one subset are treated; the defaults change nothing.

    `num_repeats` and `class_tokens` (the caption of pictures without one) are for folders whose name says neither.
    `face_crop_aug_range` is None or (smallest, largest) share of the picture. `token_warmup_step` below 1 is a share
    of all steps. `validation_split` is the share that is held out, drawn by `validation_seed`.
    """

    num_repeats: int = 1
    class_tokens: str = ""
    caption_extension: str = "auto"
    caption_prefix: str = ""
    caption_suffix: str = ""
    caption_separator: str = ","
    keep_tokens: int = 0
    keep_tokens_separator: str = ""
    secondary_separator: str = ""
    shuffle_caption: bool = False
    enable_wildcard: bool = False
    caption_dropout_rate: float = 0.0
    caption_dropout_every_n_epochs: int = 0
    caption_tag_dropout_rate: float = 0.0
    token_warmup_min: int = 1
    token_warmup_step: float = 0.0
    flip_aug: bool = False
    color_aug: bool = False
    random_crop: bool = False
    face_crop_aug_range: tuple[float, float] | None = None
    alpha_mask: bool = False
    conditioning_data_dir: str = ""
    resize_interpolation: str = "auto"
    validation_split: float = 0.0
    validation_seed: int = 0

    @property
    def changes_tags(self) -> bool:
        """Whether the words of a caption differ from time to time, so that it has many versions."""
        return (
            self.shuffle_caption
            or self.enable_wildcard
            or self.caption_tag_dropout_rate > 0
            or self.token_warmup_step > 0
        )

    @property
    def drops_captions(self) -> bool:
        """Whether a picture may come up without its whole caption."""
        return self.caption_dropout_rate > 0 or self.caption_dropout_every_n_epochs > 0


@dataclass(frozen=True)
class Sizing:
    """The sizes that the pictures of one dataset are trained in, and how many at once; lengths in pixels.

    `resolution` is "512" or "width,height", as in the settings.
    """

    resolution: str = "512"
    batch_size: int = 1
    enable_bucket: bool = True
    min_bucket_reso: int = 256
    max_bucket_reso: int = 1024
    bucket_reso_steps: int = 64
    bucket_no_upscale: bool = False


def subset_options(config: TrainConfig) -> SubsetOptions:
    """The options that the settings of a run give every subset."""
    dataset, captions, samples = config.dataset, config.captions, config.samples
    return SubsetOptions(
        num_repeats=dataset.num_repeats,
        class_tokens=dataset.class_tokens.strip(),
        caption_extension=dataset.caption_extension,
        caption_prefix=captions.caption_prefix,
        caption_suffix=captions.caption_suffix,
        caption_separator=captions.caption_separator,
        keep_tokens=captions.keep_tokens,
        keep_tokens_separator=captions.keep_tokens_separator,
        secondary_separator=captions.secondary_separator,
        shuffle_caption=captions.shuffle_caption,
        enable_wildcard=captions.enable_wildcard,
        caption_dropout_rate=captions.caption_dropout_rate,
        caption_dropout_every_n_epochs=captions.caption_dropout_every_n_epochs,
        caption_tag_dropout_rate=captions.caption_tag_dropout_rate,
        token_warmup_min=captions.token_warmup_min,
        token_warmup_step=captions.token_warmup_step,
        flip_aug=dataset.flip_aug,
        color_aug=dataset.color_aug,
        random_crop=dataset.random_crop,
        face_crop_aug_range=face_crop_range(dataset.face_crop_aug_range),
        alpha_mask=dataset.alpha_mask,
        conditioning_data_dir=dataset.conditioning_data_dir.strip(),
        resize_interpolation=dataset.resize_interpolation,
        validation_split=samples.validation_split,
        validation_seed=config.learning.seed if samples.validation_seed is None else samples.validation_seed,
    )


def run_sizing(config: TrainConfig) -> Sizing:
    """The sizes that the settings of a run give every dataset."""
    dataset = config.dataset
    return Sizing(
        resolution=dataset.resolution,
        batch_size=config.learning.train_batch_size,
        enable_bucket=dataset.enable_bucket,
        min_bucket_reso=dataset.min_bucket_reso,
        max_bucket_reso=dataset.max_bucket_reso,
        bucket_reso_steps=dataset.bucket_reso_steps,
        bucket_no_upscale=dataset.bucket_no_upscale,
    )
