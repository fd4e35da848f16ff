"""What is measured on: checkpoints, pictures, a network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from lora_ext.config.train_config import TrainConfig, make_config

PICTURES = 8


@dataclass(frozen=True)
class Size:
    """How large and how long a measurement is."""

    resolution: int
    batch: int
    training_steps: int
    images: int
    switches: int
    dtype: str = "auto"
    gradient_checkpointing: bool = False


SIZES = {
    "demo": Size(resolution=64, batch=4, training_steps=24, images=6, switches=20),
    "full": Size(resolution=64, batch=1, training_steps=6, images=2, switches=6),
    "sdxl": Size(256, 1, training_steps=2, images=1, switches=2, dtype="bfloat16", gradient_checkpointing=True),
}


def checkpoint_of(size: str, folder: Path) -> Path:
    """The demo checkpoint, or a full-size SD1 or SDXL of random weights in fp16."""
    if size == "demo":
        from lora_ext.demo.assets import demo_checkpoint_path

        return demo_checkpoint_path()
    import torch

    from lora_ext.host.standalone.random_checkpoint import FULL_KINDS, write_random_kind

    path = folder / f"{size}-size.safetensors"
    write_random_kind(path, FULL_KINDS["sdxl" if size == "sdxl" else "sd1"], torch.float16)
    return path


def write_pictures(folder: Path, resolution: int) -> None:
    """A few plain pictures with captions."""
    folder.mkdir(parents=True)
    for number in range(PICTURES):
        picture = Image.new("RGB", (resolution, resolution), (20 * number, 80, 200 - 20 * number))
        side = resolution // 2
        ImageDraw.Draw(picture).ellipse((number, number, side + number, side + number), fill=(250, 240, 20 * number))
        picture.save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a yellow circle, number {number}", encoding="utf-8")


def training_config(size: Size, resolution: int, pictures: Path, output: Path) -> TrainConfig:
    """A usual run: rank 8, U-Net and text encoder, one file at the end."""
    return make_config(
        {
            "train_data_dir": str(pictures),
            "output_dir": str(output),
            "output_name": "bench",
            "resolution": str(resolution),
            "min_bucket_reso": resolution,
            "network_dim": 8,
            "network_alpha": 8,
            "train_batch_size": size.batch,
            "max_train_epochs": "none",
            "max_train_steps": size.training_steps,
            "save_every_n_epochs": "none",
            "mixed_precision": "bf16" if size.dtype == "bfloat16" else "no",
            "gradient_checkpointing": size.gradient_checkpointing,
        }
    )
