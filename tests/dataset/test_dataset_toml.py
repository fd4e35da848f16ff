"""sd-scripts' dataset file: levels, keys, paths, and what is said of wrong ones.

By hand: sd-scripts' own config_util (Feb 2026) and ours read a file of three datasets with seven subsets (repeats,
regularisation pictures, wildcards, three ways of buckets): all 42 pictures have the same repeats, bucket, scaled size,
caption and kind, and an epoch has 40 batches in both.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lora_ext.config.train_config import make_config
from lora_ext.dataset.dataset_facts import dataset_facts
from lora_ext.dataset.dataset_toml import (
    DATASET_OPTIONS,
    NOT_NEEDED,
    SUBSET_ONLY,
    SUBSET_OPTIONS,
    read_dataset_tables,
)
from lora_ext.dataset.folders import DatasetScan
from lora_ext.dataset.options import Sizing
from lora_ext.dataset.report import make_report
from lora_ext.dataset.sources import scan_dataset
from lora_ext.protocols import UserError

Scan = Callable[..., DatasetScan]


def draw(path: Path, caption: str | None = None, size: tuple[int, int] = (64, 64)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (len(path.name), 0, 0)).save(path)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")


@pytest.fixture
def scan(tmp_path: Path) -> Scan:
    """Scans a dataset file of this text, lying beside the folders cat (two pictures) and dog (one)."""
    for number in range(2):
        draw(tmp_path / "cat" / f"{number}.png", f"a cat {number}\nsecond line")
    draw(tmp_path / "dog" / "0.png")

    def read(text: str, name: str = "dataset.toml", **values: object) -> DatasetScan:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return scan_dataset(make_config({"dataset_config": str(tmp_path / name), **values}))

    return read


def test_every_key_of_sd_scripts_is_known() -> None:
    """As its config_util lists them (Feb 2026)."""
    assert set(SUBSET_OPTIONS) | set(DATASET_OPTIONS) | set(SUBSET_ONLY) | set(NOT_NEEDED) == {
        "color_aug", "face_crop_aug_range", "flip_aug", "num_repeats", "random_crop", "shuffle_caption", "keep_tokens",
        "keep_tokens_separator", "secondary_separator", "caption_separator", "enable_wildcard", "token_warmup_min",
        "token_warmup_step", "caption_prefix", "caption_suffix", "custom_attributes", "resize_interpolation",
        "caption_dropout_every_n_epochs", "caption_dropout_rate", "caption_tag_dropout_rate", "caption_extension",
        "class_tokens", "cache_info", "image_dir", "is_reg", "alpha_mask", "metadata_file", "conditioning_data_dir",
        "batch_size", "bucket_no_upscale", "bucket_reso_steps", "enable_bucket", "max_bucket_reso", "min_bucket_reso",
        "validation_seed", "validation_split", "resolution", "network_multiplier",
    }  # fmt: skip


def test_levels_stand_over_one_another(scan: Scan) -> None:
    found = scan(
        """
        [general]
        shuffle_caption = true
        keep_tokens = 1
        caption_extension = "txt"
        enable_bucket = true
        bucket_reso_steps = 32

        [[datasets]]
        resolution = [512, 768]
        batch_size = 2
        keep_tokens = 2
          [[datasets.subsets]]
          image_dir = "cat"
          num_repeats = 3
          keep_tokens = 4
          face_crop_aug_range = [2.0, 4.0]
          [[datasets.subsets]]
          image_dir = "dog"
          class_tokens = "zbx dog"
          is_reg = true
          shuffle_caption = false
        [[datasets]]
        resolution = 256
        enable_bucket = false
          [[datasets.subsets]]
          image_dir = "cat"
        """,
        caption_suffix="from the run",
        train_batch_size=7,
        resolution=64,
        min_bucket_reso=64,
    )
    cat, dog, small = found.subsets
    assert [(s.name, s.repeats, s.is_reg, s.terms.dataset, len(s.images)) for s in found.subsets] == [
        ("cat", 3, False, 0, 2), ("dog", 1, True, 0, 1), ("cat", 1, False, 1, 2),
    ]  # fmt: skip
    assert [(s.options.keep_tokens, s.options.shuffle_caption) for s in found.subsets] == [
        (4, True),
        (2, False),
        (1, True),
    ]
    assert {s.options.caption_suffix for s in found.subsets} == {"from the run"}
    assert {s.options.caption_extension for s in found.subsets} == {".txt"}
    assert cat.options.face_crop_aug_range == (2.0, 4.0) and dog.options.face_crop_aug_range is None
    assert cat.sizing == dog.sizing == Sizing("512,768", 2, True, 64, 1024, 32, False)
    assert small.sizing == Sizing("256", 7, False, 64, 1024, 32, False)
    assert [entry.caption for entry in found.images] == ["a cat 0", "a cat 1", "zbx dog", "a cat 0", "a cat 1"]


def test_regularisation_pictures_take_nothing_of_the_subjects_settings(scan: Scan, tmp_path: Path) -> None:
    """Neither the trigger word, nor its masks and repeats; what the file says of all of them counts."""
    text = """
        [general]
        {}
        [[datasets]]
          [[datasets.subsets]]
          image_dir = "cat"
          [[datasets.subsets]]
          image_dir = "dog"
          is_reg = true
        """
    settings = {"class_tokens": "zbx", "num_repeats": 5, "conditioning_data_dir": str(tmp_path), "caption_prefix": "p"}
    found = scan(text.format(""), **settings)
    cat, dog = found.subsets
    assert (cat.concept, cat.repeats, cat.options.conditioning_data_dir) == ("zbx", 5, str(tmp_path))
    assert (dog.concept, dog.repeats, dog.options.conditioning_data_dir) == ("", 1, "")
    told = 'caption_prefix = "p" stands before the captions of regularisation pictures too (dog)'
    assert any(text.startswith(told) for text in make_report(found, make_config({})).warnings)
    _, dog = scan(text.format('class_tokens = "a dog"\nnum_repeats = 2'), **settings).subsets
    assert (dog.concept, dog.repeats) == ("a dog", 2)


def test_wildcards_keep_all_lines_of_a_caption(scan: Scan) -> None:
    text = '[[datasets]]\n[[datasets.subsets]]\nimage_dir = "cat"\nenable_wildcard = true'
    assert scan(text).images[0].caption == "a cat 0\nsecond line"


def test_datasets_never_share_batches(scan: Scan) -> None:
    text = """
        [[datasets]]
        batch_size = 4
          [[datasets.subsets]]
          image_dir = "cat"
          num_repeats = 3
        [[datasets]]
        batch_size = 2
          [[datasets.subsets]]
          image_dir = "cat"
          [[datasets.subsets]]
          image_dir = "dog"
    """
    small = {"resolution": 64, "min_bucket_reso": 32, "bucket_reso_steps": 16}
    report = make_report(scan(text, **small), make_config(small))
    assert (report.repeats, report.buckets, report.batches_per_epoch) == (9, {(64, 64): 9}, 2 + 2)
    assert [folder.name for folder in report.folders] == ["cat", "cat (2)", "dog"]
    assert set(report.tag_frequency) == {"cat", "cat (2)", "dog"}


def test_what_a_networks_file_says_of_the_datasets(scan: Scan) -> None:
    text = """
        [[datasets]]
        resolution = 64
        min_bucket_reso = 32
        bucket_reso_steps = 16
        batch_size = 3
          [[datasets.subsets]]
          image_dir = "cat"
          num_repeats = 2
          keep_tokens = 1
          caption_prefix = "zbx"
          [[datasets.subsets]]
          image_dir = "dog"
          is_reg = true
        [[datasets]]
        enable_bucket = false
        resolution = 64
          [[datasets.subsets]]
          image_dir = "dog"
    """
    first, second = json.loads(json.dumps(dataset_facts(scan(text))))
    subsets = first.pop("subsets")
    assert first == {
        "is_dreambooth": True, "batch_size_per_device": 3, "num_train_images": 4, "num_reg_images": 1,
        "resolution": [64, 64], "enable_bucket": True, "min_bucket_reso": 32, "max_bucket_reso": 1024,
        "tag_frequency": {"cat": {"a cat 0": 1, "a cat 1": 1}, "dog": {}},
        "bucket_info": {"buckets": {"0": {"resolution": [64, 64], "count": 8}}},
    }  # fmt: skip
    assert subsets[0] == {
        "image_dir": "cat", "img_count": 2, "num_repeats": 2, "class_tokens": None, "is_reg": False,
        "color_aug": False, "flip_aug": False, "random_crop": False, "shuffle_caption": False, "keep_tokens": 1,
        "enable_wildcard": False, "keep_tokens_separator": None, "secondary_separator": None, "caption_prefix": "zbx",
        "caption_suffix": None, "resize_interpolation": None,
    }  # fmt: skip
    assert subsets[1]["is_reg"] is True
    assert (second["min_bucket_reso"], second["enable_bucket"], second["num_train_images"]) == (None, False, 1)


def test_the_text_itself_may_be_given(tmp_path: Path) -> None:
    draw(tmp_path / "cat" / "a.png", "a cat")
    text = f"[[datasets]]\n[[datasets.subsets]]\nimage_dir = '{tmp_path / 'cat'}'"
    found = scan_dataset(make_config({"dataset_config": text, "train_data_dir": "unused"}))
    assert [entry.caption for entry in found.images] == ["a cat"]
    assert found.warnings == ["train_data_dir: not used, because dataset_config says what is trained on"]


def test_the_same_in_json(scan: Scan) -> None:
    document = {"general": {"num_repeats": 2}, "datasets": [{"subsets": [{"image_dir": "dog", "cache_info": True}]}]}
    found = scan(json.dumps(document), "dataset.json")
    assert [(subset.name, subset.repeats) for subset in found.subsets] == [("dog", 2)]
    assert any("cache_info in the dataset file does nothing here" in text for text in found.warnings)


def test_folders_inside_a_subset_are_not_read(scan: Scan, tmp_path: Path) -> None:
    draw(tmp_path / "cat" / "old" / "c.png")
    found = scan('[[datasets]]\n[[datasets.subsets]]\nimage_dir = "cat"')
    assert len(found.images) == 2
    assert "cat/old: 1 picture left out, because folders inside this one are not read: move them up" in found.warnings


def test_a_folder_twice_in_a_dataset_is_used_once(scan: Scan) -> None:
    found = scan('[[datasets]]\n[[datasets.subsets]]\nimage_dir = "cat"\n[[datasets.subsets]]\nimage_dir = "./cat"')
    assert len(found.images) == 2
    assert "cat stands twice in one dataset: only the first is used; raise its num_repeats instead" in found.warnings


def test_everything_that_is_wrong_is_said_at_once(scan: Scan) -> None:
    with pytest.raises(UserError) as raised:
        scan(
            """
            extra = 1
            [general]
            flip_aug = "perhaps"
            image_dir = "cat"
            [[datasets]]
            resolution = "large"
            shuffel_caption = true
              [[datasets.subsets]]
              image_dir = "cat"
              batch_size = 2
              num_repeats = 0
            [[datasets]]
              [[datasets.subsets]]
              is_reg = 1
            [[datasets]]
            """
        )
    text = str(raised.value)
    for line in (
        "dataset.toml: extra: a dataset file holds [general] and [[datasets]] alone",
        "dataset.toml, [general]: flip_aug = 'perhaps': allowed is true or false",
        "dataset.toml, [general]: image_dir belongs into [[datasets.subsets]]",
        "dataset.toml, [[datasets]] 1: shuffel_caption: there is no such key; did you mean shuffle_caption",
        "dataset.toml, [[datasets]] 1, subset 1: batch_size belongs into [[datasets]] or [general]",
        "dataset.toml, [[datasets]] 1, subset 1: num_repeats = 0: allowed is a whole number from 1 to 10000",
        "dataset.toml, [[datasets]] 2, subset 1: is_reg = 1: allowed is true or false",
        "dataset.toml, [[datasets]] 3: subsets is to be a list of tables, and it is missing",
    ):
        assert line in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[datasets]]\n[[datasets.subsets]]\nimage_dir = cat", "dataset.toml cannot be read as TOML: .*line 3"),
        ('[[datasets]]\n[[datasets.subsets]]\nimage_dir = "C:\\pics"', "write paths with / or in 'single quotes'"),
        ("", "datasets is to be a list of tables, and it is missing"),
        ("datasets = 3", "datasets is to be a list of tables, and it is 3"),
        ("datasets = [3]", "datasets holds 3, which is no table"),
        ("general = 3\n[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'cat'", r"\[general\] is to be a table"),
        ("[[datasets]]\n[[datasets.subsets]]\nnum_repeats = 2", "subset 1: image_dir is missing"),
        ("[[datasets]]\n[[datasets.subsets]]\nimage_dir = 3", "image_dir = 3: allowed is text"),
        (
            "[[datasets]]\nresize_interpolation = {a = 1}\n[[datasets.subsets]]\nimage_dir = 'cat'",
            "resize_interpolation = {'a': 1}: allowed is one of auto",
        ),
        (
            "[[datasets]]\nkeep_tokens = [1]\n[[datasets.subsets]]\nimage_dir = 'cat'",
            r"keep_tokens = \[1\]: allowed is one value",
        ),
        (
            "[[datasets]]\nresolution = 1536\n[[datasets.subsets]]\nimage_dir = 'cat'",
            "subset 1: max_bucket_reso = 1024 is below the resolution 1536",
        ),
        (
            "[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'cat'\nis_reg = true",
            "^cat: regularisation pictures alone",
        ),
    ],
)  # fmt: skip
def test_wrong_files(scan: Scan, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        scan(text)


def test_a_missing_folder_says_where_was_looked(scan: Scan, tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        scan('[[datasets]]\n[[datasets.subsets]]\nimage_dir = "bird"\n[[datasets.subsets]]\nimage_dir = "fish"')
    text = str(raised.value)
    assert (
        f"[[datasets]] 1, subset 1: image_dir = bird: there is neither {Path.cwd() / 'bird'} nor {tmp_path / 'bird'}"
        in text
    )
    assert "subset 2: image_dir = fish" in text


@pytest.mark.parametrize("name", ["nowhere.toml", "notes.txt"])
def test_a_file_that_is_none(tmp_path: Path, name: str) -> None:
    (tmp_path / "notes.txt").write_text("hello", encoding="utf-8")
    with pytest.raises(UserError, match=r"dataset_config = .*(no such file|no dataset file); give a dataset \.toml"):
        scan_dataset(make_config({"dataset_config": str(tmp_path / name)}))


leaves = st.one_of(
    st.none(), st.booleans(), st.integers(-9, 9), st.floats(), st.sampled_from(["", "cat", "512", "\x00", "~nobody/x"]),
    st.lists(st.integers(0, 3), max_size=2), st.just({"a": 1}),
)  # fmt: skip
names = st.sampled_from([*SUBSET_OPTIONS, *DATASET_OPTIONS, *SUBSET_ONLY, *NOT_NEEDED, "subsets", "other"])
tables = st.dictionaries(names, leaves, max_size=5)
subsets = st.one_of(leaves, st.lists(st.one_of(leaves, tables), max_size=2))
datasets = st.builds(lambda own, inner: {**own, "subsets": inner}, tables, subsets)
documents = st.dictionaries(
    st.sampled_from(["general", "datasets", "more"]),
    st.one_of(leaves, tables, st.lists(st.one_of(leaves, datasets), max_size=2)),
)


@settings(deadline=None, max_examples=100)
@given(document=documents)
def test_any_document_is_read_or_refused_in_words(document: dict[str, Any]) -> None:
    try:
        entries, _ = read_dataset_tables(document, "file", make_config({}))
    except UserError as error:
        assert "file" in str(error)
    else:
        assert entries and all(entry.image_dir or entry.metadata_file for entry in entries)


@pytest.mark.parametrize("path", ["~nobody-here/pictures", "x" * 5000, "a\x00b"])
def test_paths_that_no_file_system_takes(path: str) -> None:
    text = f"[[datasets]]\n[[datasets.subsets]]\nimage_dir = {json.dumps(path)}"
    with pytest.raises(UserError, match=r"image_dir = .*: there is no|dataset_config"):
        scan_dataset(make_config({"dataset_config": text}))
    for name in ("train_data_dir", "dataset_config"):
        with pytest.raises(UserError, match=name):
            scan_dataset(make_config({name: path}))
