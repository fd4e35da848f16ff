"""The demo checkpoint draws what prompts ask for, on combinations that its training never showed."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from lora_ext.demo.assets import demo_checkpoint_path
from lora_ext.demo.classify import classify
from lora_ext.demo.concept import detect_concept
from lora_ext.demo.drawing import Scene, held_out_combinations, sentence
from lora_ext.host.standalone.host import StandaloneHost
from lora_ext.protocols import GenerateRequest

pytestmark = pytest.mark.slow


def test_shape_colour_and_background_are_right_together_and_no_house_appears(tmp_path: Path) -> None:
    host = StandaloneHost(demo_checkpoint_path(), tmp_path, device="cpu")
    rng = random.Random(0)
    right = houses = 0
    combinations = held_out_combinations()
    assert len(combinations) == 72
    for seed, combination in enumerate(combinations):
        scene = Scene.random(rng, combination)
        prompt = sentence(f"{scene.color} {scene.shape}", scene.background, scene.place, True, True)
        request = GenerateRequest(prompt, width=64, height=64, steps=20, cfg_scale=5.0, sampler="DDIM", seed=seed)
        picture = host.generate(request)[0].image
        reading = classify(picture)
        right += (reading.shape, reading.color, reading.background) == combination
        houses += detect_concept(picture)
    assert right >= 0.85 * len(combinations)
    assert houses == 0
