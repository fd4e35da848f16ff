"""Draw the demo dataset: `python -m tools.make_demo_dataset` from the repository's root writes it into the assets."""

from __future__ import annotations

import argparse
import random
import shutil
from pathlib import Path

from lora_ext.demo.concept import SUBJECT, draw_concept
from lora_ext.demo.drawing import COLORS, SHAPES, SIZES, Place, Scene, sentence

FOLDER = f"10_{SUBJECT}"
PLAIN_FOLDER = "4_shape"
BACKGROUNDS = ("white", "pink", "black", "gray", "blue")
POSITIONS = ("center", "left", "bottom right", "top", "right", "bottom", "top left")
PICTURE_SIZES = ((64, 64), (96, 64), (64, 96), (64, 64), (128, 96), (96, 96))
COUNT = 20
PLAIN_PER_SHAPE = 3


def write_dataset(folder: Path, seed: int) -> int:
    """Write the house's pictures with their captions, the last one without; returns how many pictures there are.

    Backgrounds and positions that are not in this module's lists never occur: they are kept for the test of
    generalisation.
    """
    rng = random.Random(seed)
    folder.mkdir(parents=True)
    sizes = list(SIZES)
    for number in range(COUNT):
        background = BACKGROUNDS[number % len(BACKGROUNDS)]
        place = Place.random(rng, sizes[number % len(sizes)], POSITIONS[number % len(POSITIONS)])
        path = folder / f"house-{number + 1:02d}.png"
        draw_concept(background, place, PICTURE_SIZES[number % len(PICTURE_SIZES)]).save(path, optimize=True)
        if number + 1 < COUNT:
            text = caption(background, place, number) + "\n"
            path.with_suffix(".txt").write_text(text, encoding="utf-8", newline="\n")
    return COUNT


def write_plain(folder: Path, seed: int) -> int:
    """Write pictures of the base's own shapes, so that its words keep their meaning; returns how many there are.

    They have the house's backgrounds and positions only.
    """
    rng = random.Random(seed)
    folder.mkdir(parents=True)
    for number, shape in enumerate(SHAPES * PLAIN_PER_SHAPE):
        background = BACKGROUNDS[number % len(BACKGROUNDS)]
        color = rng.choice([name for name in COLORS if name != background])
        scene = Scene(shape, color, background, Place.random(rng, position=POSITIONS[number % len(POSITIONS)]))
        path = folder / f"{shape}-{number // len(SHAPES) + 1}.png"
        scene.draw(PICTURE_SIZES[0]).save(path, optimize=True)
        path.with_suffix(".txt").write_text(scene.caption(rng) + "\n", encoding="utf-8", newline="\n")
    return len(SHAPES) * PLAIN_PER_SHAPE


def caption(background: str, place: Place, number: int) -> str:
    """Everything that the picture shows: every third time as tags, else as a sentence."""
    if number % 3 == 2:
        return f"{SUBJECT}, {background} background, {place.size}, {place.position}"
    return sentence(SUBJECT, background, place, with_size=number % 2 == 0, with_position=True)


def main() -> None:
    """Replace the dataset in the assets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("lora_ext/assets/demo-dataset"))
    parser.add_argument("--seed", type=int, default=16)
    options = parser.parse_args()
    for name, write in ((FOLDER, write_dataset), (PLAIN_FOLDER, write_plain)):
        folder = options.out / name
        if folder.exists():
            shutil.rmtree(folder)
        print(f"{write(folder, options.seed)} pictures in {folder}")


if __name__ == "__main__":
    main()
