"""The dataset report, and each of its warnings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lora_ext.config.train_config import make_config
from lora_ext.dataset.folders import DatasetScan, ImageEntry, Subset, Terms
from lora_ext.dataset.options import run_sizing, subset_options
from lora_ext.dataset.report import DatasetReport, count_batches, make_report


def entry(
    name: str, width: int = 512, height: int = 512, caption: str = "zbx, girl", file: bool = True, **facts: object
) -> ImageEntry:
    caption_file = Path(name).with_suffix(".txt") if file else None
    return ImageEntry(Path(name), width, height, caption, caption_file, **facts)  # type: ignore[arg-type]


def report_of(*entries: ImageEntry, repeats: int = 1, concept: str = "girl", **values: Any) -> DatasetReport:
    config = make_config(values)
    terms = Terms(subset_options(config), run_sizing(config))
    scan = DatasetScan([Subset(Path(f"{repeats}_girl"), repeats, concept, list(entries), terms)])
    return make_report(scan, config)


def test_counts() -> None:
    scan = DatasetScan(
        [
            Subset(Path("4_cat"), 4, "cat", [entry("a.png"), entry("b.png", 512, 768, "Cat , red hat, cat")]),
            Subset(Path("1_dog"), 1, "dog", [entry("c.png", caption="dog", file=False)]),
        ],
        problems=["a problem"],
        warnings=["a warning"],
    )
    report = make_report(scan, make_config({}))
    assert (report.pictures, report.captions, report.missing, report.repeats) == (3, 2, 1, 9)
    assert report.buckets == {(384, 640): 4, (512, 512): 5}
    assert [count_batches(report.buckets, size) for size in (1, 2, 4, 5, 100)] == [9, 5, 3, 2, 2]
    assert report.mean_ar_error == pytest.approx((512 / 768 - 384 / 640) / 3)
    assert report.tag_frequency == {"4_cat": {"zbx": 1, "girl": 1, "cat": 2, "red hat": 1}, "1_dog": {"dog": 1}}
    assert report.problems == ["a problem"] and report.warnings[0] == "a warning"
    assert report.summary() == [
        "3 pictures, 2 with a caption file, 1 without",
        "folders (pictures × repeats): 4_cat (2 × 4), 1_dog (1 × 1)",
        "9 pictures an epoch, in 2 sizes (384×640: 4, 512×512: 5)",
    ]
    assert json.loads(json.dumps(report.to_dict()))["buckets"] == {"384x640": 4, "512x512": 5}


def test_a_plain_dataset_gives_no_warning() -> None:
    assert report_of(*(entry(f"{number}.png") for number in range(10)), train_batch_size=2).warnings == []


@pytest.mark.parametrize(
    ("entries", "values", "beginning"),
    [
        ([entry("a.png", file=False)], {}, '1_girl: 1 of 1 pictures (a.png) without a caption file: trained as "girl"'),
        ([entry("a.png", caption="")], {}, "1 of 1 pictures (a.png) with an empty caption file"),
        (
            [entry("a.png", caption="a\nb", further_caption_lines=1)],
            {"enable_wildcard": True, "caption_suffix": "x"},
            "1 of 1 pictures (a.png) with captions of several lines: caption_prefix stands before the first",
        ),
        ([entry("a.png", further_caption_lines=2)], {}, "1 of 1 pictures (a.png) with captions of several lines"),
        ([entry("a.png", caption=r"rin \(fate\)")], {}, r"1 of 1 pictures (a.png) with escaped brackets \( \)"),
        ([entry("a.png", caption="blue_eyes, ^_^, >_<")], {}, "underscores in tags (blue_eyes): "),
        ([entry("a.png", 300, 300)], {}, "1 of 1 pictures (a.png) too small for the resolution 512×512"),
        (
            [entry("a.png", 320, 320)],
            {"bucket_no_upscale": True},
            "1 of 1 pictures (a.png) smaller than the resolution 512×512: trained at their own size",
        ),
        ([entry("a.png", transparent=True)], {}, "1 of 1 pictures (a.png) with transparency: trained on white"),
        ([entry("a.png")], {"alpha_mask": True}, "alpha_mask is on, and no picture has transparency"),
        (
            [entry("a.png"), entry("b_9_9_9_9.png")],
            {"face_crop_aug_range": "2.0,4.0"},
            "1 of 2 pictures (a.png) without a face in their names",
        ),
        (
            [entry("a.png", 600, 1200)],
            {"enable_bucket": False},
            "1 of 1 pictures (a.png) lose more than a quarter of their area to the crop: switch enable_bucket on",
        ),
        (
            [entry("a.png", 64, 64)],
            {"resolution": 64},
            "min_bucket_reso = 256 is above the resolution 64×64: every picture is cropped to one square; "
            "set min_bucket_reso to 32 and bucket_reso_steps to 8",
        ),
        (
            [entry(f"{number}.png", 512, 768) for number in range(4)] + [entry("s.png")],
            {},
            "4 of 5 pictures are portrait: ",
        ),
        (
            [entry(f"{number}.png") for number in range(15)],
            {"train_batch_size": 5},
            "train_batch_size = 5 is large for 15 pictures: an epoch has few updates",
        ),
        (
            [entry("a.png", content_hash="1"), entry("b.png", content_hash="2"), entry("c.png", content_hash="1")],
            {},
            "the same picture more than once (a.png = c.png): ",
        ),
    ],
)
def test_warnings(entries: list[ImageEntry], values: dict[str, Any], beginning: str) -> None:
    warnings = report_of(*entries, **values).warnings
    assert len(warnings) == 1 and warnings[0].startswith(beginning)


def test_transparency_that_is_a_mask_is_no_trouble() -> None:
    assert report_of(entry("a.png", transparent=True), entry("b.png"), alpha_mask=True).warnings == []


def test_missing_captions_of_a_flat_folder_teach_no_word() -> None:
    report = report_of(entry("a.png", caption="", file=False), concept="")
    assert len(report.warnings) == 1
    assert "trained with an empty one, which teaches no word" in report.warnings[0]


def test_captions_over_the_token_limit() -> None:
    scan = DatasetScan([Subset(Path("1_a"), 1, "a", [entry("a.png", caption="x " * 80), entry("b.png")])])
    report = make_report(scan, make_config({"max_token_length": 75}), lambda caption: len(caption.split()))
    assert report.warnings == [
        "1 of 2 pictures (a.png) with captions over 75 tokens: the rest is cut off; "
        "raise max_token_length or shorten them"
    ]


def test_unequal_concepts() -> None:
    scan = DatasetScan([Subset(Path("10_a"), 10, "a", [entry("a.png")]), Subset(Path("1_b"), 1, "b", [entry("b.png")])])
    (warning,) = make_report(scan, make_config({})).warnings
    assert warning.startswith("10_a comes up 10 times an epoch, 1_b 1 times")


def test_folders_of_one_name_are_weighed_each() -> None:
    subsets = [Subset(Path(f"{folder}/cat"), repeats, "", [entry("a.png")]) for folder, repeats in (("x", 9), ("y", 1))]
    (warning,) = make_report(DatasetScan(subsets), make_config({})).warnings
    assert warning.startswith("cat comes up 9 times an epoch, cat 1 times")


def test_weighted_captions_have_escaped_brackets() -> None:
    assert report_of(entry("a.png", caption=r"rin \(fate\)"), weighted_captions=True).warnings == []


def test_long_lists_of_names_are_cut() -> None:
    report = report_of(*(entry(f"{number}.png", transparent=True) for number in range(9)))
    assert report.warnings[0].startswith("9 of 9 pictures (0.png, 1.png, 2.png and 6 more) with transparency")
