"""Scenes, captions and pictures of the demo world."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest

from lora_ext.demo.drawing import (
    BACKGROUNDS,
    COLORS,
    PALETTE,
    POSITIONS,
    SHAPES,
    SIZES,
    Place,
    Scene,
    all_combinations,
    held_out_combinations,
    sentence,
    shape_polygons,
    training_combinations,
)

CENTER = Place("large", "center", 0.75, 0.0, 0.0)


def test_sentence_says_everything_or_leaves_parts_out() -> None:
    place = Place("large", "top left", 0.75, -1.0, -1.0)
    everything = "a large red circle on a blue background, in the top left"
    assert sentence("red circle", "blue", place, True, True) == everything
    assert sentence("orange star", "white", place, False, False) == "an orange star on a white background"
    assert sentence("orange star", None, place, False, True) == "an orange star, in the top left"


def test_captions_are_sentences_and_tags_and_always_name_colour_and_shape() -> None:
    rng = random.Random(3)
    captions = [Scene("heart", "green", "pink", CENTER).caption(rng) for _ in range(300)]
    assert all("green heart" in caption for caption in captions)
    assert {"a large green heart on a pink background, in the center", "green heart, pink background"} <= set(captions)
    sentences = sum(caption.startswith(("a ", "an ")) for caption in captions)
    assert 150 < sentences < 210
    assert sum("pink background" not in caption for caption in captions) > 5


def test_words_of_the_concept_are_unknown_to_the_base() -> None:
    rng = random.Random(4)
    words = " ".join(Scene.random(rng).caption(rng) for _ in range(500))
    assert "house" not in words
    assert "sks" not in words


@pytest.mark.parametrize("shape", SHAPES)
def test_shape_and_background_have_the_palettes_colours(shape: str) -> None:
    pixels = np.asarray(Scene(shape, "red", "cyan", CENTER).draw((64, 64)))
    colors = Counter(map(tuple, pixels.reshape(-1, 3).tolist()))
    assert {color for color, _ in colors.most_common(2)} == {PALETTE["red"], PALETTE["cyan"]}
    assert tuple(pixels[0, 0]) == PALETTE["cyan"]


def test_a_square_fills_its_box_and_a_ring_has_a_hole() -> None:
    square = np.asarray(Scene("square", "black", "white", CENTER).draw((64, 64)))[..., 0] < 128
    assert square.sum() == 44 * 44  # 0.9 of a 48-pixel box, on whole pixels
    ring = np.asarray(Scene("ring", "black", "white", CENTER).draw((64, 64)))[..., 0] < 128
    assert not ring[32, 32]
    assert ring[32, 12]


@pytest.mark.parametrize(("size", "shape"), [((64, 96), (96, 64, 3)), ((128, 64), (64, 128, 3))])
def test_pictures_need_not_be_square(size: tuple[int, int], shape: tuple[int, int, int]) -> None:
    assert np.asarray(Scene("star", "red", "white", CENTER).draw(size)).shape == shape


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("size", SIZES)
def test_places_lie_inside_the_picture_on_the_named_side(position: str, size: str) -> None:
    rng = random.Random(f"{position} {size}")
    for _ in range(20):
        left, top, side = Place.random(rng, size, position).box(64, 96)
        assert 0 <= left <= 64 - side
        assert 0 <= top <= 96 - side
        center_x, center_y = left + side / 2 - 32, top + side / 2 - 48
        assert (center_x < 0) == (POSITIONS[position][0] < 0) or POSITIONS[position][0] == 0
        assert (center_y > 0) == (POSITIONS[position][1] > 0) or POSITIONS[position][1] == 0


def test_fifteen_per_cent_of_the_combinations_are_held_out_and_their_parts_are_not() -> None:
    held_out, training = set(held_out_combinations()), set(training_combinations())
    assert (len(all_combinations()), len(held_out), len(training)) == (480, 72, 408)
    assert not held_out & training
    assert held_out | training == set(all_combinations())
    assert {shape for shape, _, _ in training} == set(SHAPES)
    assert {(color, background) for _, color, background in training} == {
        (color, background) for color in COLORS for background in BACKGROUNDS if color != background
    }


def test_random_scenes_are_never_held_out() -> None:
    rng = random.Random(5)
    scenes = [Scene.random(rng) for _ in range(500)]
    assert not {(scene.shape, scene.color, scene.background) for scene in scenes} & set(held_out_combinations())


def test_the_same_seed_draws_the_same_picture() -> None:
    first, second = (Scene.random(random.Random(9)).draw((64, 64)).tobytes() for _ in range(2))
    assert first == second


def test_an_unknown_shape_is_named() -> None:
    with pytest.raises(ValueError, match="'blob' is unknown; known are circle"):
        shape_polygons("blob")
