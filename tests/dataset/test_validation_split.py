"""Held-out pictures: sd-scripts' rule, and never trained on.

By hand: its own split_train_val and ours agree on what is trained on in 1,416 cases (1 to 59 pictures, eight shares,
three seeds).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lora_ext.config.train_config import make_config
from lora_ext.dataset.folders import DatasetScan, ImageEntry, Subset, Terms
from lora_ext.dataset.options import SubsetOptions
from lora_ext.dataset.sources import scan_dataset
from lora_ext.dataset.validation_split import held_out_indices, split_validation


def subset(name: str, count: int, share: float, seed: int = 42, is_reg: bool = False, **options: object) -> Subset:
    entries = [ImageEntry(Path(name) / f"{number:02d}.png", 64, 64, "a", None) for number in range(count)]
    own = SubsetOptions(validation_split=share, validation_seed=seed, **options)  # type: ignore[arg-type]
    return Subset(Path(name), 5, "", entries, Terms(own, is_reg=is_reg))


@pytest.mark.parametrize(
    ("count", "share", "seed", "expected"),
    [
        (10, 0.2, 42, [0, 1]),
        (10, 0.2, 0, [6, 9]),
        (10, 0.25, 42, [0, 1]),
        (3, 0.5, 42, [2]),
        (1, 0.9, 42, []),
        (10, 0.0, 42, []),
    ],
)
def test_known_pictures_are_held_out(count: int, share: float, seed: int, expected: list[int]) -> None:
    assert held_out_indices(count, share, seed) == expected


@given(count=st.integers(1, 200), share=st.floats(0, 0.9), seed=st.integers(0, 2**32 - 1))
def test_shares_are_kept(count: int, share: float, seed: int) -> None:
    out = held_out_indices(count, share, seed)
    assert len(out) <= count * share + 1e-9 and len(out) > count * share - 1 - 1e-9
    assert out == sorted(set(out)) and all(0 <= index < count for index in out)


def test_each_subset_gives_its_share_and_regularisation_none() -> None:
    scan = DatasetScan(
        [
            subset("5_cat", 10, 0.2, flip_aug=True, shuffle_caption=True, caption_dropout_every_n_epochs=2),
            subset("5_dog", 10, 0.2, seed=0),
            subset("1_animal", 10, 0.2, is_reg=True),
            subset("5_bird", 4, 0.0),
        ],
        warnings=["kept"],
    )
    trained, held_out = split_validation(scan, make_config({}))
    assert held_out is not None and trained.warnings == ["kept"]
    assert [(each.name, len(each.images)) for each in trained.subsets] == [
        ("5_cat", 8), ("5_dog", 8), ("1_animal", 10), ("5_bird", 4),
    ]  # fmt: skip
    assert [(each.name, each.repeats, len(each.images)) for each in held_out.subsets] == [
        ("5_cat", 1, 2), ("5_dog", 1, 2),
    ]  # fmt: skip
    assert [entry.path.name for entry in held_out.images] == ["00.png", "01.png", "06.png", "09.png"]
    assert not {entry.path for entry in trained.images} & {entry.path for entry in held_out.images}
    options = held_out.subsets[0].options
    assert not (options.flip_aug or options.changes_tags or options.drops_captions)


def test_nothing_is_held_out_without_a_share() -> None:
    scan = DatasetScan([subset("5_cat", 10, 0.0)])
    assert split_validation(scan, make_config({})) == (scan, None)


def test_a_folder_of_held_out_pictures(tmp_path: Path) -> None:
    folder = tmp_path / "4_held"
    folder.mkdir()
    Image.new("RGB", (64, 64)).save(folder / "a.png")
    config = make_config({"validation_data_dir": str(folder), "flip_aug": True, "validation_split": 0.5})
    scan = DatasetScan([subset("5_cat", 4, 0.5)])
    trained, held_out = split_validation(scan, config)
    assert trained == scan and held_out is not None
    assert [(each.repeats, each.options.flip_aug, len(each.images)) for each in held_out.subsets] == [(1, False, 1)]


def test_broken_held_out_pictures_are_problems(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"nothing")
    scan = DatasetScan([subset("5_cat", 4, 0.0)], problems=["one"])
    trained, _ = split_validation(scan, make_config({"validation_data_dir": str(tmp_path)}))
    assert trained.problems[0] == "one" and "b.png: broken picture" in trained.problems[1]
    assert scan == replace(trained, problems=["one"])


def test_a_share_that_comes_to_no_picture_is_told() -> None:
    scan = DatasetScan([subset("5_cat", 8, 0.1), subset("1_animal", 30, 0.1, is_reg=True)], warnings=["one"])
    trained, held_out = split_validation(scan, make_config({}))
    assert held_out is None and trained.subsets == scan.subsets and trained.warnings[0] == "one"
    assert "validation_split = 0.1 holds none of 8 pictures out" in trained.warnings[1] and trained.problems == []
    patient = make_config({"early_stopping_patience": 3, "validation_split": 0.1})
    (problem,) = split_validation(scan, patient)[0].problems
    assert problem.startswith("early_stopping_patience = 3: no picture is held out")
    assert "raise it to 0.13, or give" in trained.warnings[1] and held_out_indices(8, 0.13, 42)


def test_held_out_pictures_have_masks_of_their_own(tmp_path: Path) -> None:
    """One of the same name, and of another size, belongs to a picture that is trained on."""
    for name, size in (("held", (64, 64)), ("masks", (128, 64))):
        (tmp_path / name).mkdir()
        Image.new("RGB", size).save(tmp_path / name / "a.png")
    config = make_config(
        {
            "validation_data_dir": str(tmp_path / "held"), "conditioning_data_dir": str(tmp_path / "masks"),
            "masked_loss": True,
        }
    )  # fmt: skip
    trained, _ = split_validation(DatasetScan([subset("5_cat", 4, 0.0)]), config)
    assert [problem.partition(": ")[2].partition(",")[0] for problem in trained.problems] == ["the mask is 128×64"]


def test_pictures_that_are_trained_on_too_are_told(tmp_path: Path) -> None:
    config = make_config({"train_data_dir": str(tmp_path / "5_cat"), "validation_data_dir": str(tmp_path / "held")})
    for folder, grey in (("5_cat", 1), ("5_cat", 2), ("held", 2), ("held", 3)):
        (tmp_path / folder).mkdir(exist_ok=True)
        Image.new("L", (64, 64), grey).save(tmp_path / folder / f"{grey}.png")
    trained, _ = split_validation(scan_dataset(config), config)
    assert trained.warnings == [
        "validation_data_dir: 1 picture (2.png) trained on too, so that the validation loss falls whatever is "
        "learned: take them out of one of the two folders"
    ]
