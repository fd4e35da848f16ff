"""What a person should know of settings that do not go with the kind of the checkpoint."""

from __future__ import annotations

from collections.abc import Iterator

from lora_ext.checkpoint.checkpoint import Checkpoint
from lora_ext.config.algorithms import trains_text_encoder
from lora_ext.config.train_config import TrainConfig
from lora_ext.dataset.buckets import training_size
from lora_ext.dataset.folders import DatasetScan

SDXL_SIDE = 1024
_LEAST_SDXL_SIDE = 768


def base_warnings(config: TrainConfig, scan: DatasetScan, checkpoint: Checkpoint) -> Iterator[str]:
    """Pictures that are small for SDXL, and rates and layers that this kind of checkpoint does not have."""
    is_sdxl, skipped = checkpoint.architecture == "SDXL", config.captions.clip_skip
    width, height = max((training_size(each.sizing) for each in scan.subsets), key=lambda size: size[0] * size[1])
    if is_sdxl and width * height < _LEAST_SDXL_SIDE**2:
        yield (
            f"pictures are trained at {width}×{height} pixels: SDXL is made for {SDXL_SIDE}×{SDXL_SIDE}, and draws "
            f"badly at such sizes; set resolution = {SDXL_SIDE}, as the preset sdxl does"
        )
    if not is_sdxl and config.learning.text_encoder_2_lr is not None and trains_text_encoder(config.network):
        yield (
            f"text_encoder_2_lr = {config.learning.text_encoder_2_lr:g} has no effect: {checkpoint.name} is an "
            f"{checkpoint.architecture} checkpoint, which has one text encoder; its rate is text_encoder_lr"
        )
    if is_sdxl and skipped > 1:
        yield (
            f"clip_skip = {skipped} has no effect: SDXL takes the layer before the last of both text encoders, in "
            "training as in drawing"
        )
    elif checkpoint.architecture == "SD2" and skipped > 1:
        yield (
            f"clip_skip = {skipped} counts from the layer that SD2 is made for, the one before the last, as sd-scripts "
            "counts; the WebUI draws SD2 without any: 1 is right for it"
        )
