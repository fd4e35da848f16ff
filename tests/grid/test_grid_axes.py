"""Axes as data: any two give the same prompt in either order, always from the untouched base prompt."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from lora_ext.grid.axes import (
    NetworkChoice,
    chosen,
    epoch_axis,
    kept_arguments,
    network_axis,
    network_file,
    network_names,
    prompt_with,
    runs_with_epochs,
    tag_text,
    te_weight_axis,
    unet_weight_axis,
    weight_axis,
)
from lora_ext.protocols import UserError


class Shelf:
    """Two networks: `star` with epochs 1, 2 and 3 (the last), and `moon` with one file."""

    files = {
        "star": [
            (1, Path("star-000001.safetensors")),
            (2, Path("star-000002.safetensors")),
            (3, Path("star.safetensors")),
        ],
        "moon": [(None, Path("moon.safetensors"))],
    }

    def find(self, name: str) -> Path | None:
        return next((path for files in self.files.values() for _, path in files if path.stem == name), None)

    def names(self) -> list[str]:
        return sorted(self.files)

    def epochs_of(self, name: str) -> list[tuple[int | None, Path]]:
        return list(self.files.get(name, []))


AXES = [
    network_axis(["star", "moon", None]),
    epoch_axis([1, "last", None]),
    weight_axis([0.5, 1]),
    unet_weight_axis([0.25]),
    te_weight_axis([0.75]),
]


@pytest.mark.parametrize(("first", "second"), list(itertools.combinations(AXES, 2)))
def test_order_does_not_matter(first, second) -> None:
    for one, other in itertools.product(first.values, second.values):
        base = NetworkChoice("star")
        assert chosen(base, ((first, one), (second, other))) == chosen(base, ((second, other), (first, one)))


def test_none_on_either_axis_leaves_the_network_out() -> None:
    epochs, networks = AXES[1], AXES[0]
    assert not chosen(NetworkChoice("star"), ((epochs, epochs.values[2]), (networks, networks.values[0]))).used
    assert not chosen(NetworkChoice("star"), ((networks, networks.values[2]), (epochs, epochs.values[0]))).used


@pytest.mark.parametrize(
    ("choice", "tag"),
    [
        (NetworkChoice("star"), "<lora:star:1>"),
        (NetworkChoice("star", weight=0.1 + 0.2), "<lora:star:0.3>"),
        (NetworkChoice("star", weight=0.5, unet=0.25), "<lora:star:0.5:0.25>"),
        (NetworkChoice("star", weight=0.5, te=0.25), "<lora:star:0.25:0.5>"),
        (NetworkChoice("star", te=0.5, unet=0.5), "<lora:star:0.5>"),
    ],
)
def test_tag(choice: NetworkChoice, tag: str) -> None:
    assert tag_text("star", choice) == tag


@pytest.mark.parametrize(
    ("prompt", "tag", "expected"),
    [
        ("a star", "<lora:star:1>", "a star <lora:star:1>"),
        ("", "<lora:star:1>", "<lora:star:1>"),
        ("a <lora:star:0.3> b", "<lora:star:1>", "a <lora:star:1> b"),
        ("a <lyco:Star-000001:te=1:unet=0> b", "<lora:star:1>", "a <lora:star:1> b"),
        ("a <lora:star:1> <lora:star:1>", "<lora:star:0.5>", "a <lora:star:0.5>"),
        ("a <lora:moon:1>", "<lora:star:1>", "a <lora:moon:1> <lora:star:1>"),
        ("a <lora:star:1>", None, "a"),
        ("a <lora:moon:1>", None, "a <lora:moon:1>"),
    ],
)
def test_prompt(prompt: str, tag: str | None, expected: str) -> None:
    assert prompt_with(prompt, ("star", "star-000001"), tag) == expected


@pytest.mark.parametrize(
    ("prompt", "arguments"),
    [
        ("a star", ""),
        ("a <lora:star:0.3:0.4> b", ""),
        ("a <lora:star:1:lbw=OUTALL:stop=10:epoch=3> b", ":lbw=OUTALL:stop=10"),
        ("a <lora:star:te=1:step=2-5:unet=0:0.5:0.6:4>", ":dyn=4:step=2-5"),
        ("<lora:moon:1:start=2> <lora:star-000001:1:lbw=1,0> <lora:star:1:stop=3>", ":lbw=1,0"),
    ],
)
def test_what_a_tag_keeps(prompt: str, arguments: str) -> None:
    assert kept_arguments(prompt, ("star", "star-000001")) == arguments
    assert tag_text("star", NetworkChoice("star"), arguments) == f"<lora:star:1{arguments}>"


def test_files() -> None:
    shelf = Shelf()
    assert network_file(NetworkChoice("star"), shelf) == Path("star.safetensors")
    assert network_file(NetworkChoice("star", epoch=2), shelf) == Path("star-000002.safetensors")
    assert network_file(NetworkChoice("star", epoch="last"), shelf) == Path("star.safetensors")
    assert network_file(NetworkChoice("nothing", used=False), shelf) is None


def test_missing_files_are_named() -> None:
    with pytest.raises(UserError, match="star has no file of epoch 7: there are 1, 2, 3, and last"):
        network_file(NetworkChoice("star", epoch=7), Shelf())
    with pytest.raises(UserError, match="sun: there is no network of this name; there are moon, star"):
        network_file(NetworkChoice("sun"), Shelf())


def test_epochs_are_gathered_under_one_name() -> None:
    class Stems(Shelf):
        def names(self) -> list[str]:
            return ["moon", "other-000001", "star", "star-000001", "star-000002", "star-step00000010"]

        def epochs_of(self, name: str) -> list[tuple[int | None, Path]]:
            looked_at.append(name)
            return super().epochs_of(name)

    looked_at: list[str] = []
    assert network_names(Stems()) == ["moon", "other-000001", "star"]
    assert looked_at == ["other", "star"]  # once each: a look goes through all folders
    assert runs_with_epochs(Stems()) == [Shelf().epochs_of("star")]
