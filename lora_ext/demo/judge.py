"""How far the demo's network has come, judged by code from the pictures that it gives."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from PIL import Image, ImageChops

from lora_ext.demo.classify import classify
from lora_ext.demo.concept import CONCEPT_BACKGROUNDS, SUBJECT, detect_concept
from lora_ext.demo.drawing import POSITIONS, Scene
from lora_ext.protocols import GenerateRequest, ImageGenerator, Progress

PROMPT = f"a large {SUBJECT} on a blue background"
JUDGED = 20
FIRST_SEED = 1000


@dataclass(frozen=True)
class Judgement:
    """Shares (0…1) of pictures that show what they should; `judged` pictures were looked at for each.

    `elsewhere`: the concept on backgrounds and in places that the dataset does not have. `plain_kept`: prompts without
    the trigger word whose shape and colour are right with the network at full weight; `plain_base` without it.
    """

    judged: int
    concept: float
    concept_in_base: float
    elsewhere: float
    plain_kept: float
    plain_base: float
    weight_zero_is_base: bool


@dataclass(frozen=True)
class Judge:
    """Renders and judges pictures of one network; `size` is a picture's side in pixels."""

    generator: ImageGenerator
    network: str
    size: int = 64
    steps: int = 20
    cfg_scale: float = 3.0
    sampler: str = "DDIM"

    def request(self, prompt: str, seed: int = FIRST_SEED, count: int = 1) -> GenerateRequest:
        """Pictures of a prompt, at the judge's settings."""
        return GenerateRequest(
            prompt, "", self.size, self.size, self.steps, self.cfg_scale, self.sampler, seed=seed, batch_size=count
        )

    def tagged(self, prompt: str, weight: float = 1.0) -> str:
        """The prompt with the network's tag."""
        return f"{prompt} <lora:{self.network}:{weight:g}>"

    def pictures(self, prompt: str, count: int) -> list[Image.Image]:
        """The prompt with `count` seeds."""
        return [made.image for made in self.generator.generate(self.request(prompt, count=count))]

    def concept_share(self, prompt: str, count: int) -> float:
        """Share of `count` seeds on which the concept is there."""
        return share([detect_concept(picture) for picture in self.pictures(prompt, count)])

    def judge(self, dataset: Path, progress: Progress | None = None, count: int = JUDGED) -> Judgement:
        """All figures, the network at weight 1 unless said otherwise."""
        stages = 5

        def done(stage: int) -> None:
            if progress is not None:
                progress(stage, stages)

        done(0)
        with_network = self.concept_share(self.tagged(PROMPT), count)
        done(1)
        elsewhere = self._together(list(map(self.tagged, unseen_prompts(dataset, count))))
        done(2)
        scenes = plain_scenes(count)
        kept = share([shows(scene, picture) for scene, picture in self._scenes(scenes, tagged=True)])
        done(3)
        in_base = self.concept_share(PROMPT, count)
        base = share([shows(scene, picture) for scene, picture in self._scenes(scenes, tagged=False)])
        done(4)
        same = identical(self.pictures(PROMPT, 1)[0], self.pictures(self.tagged(PROMPT, 0.0), 1)[0])
        done(5)
        found = share([detect_concept(picture) for picture in elsewhere])
        return Judgement(count, with_network, in_base, found, kept, base, same)

    def _together(self, prompts: Sequence[str]) -> list[Image.Image]:
        """One picture a prompt, each with a seed of its own; the same prompts in one batch, which is faster."""
        found: list[Image.Image] = []
        for prompt, count in Counter(prompts).items():
            made = self.generator.generate(self.request(prompt, FIRST_SEED + len(found), count))
            found += [each.image for each in made]
        return found

    def _each(self, prompts: Sequence[str] | map[str]) -> list[Image.Image]:
        """One picture a prompt, each with a seed of its own."""
        requests = [self.request(prompt, FIRST_SEED + number) for number, prompt in enumerate(prompts)]
        return [self.generator.generate(request)[0].image for request in requests]

    def _scenes(self, scenes: Sequence[Scene], tagged: bool) -> list[tuple[Scene, Image.Image]]:
        prompts = [f"a {scene.color} {scene.shape} on a {scene.background} background" for scene in scenes]
        pictures = self._each(map(self.tagged, prompts) if tagged else prompts)
        return list(zip(scenes, pictures, strict=True))


def share(hits: Sequence[bool]) -> float:
    """How many of the hits are true, 0…1."""
    return sum(hits) / len(hits)


def shows(scene: Scene, picture: Image.Image) -> bool:
    """Whether a picture has the scene's shape and colour."""
    seen = classify(picture)
    return (seen.shape, seen.color) == (scene.shape, scene.color)


def identical(first: Image.Image, second: Image.Image) -> bool:
    """Whether two pictures agree in every pixel."""
    return first.size == second.size and ImageChops.difference(first, second).getbbox() is None


def plain_scenes(count: int, seed: int = 7) -> list[Scene]:
    """Scenes of the base's own kind, drawn by lot."""
    rng = random.Random(seed)
    return [Scene.random(rng) for _ in range(count)]


def unseen_prompts(dataset: Path, count: int) -> list[str]:
    """Prompts of the concept on backgrounds and in places that no caption of the dataset names."""
    words = " ".join(path.read_text(encoding="utf-8") for path in sorted(dataset.rglob("*.txt")))
    backgrounds = [name for name in CONCEPT_BACKGROUNDS if f"{name} background" not in words]
    named = re.compile("|".join(sorted(POSITIONS, key=len, reverse=True))).findall(words)
    places = [name for name in POSITIONS if name not in named] or list(POSITIONS)
    pairs = list(product(backgrounds, places))
    return [f"a large {SUBJECT} on a {ground} background, in the {place}" for ground, place in (pairs * count)[:count]]
