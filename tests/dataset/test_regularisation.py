"""Regularisation pictures: dealt out as sd-scripts does, and weighed in the loss."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lora_ext.config.train_config import TrainConfig, make_config
from lora_ext.dataset.dataset import ImageDataset
from lora_ext.dataset.regularisation import raised_repeats
from lora_ext.dataset.report import make_report
from lora_ext.dataset.sources import scan_dataset
from lora_ext.protocols import UserError


@pytest.mark.parametrize(
    ("own", "wanted", "expected"),
    [
        ([1, 1, 1], 3, [1, 1, 1]),
        ([1, 1], 5, [3, 2]),
        ([1, 1, 1, 1], 2, [1, 1, 0, 0]),
        ([3, 3], 4, [3, 3]),
        ([3, 3, 3], 4, [3, 3, 0]),
        ([2, 1], 8, [5, 3]),
        ([2, 2, 1], 6, [3, 2, 1]),
        ([], 4, []),
        ([1, 1], 0, [0, 0]),
    ],
)
def test_repeats_are_raised_in_turn(own: list[int], wanted: int, expected: list[int]) -> None:
    assert raised_repeats(own, wanted) == expected


@given(own=st.lists(st.integers(1, 5), min_size=1, max_size=12), wanted=st.integers(0, 200))
def test_as_many_as_wanted_come_up(own: list[int], wanted: int) -> None:
    repeats = raised_repeats(own, wanted)
    assert wanted <= sum(repeats) < wanted + max(own)
    assert sum(repeats) == wanted or all(count in (0, one) for count, one in zip(repeats, own, strict=True))


def draw(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", (64, 64), (number * 9, 0, 0)).save(folder / f"{number}.png")


def config_for(tmp_path: Path, **values: object) -> TrainConfig:
    small = {"resolution": 64, "min_bucket_reso": 32, "bucket_reso_steps": 16}
    folders = {"train_data_dir": str(tmp_path / "train"), "reg_data_dir": str(tmp_path / "reg")}
    return make_config({**small, **folders, **values})


def test_fewer_regularisation_pictures_come_up_more_often(tmp_path: Path) -> None:
    draw(tmp_path / "train" / "3_cat", 3)
    draw(tmp_path / "reg" / "1_animal", 2)
    config = config_for(tmp_path, train_batch_size=4, prior_loss_weight=0.5)
    scan = scan_dataset(config)
    assert [(each.name, each.is_reg, each.concept) for each in scan.subsets] == [
        ("3_cat", False, "cat"), ("1_animal", True, "animal"),
    ]  # fmt: skip
    assert [member.repeats for member in scan.members] == [3, 3, 3, 5, 4]
    report = make_report(scan, config)
    assert (report.repeats, report.reg_repeats, report.batches_per_epoch, report.buckets) == (18, 9, 5, {(64, 64): 18})
    assert "9 of them are regularisation pictures" in report.summary()
    assert any(text.startswith("2 regularisation pictures for 9 pictures an epoch") for text in report.warnings)
    batches = ImageDataset(scan, config).epoch_order(1)
    assert len(batches) == 5
    assert (
        sorted(each.picture for batch in batches for each in batch) == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 5 + [4] * 4
    )


def test_regularisation_pictures_that_are_too_many_stay_unused(tmp_path: Path) -> None:
    draw(tmp_path / "train", 2)
    draw(tmp_path / "reg", 5)
    config = config_for(tmp_path, class_tokens="zbx cat")
    scan = scan_dataset(config)
    assert [member.repeats for member in scan.members] == [1, 1, 1, 1, 0, 0, 0]
    assert {entry.caption for entry in scan.subsets[0].images} == {"zbx cat"}
    assert {entry.caption for entry in scan.subsets[1].images} == {""}
    report = make_report(scan, config)
    assert (report.pictures, report.repeats) == (4, 4)
    assert any(text.startswith("3 of 5 regularisation pictures are not used") for text in report.warnings)
    assert ImageDataset(scan, config).captions == ["zbx cat", ""]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    draw(tmp_path / "train", 1)
    with pytest.raises(UserError, match="reg_data_dir = .*reg: there is no such folder"):
        scan_dataset(config_for(tmp_path))
