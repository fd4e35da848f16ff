"""The grid's cells against single generations by a generator whose picture depends on the request alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from lora_ext.grid.drawing import cell_size, draw_grid
from lora_ext.grid.render import epoch_weight_grid, network_weight_grid
from lora_ext.protocols import GeneratedImage, GenerateRequest, Progress, UserError


class HashPainter:
    """Draws a plain picture whose colour is the hash of prompt and seed."""

    def __init__(self) -> None:
        self.requests: list[GenerateRequest] = []

    def generate(self, request: GenerateRequest, progress: Progress | None = None) -> list[GeneratedImage]:
        self.requests.append(request)
        colour = tuple(hashlib.sha256(f"{request.prompt}|{request.seed}".encode()).digest()[:3])
        picture = Image.new("RGB", (request.width, request.height), colour)
        messages = ("a word to the user",) if "lora" in request.prompt else ()
        return [GeneratedImage(picture, request.seed, f"{request.prompt}\nSeed: {request.seed}", messages)]


class StarFiles:
    """A network `star` with the given epochs; the last one is `star.safetensors`."""

    def __init__(self, epochs: Sequence[int | None]) -> None:
        self.files = [(epoch, Path(f"star-{epoch:06}.safetensors")) for epoch in epochs[:-1] if epoch is not None]
        self.files.append((epochs[-1], Path("star.safetensors")))  # type: ignore[arg-type]

    def find(self, name: str) -> Path | None:
        return self.files[-1][1] if name == "star" else None

    def names(self) -> list[str]:
        return ["star"]

    def epochs_of(self, name: str) -> list[tuple[int | None, Path]]:
        return list(self.files) if name == "star" else []


REQUEST = GenerateRequest("a zib star", width=64, height=64, steps=5, seed=7)


def test_cells_are_single_generations() -> None:
    painter, alone = HashPainter(), HashPainter()
    calls: list[tuple[int, int]] = []
    grid = epoch_weight_grid(
        painter,
        REQUEST,
        "star",
        [1, 2, 3],
        [0.5, 1.0],
        StarFiles([1, 2, 3]),
        progress=lambda done, total: calls.append((done, total)),
    )
    assert grid.columns == ("none", "epoch 1", "epoch 2", "epoch 3 (last)")
    assert grid.rows == ("weight 0.5", "weight 1")
    prompts = [[cell.request.prompt for cell in row] for row in grid.cells]
    assert prompts == [
        [
            "a zib star",
            "a zib star <lora:star-000001:0.5>",
            "a zib star <lora:star-000002:0.5>",
            "a zib star <lora:star:0.5>",
        ],
        [
            "a zib star",
            "a zib star <lora:star-000001:1>",
            "a zib star <lora:star-000002:1>",
            "a zib star <lora:star:1>",
        ],
    ]
    for cell in (cell for row in grid.cells for cell in row):
        single = alone.generate(replace(REQUEST, prompt=cell.request.prompt))[0]
        assert cell.image.tobytes() == single.image.tobytes()
        assert cell.infotext == single.infotext
    assert len(painter.requests) == 7  # the picture without a network only once
    assert calls == [(done, 7) for done in range(8)]
    assert grid.messages == ("a word to the user",)


def test_block_weights_and_steps_of_the_tag_are_in_every_cell() -> None:
    request = replace(REQUEST, prompt="a <lora:star:0.3:lbw=OUTALL:stop=10> b")
    grid = epoch_weight_grid(HashPainter(), request, "star", [1, 2], [0.5], StarFiles([1, 2]))
    assert [cell.request.prompt for cell in grid.cells[0]] == [
        "a  b",
        "a <lora:star-000001:0.5:lbw=OUTALL:stop=10> b",
        "a <lora:star:0.5:lbw=OUTALL:stop=10> b",
    ]


def test_every_epoch_by_default_and_the_last_one_last() -> None:
    grid = epoch_weight_grid(HashPainter(), REQUEST, "star", None, [1], StarFiles([1, 2, 10]), include_none=False)
    assert grid.columns == ("epoch 1", "epoch 2", "epoch 10 (last)")
    grid = epoch_weight_grid(HashPainter(), REQUEST, "star", ["last", 1], [1], StarFiles([1, None]))
    assert grid.columns == ("none", "epoch 1", "last")
    grid = epoch_weight_grid(HashPainter(), REQUEST, "star", [10, "last", 1], [1], StarFiles([1, 10]))
    assert grid.columns == ("none", "epoch 1", "epoch 10 (last)")


class TwoFiles(StarFiles):
    """`star` and a smaller one made of it."""

    def find(self, name: str) -> Path | None:
        return Path(f"{name}.safetensors") if name in ("star", "star-small") else None


def test_networks_side_by_side() -> None:
    request = replace(REQUEST, prompt="a zib <lora:star-small:0.3> star")
    grid = network_weight_grid(HashPainter(), request, ["star", "star-small"], [0.5, 1.0], TwoFiles([1]))
    assert grid.columns == ("none", "star", "star-small")
    assert [[cell.request.prompt for cell in row] for row in grid.cells] == [
        ["a zib  star", "a zib <lora:star:0.5> star", "a zib <lora:star-small:0.5> star"],
        ["a zib  star", "a zib <lora:star:1> star", "a zib <lora:star-small:1> star"],
    ]
    with pytest.raises(UserError, match="moon: there is no network of this name"):
        network_weight_grid(HashPainter(), REQUEST, ["star", "moon"], [1.0], TwoFiles([1]))


def test_missing_epochs_are_refused_before_the_first_picture() -> None:
    painter = HashPainter()
    with pytest.raises(UserError, match="star has no file of epoch 4, 6: there are 1, 2, 3, and last"):
        epoch_weight_grid(painter, REQUEST, "star", [1, 4, 6], [1], StarFiles([1, 2, 3]))
    with pytest.raises(UserError, match="moon: there is no network of this name; there are star"):
        epoch_weight_grid(painter, REQUEST, "moon", [1], [1], StarFiles([1, 2, 3]))
    with pytest.raises(UserError, match="weights: none are given"):
        epoch_weight_grid(painter, REQUEST, "star", [1], [], StarFiles([1, 2, 3]))
    assert painter.requests == []


def test_a_random_seed_is_the_same_in_every_cell() -> None:
    painter = HashPainter()
    epoch_weight_grid(painter, replace(REQUEST, seed=-1, batch_size=4), "star", None, [1], StarFiles([1, 2]))
    assert len({request.seed for request in painter.requests}) == 1
    assert painter.requests[0].seed >= 0
    assert {request.batch_size for request in painter.requests} == {1}


def test_sheet_shows_each_picture_enlarged(tmp_path: Path) -> None:
    red, blue = Image.new("RGB", (64, 64), (200, 0, 0)), Image.new("RGB", (64, 64), (0, 0, 200))
    sheet = draw_grid([[red, blue]], ["one", "two"], ["row"], heading="a heading", remark="seed 1")
    colours = {colour: count for count, colour in sheet.getcolors(1 << 20)}
    assert cell_size((64, 64)) == (192, 192)
    assert colours[(200, 0, 0)] == colours[(0, 0, 200)] == 192 * 192
    assert sheet.getpixel((0, 0)) == (255, 255, 255)
    assert cell_size((512, 768)) == (512, 768)


def test_saved_sheet_carries_infotext(tmp_path: Path) -> None:
    grid = epoch_weight_grid(HashPainter(), REQUEST, "star", None, [1], StarFiles([1, 2]))
    grid.save(tmp_path / "new" / "grid.png")
    with Image.open(tmp_path / "new" / "grid.png") as picture:
        assert picture.text["parameters"] == "a zib star <lora:star:1>\nSeed: 7"
