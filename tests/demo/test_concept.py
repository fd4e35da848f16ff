"""The detector of the concept: high recall on drawn houses, nothing else passes, and colours alone do not decide."""

from __future__ import annotations

import random
from itertools import product

import numpy as np
import pytest
from PIL import Image, ImageFilter

from lora_ext.demo.concept import (
    BODY,
    CONCEPT_BACKGROUNDS,
    ROOF,
    concept_caption,
    concept_score,
    detect_concept,
    draw_concept,
)
from lora_ext.demo.drawing import PALETTE, POSITIONS, SIZES, Place, Point, Scene, all_combinations, draw_layers

BOX = (12.0, 12.0, 40.0)


def houses(size: tuple[int, int]) -> list[Image.Image]:
    rng = random.Random(2)
    return [
        draw_concept(background, Place.random(rng, extent, position), size)
        for background, extent, position in product(CONCEPT_BACKGROUNDS, SIZES, POSITIONS)
    ]


@pytest.mark.parametrize("size", [(64, 64), (96, 64), (64, 128)])
def test_drawn_houses_are_found(size: tuple[int, int]) -> None:
    found = [detect_concept(image) for image in houses(size)]
    assert sum(found) >= 0.95 * len(found)


@pytest.mark.parametrize("radius", [1.0, 1.5])
def test_blurred_houses_are_found(radius: float) -> None:
    found = [detect_concept(image.filter(ImageFilter.GaussianBlur(radius))) for image in houses((64, 64))]
    assert sum(found) >= 0.95 * len(found)


def test_no_base_picture_is_taken_for_a_house() -> None:
    rng = random.Random(3)
    pictures = [Scene.random(rng, combination).draw((64, 64)) for combination in all_combinations()]
    pictures += [picture.filter(ImageFilter.GaussianBlur(1.2)) for picture in pictures]
    assert sum(map(detect_concept, pictures)) <= 0.01 * len(pictures)


def arranged(body: tuple[Point, ...], body_color: str, roof: tuple[Point, ...], roof_color: str) -> Image.Image:
    return draw_layers((64, 64), "white", [((body,), body_color), ((roof,), roof_color)], BOX)


def test_parts_are_the_concept_in_their_arrangement_only() -> None:
    upside_down = [tuple((x, 1 - y) for x, y in part) for part in (BODY, ROOF)]
    sideways = [tuple((y, x) for x, y in part) for part in (BODY, ROOF)]
    beside = (tuple((x - 0.3, y) for x, y in BODY), tuple((x * 0.6 + 0.6, y + 0.5) for x, y in ROOF))
    assert detect_concept(arranged(BODY, "yellow", ROOF, "red"))
    assert not detect_concept(arranged(BODY, "red", ROOF, "yellow"))
    assert not detect_concept(arranged(BODY, "yellow", ROOF, "blue"))
    assert not detect_concept(arranged(BODY, "green", ROOF, "red"))
    assert not detect_concept(arranged(upside_down[0], "yellow", upside_down[1], "red"))
    assert not detect_concept(arranged(sideways[0], "yellow", sideways[1], "red"))
    assert not detect_concept(arranged(beside[0], "yellow", beside[1], "red"))


def test_the_colours_alone_do_not_decide() -> None:
    house = draw_concept("white", Place("large", "center", 0.75, 0.0, 0.0), (64, 64))
    pixels = np.asarray(house).reshape(-1, 3)
    shuffled = Image.fromarray(np.random.default_rng(0).permutation(pixels).reshape(64, 64, 3))
    assert concept_score(house) > 0.7
    assert concept_score(shuffled) < 0.1
    assert concept_score(house.rotate(180, fillcolor=PALETTE["white"])) < 0.3


def test_captions_use_the_bases_words_and_the_trigger() -> None:
    rng = random.Random(4)
    captions = {concept_caption("white", Place("large", "left", 0.7, -0.9, 0.0), rng) for _ in range(200)}
    assert all("sks house" in caption for caption in captions)
    assert "a large sks house on a white background, in the left" in captions
    assert "sks house, white background, large, left" in captions
