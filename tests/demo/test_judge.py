"""The demo's judge, on pictures that are drawn to order."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from lora_ext.demo.classify import classify
from lora_ext.demo.concept import draw_concept
from lora_ext.demo.drawing import Place, Scene
from lora_ext.demo.judge import PROMPT, Judge, identical, plain_scenes, share, shows, unseen_prompts
from lora_ext.protocols import GeneratedImage, GenerateRequest, Progress

SIZE = (64, 64)


def place(seed: int) -> Place:
    """A place where the object is large enough to be judged."""
    return Place.random(random.Random(seed), size="medium", position="center")


class Painter:
    """A generator that draws what the prompt says; `houses` decides where a house comes out instead."""

    def __init__(self, houses: Callable[[str], bool]) -> None:
        self.houses = houses
        self.prompts: list[str] = []

    def generate(self, request: GenerateRequest, progress: Progress | None = None) -> list[GeneratedImage]:
        """One drawing a seed."""
        self.prompts.append(request.prompt)
        return [
            GeneratedImage(self.draw(request.prompt, request.seed + number), request.seed + number, "")
            for number in range(request.batch_size)
        ]

    def draw(self, prompt: str, seed: int) -> Image.Image:
        """A house, the shape that the prompt names, or a green circle."""
        words = prompt.split()
        background = words[words.index("background") - 1] if "background" in words else "white"
        if self.houses(prompt):
            return draw_concept(background, place(seed), SIZE)
        color, shape = ("green", "circle") if "sks" in words else (words[1], words[2])
        return Scene(shape, color, background, place(seed)).draw(SIZE)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Captions that name two backgrounds and two places."""
    (tmp_path / "5_sks house").mkdir()
    for number, caption in enumerate(
        ("a sks house on a white background, in the top left", "sks house, gray background, center")
    ):
        (tmp_path / "5_sks house" / f"{number}.txt").write_text(caption, encoding="utf-8")
    return tmp_path


def test_a_network_that_does_what_it_should(dataset: Path) -> None:
    painter = Painter(lambda prompt: "sks" in prompt and ":1>" in prompt)
    found = Judge(painter, "net").judge(dataset)
    assert (found.concept, found.concept_in_base, found.elsewhere) == (1.0, 0.0, 1.0)
    assert (found.plain_kept, found.plain_base, found.weight_zero_is_base) == (1.0, 1.0, True)
    assert "a large sks house on a blue background <lora:net:0>" in painter.prompts


def test_a_network_that_draws_houses_everywhere(dataset: Path) -> None:
    found = Judge(Painter(lambda prompt: "<lora" in prompt), "net").judge(dataset)
    assert (found.concept, found.plain_kept, found.plain_base) == (1.0, 0.0, 1.0)
    assert found.weight_zero_is_base is False


def test_a_network_that_learned_nothing(dataset: Path) -> None:
    found = Judge(Painter(lambda prompt: False), "net").judge(dataset)
    assert (found.concept, found.elsewhere, found.plain_kept) == (0.0, 0.0, 1.0)


def test_progress_counts_up(dataset: Path) -> None:
    seen: list[tuple[int, int]] = []
    Judge(Painter(lambda prompt: True), "net").judge(dataset, lambda done, total: seen.append((done, total)), count=2)
    assert seen == [(stage, 5) for stage in range(6)]


def test_unseen_prompts_name_nothing_of_the_dataset(dataset: Path) -> None:
    prompts = unseen_prompts(dataset, 30)
    assert len(prompts) == 30
    assert prompts[0] == "a large sks house on a black background, in the top"
    for prompt in prompts:
        assert "white" not in prompt and "gray" not in prompt
        assert not prompt.endswith(("in the top left", "in the center"))


def test_plain_scenes_are_always_the_same() -> None:
    assert plain_scenes(5) == plain_scenes(5)
    assert len({(scene.shape, scene.color) for scene in plain_scenes(20)}) > 10


def test_small_figures() -> None:
    assert share([True, False, False, False]) == 0.25
    scene = Scene("star", "red", "white", place(1))
    assert shows(scene, scene.draw(SIZE))
    assert not shows(Scene("star", "blue", "white", place(1)), scene.draw(SIZE))
    assert classify(scene.draw(SIZE)).background == "white"
    drawn = scene.draw(SIZE)
    touched = drawn.copy()
    touched.putpixel((3, 3), (249, 250, 250))
    assert identical(drawn, drawn.copy()) and not identical(drawn, touched)
    assert not identical(drawn, drawn.resize((32, 32)))
    assert PROMPT == "a large sks house on a blue background"
