"""The demo's files: the checkpoint's size, layout and sanity, and the dataset's pictures and captions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from lora_ext.demo.assets import demo_checkpoint_path, demo_dataset_path
from lora_ext.demo.classify import classify
from lora_ext.demo.concept import detect_concept
from lora_ext.demo.drawing import SHAPES, Scene
from lora_ext.host.standalone.loader import LoadedCheckpoint, load_checkpoint


@pytest.fixture(scope="module")
def loaded() -> LoadedCheckpoint:
    return load_checkpoint(demo_checkpoint_path(), torch.device("cpu"), torch.float32)


def test_checkpoint_is_small_and_in_half_precision() -> None:
    path = demo_checkpoint_path()
    assert path.stat().st_size <= 16_000_000
    with safe_open(path, framework="pt") as file:
        assert file.metadata()["modelspec.architecture"] == "stable-diffusion-v1"
        dtypes = {file.get_slice(key).get_dtype() for key in file.keys() if not key.endswith("position_ids")}  # noqa: SIM118
    assert dtypes == {"F16"}


def test_checkpoint_has_exactly_the_models_keys(loaded: LoadedCheckpoint) -> None:
    assert not [name for name in loaded.missing if not name.endswith("position_ids")]
    assert loaded.unexpected == ()
    assert loaded.checkpoint.latent_scale == 0.18215


def test_unet_has_as_many_lora_targets_as_a_full_one(loaded: LoadedCheckpoint) -> None:
    inside = [
        name
        for name, module in loaded.checkpoint.unet.named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)
        and (".transformer_blocks." in name or name.endswith(("proj_in", "proj_out")))
    ]
    assert len(inside) == 192


def test_vae_keeps_what_a_scene_shows(loaded: LoadedCheckpoint) -> None:
    import random

    import numpy as np

    rng = random.Random(6)
    scenes = [Scene.random(rng) for _ in range(60)]
    pixels = torch.from_numpy(np.stack([np.asarray(scene.draw((64, 64))) for scene in scenes])).permute(0, 3, 1, 2)
    vae = loaded.checkpoint.vae
    with torch.no_grad():
        latents = vae.encode(pixels / 127.5 - 1.0).mean
        decoded = ((vae.decode(latents).clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1)
    assert 0.85 < float(latents.std()) * 0.18215 < 1.15
    readings = [classify(Image.fromarray(picture.numpy())) for picture in decoded]
    right = [
        (scene.shape, scene.color, scene.background) == (reading.shape, reading.color, reading.background)
        for scene, reading in zip(scenes, readings, strict=True)
    ]
    assert sum(right) >= 0.95 * len(right)


def pictures(folder: str = "10_sks house") -> list[Path]:
    return sorted((demo_dataset_path() / folder).glob("*.png"))


def test_dataset_has_mixed_sizes_one_trigger_and_one_missing_caption() -> None:
    assert sorted(folder.name for folder in demo_dataset_path().iterdir()) == ["10_sks house", "4_shape"]
    assert len(pictures()) == 20
    sizes = {Image.open(path).size for path in pictures()}
    assert {(64, 64), (96, 64), (64, 96), (128, 96)} <= sizes
    captions = {path: path.with_suffix(".txt") for path in pictures()}
    assert [path.name for path, caption in captions.items() if not caption.is_file()] == ["house-20.png"]
    assert all("sks house" in text.read_text(encoding="utf-8") for text in captions.values() if text.is_file())


def test_dataset_shows_the_concept_and_leaves_backgrounds_and_places_for_the_test() -> None:
    assert all(detect_concept(Image.open(path)) for path in pictures())
    backgrounds = {classify(Image.open(path)).background for path in pictures()}
    assert backgrounds == {"white", "pink", "black", "gray", "blue"}
    words = " ".join(path.read_text(encoding="utf-8") for path in demo_dataset_path().glob("*/*.txt"))
    assert not [unseen for unseen in ("top right", "bottom left", "cyan", "brown") if unseen in words]


def test_plain_pictures_show_every_shape_and_never_the_concept() -> None:
    plain = pictures("4_shape")
    readings = [classify(Image.open(path)) for path in plain]
    assert [reading.shape for reading in readings] == [shape for shape in sorted(SHAPES) for _ in range(3)]
    assert not any(detect_concept(Image.open(path)) for path in plain)
    captions = [path.with_suffix(".txt").read_text(encoding="utf-8") for path in plain]
    assert not [caption for caption in captions if "sks" in caption or "house" in caption]
