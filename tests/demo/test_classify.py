"""The classifier reads drawn pictures back, also blurred, noisy and in low resolution."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageFilter

from lora_ext.demo.classify import classify
from lora_ext.demo.drawing import Place, Scene, all_combinations


def same(image: Image.Image) -> Image.Image:
    return image


def blurred(image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(1.0))


def noisy(image: Image.Image) -> Image.Image:
    noise = np.random.default_rng(1).normal(0.0, 12.0, (image.height, image.width, 3))
    return Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))


def coarse(image: Image.Image) -> Image.Image:
    small = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    return small.resize(image.size, Image.Resampling.BICUBIC)


@pytest.mark.parametrize("change", [same, blurred, noisy, coarse])
def test_at_least_99_per_cent_of_all_combinations_are_read_right(change: Callable[[Image.Image], Image.Image]) -> None:
    rng = random.Random(1)
    scenes = [Scene.random(rng, combination) for combination in all_combinations()]
    readings = [classify(change(scene.draw((64, 64)))) for scene in scenes]
    right = [
        (scene.shape, scene.color, scene.background) == (reading.shape, reading.color, reading.background)
        for scene, reading in zip(scenes, readings, strict=True)
    ]
    assert sum(right) >= 0.99 * len(scenes)


@pytest.mark.parametrize("size", [(64, 96), (96, 64), (128, 128)])
def test_other_sizes(size: tuple[int, int]) -> None:
    reading = classify(Scene("heart", "purple", "yellow", Place("medium", "bottom right", 0.6, 0.9, 0.9)).draw(size))
    assert (reading.shape, reading.color, reading.background) == ("heart", "purple", "yellow")
    assert reading.position == "bottom right"
    assert reading.confidence > 0.85


def test_an_empty_picture_has_a_background_alone() -> None:
    reading = classify(Image.new("RGB", (64, 64), (90, 215, 230)))
    assert (reading.shape, reading.color, reading.background, reading.confidence) == (None, None, "cyan", 0.0)
