"""Metadata files of sd-scripts, and lists of concepts of sd_dreambooth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lora_ext.config.train_config import make_config
from lora_ext.dataset.concepts import Concept, concept_caption
from lora_ext.dataset.folders import DatasetScan
from lora_ext.dataset.metadata_files import metadata_caption
from lora_ext.dataset.options import SubsetOptions
from lora_ext.dataset.sources import scan_dataset
from lora_ext.protocols import UserError


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("a.png", "b.jpg", "12 red hat.png"):
        Image.new("RGB", (64, 64), (len(name), 0, 0)).save(folder / name)
    return folder


def scan_file(file: Path, document: Any, **values: object) -> DatasetScan:
    text = document if isinstance(document, str) else json.dumps(document)
    file.write_text(text, encoding="utf-8")
    return scan_dataset(make_config({"dataset_config": str(file), **values}))


@pytest.mark.parametrize(
    ("values", "options", "expected"),
    [
        ({"caption": "a cat", "tags": "red, hat"}, {}, "a cat,red, hat"),
        ({"caption": "a cat"}, {}, "a cat"),
        ({"tags": "red, hat"}, {}, "red, hat"),
        ({"tags": ["red", "hat"]}, {}, "red,hat"),
        ({"caption": None}, {}, ""),
        ({"caption": "one\ntwo", "tags": "x\ny"}, {"enable_wildcard": True}, "one,x,y\ntwo,x,y"),
        ({"tags": "x"}, {"enable_wildcard": True}, "x"),
        ({"caption": "a", "tags": "b"}, {"caption_separator": ";"}, "a;b"),
    ],
)
def test_caption_and_tags_become_one(values: dict[str, Any], options: dict[str, Any], expected: str) -> None:
    assert metadata_caption(values, SubsetOptions(**options)) == expected


def test_metadata(pictures: Path, tmp_path: Path) -> None:
    document = {
        "a": {"caption": "a cat", "tags": "red", "train_resolution": [512, 512]},
        str(pictures / "b.jpg"): {"tags": "dog", "score": 3},
        "12 red hat.png": {},
    }
    found = scan_file(
        tmp_path / "meta.json", document, train_data_dir=str(pictures), num_repeats=4, class_tokens="zbx",
        reg_data_dir="reg", num_class_images=9,
    )  # fmt: skip
    (subset,) = found.subsets
    assert (subset.name, subset.repeats, subset.folder) == ("meta.json", 4, pictures)
    assert [(entry.path.name, entry.caption) for entry in found.images] == [
        ("a.png", "a cat,red"), ("b.jpg", "dog"), ("12 red hat.png", "zbx"),
    ]  # fmt: skip
    assert found.images[0].caption_file == tmp_path / "meta.json" and found.images[2].caption_file is None
    assert found.warnings == [
        "meta.json: train_resolution is not used: each picture's bucket is chosen anew",
        "meta.json: score: not used, unknown here",
        "reg_data_dir and num_class_images: not used, because dataset_config says what is trained on",
    ]


def test_metadata_by_lines_beside_the_pictures(pictures: Path) -> None:
    lines = '{"image_path": "a.png", "caption": "a cat", "image_size": [64, 64]}\n\n{"image_path": "b.jpg"}\n'
    found = scan_file(pictures / "meta.jsonl", lines)
    assert [(entry.path.name, entry.caption) for entry in found.images] == [("a.png", "a cat"), ("b.jpg", "")]


def test_a_key_that_names_no_file_is_a_problem(pictures: Path) -> None:
    found = scan_file(pictures / "meta.json", {"/": {"caption": "x"}, str(pictures / "a.png"): {"caption": "y"}})
    assert [problem.partition(": ")[2] for problem in found.problems] == [f"/: there is no such picture in {pictures}"]


def test_missing_pictures_are_problems(pictures: Path) -> None:
    found = scan_file(pictures / "meta.json", {"a.png": {"caption": "x"}, "gone.png": {"caption": "y"}})
    assert found.problems == [f"{pictures / 'meta.json'}: gone.png: there is no such picture in {pictures}"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("m.json", '{"a.png": {"caption": "x"}', r"m\.json, line 1, column 27: this is no JSON"),
        ("m.json", '{"a.png": "x"}', "a.png: allowed is an object with caption and tags"),
        ("m.json", '{"a.png": {"caption": 3}}', "a.png: caption = 3: allowed is text"),
        (
            "m.json",
            '{"z.png": {}}',
            "it names no picture that can be trained on[\\s\\S]*z.png: there is no such picture",
        ),
        ("m.json", "5", "allowed are tables of datasets, metadata or a list of concepts"),
        ("m.jsonl", '{"image_path": "a.png"}\n{"caption": "x"}', 'line 2: "image_path" is missing'),
        ("m.jsonl", "{", "m.jsonl, line 1: this is no JSON"),
        ("m.json", "[" * 100_000, "nested too deeply"),
    ],
)
def test_broken_metadata(pictures: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        scan_file(pictures / name, text)


@pytest.mark.parametrize(
    ("prompt", "words", "tokens", "is_class", "expected"),
    [
        ("photo of zbx, [filewords]", "red hat", ("", ""), False, "photo of zbx, red hat"),
        ("[filewords]", "a cat on a mat", ("zbx", "cat"), False, "zbx on a mat"),
        ("[filewords]", "a dog", ("zbx", "cat"), False, "zbx, a dog"),
        ("[filewords]", "zbx cat sits", ("zbx", "cat"), False, "zbx cat sits"),
        ("[filewords]", "zbx sits", ("zbx", "cat"), False, "zbx sits"),
        ("", "red hat", ("zbx", ""), False, "zbx, red hat"),
        ("photo of a cat", "", ("", "cat"), False, "photo of a cat"),
        ("[filewords]", "zbx cat sits", ("zbx", "cat"), True, "cat sits"),
        ("[filewords]", "zbx sits", ("zbx", "cat"), True, "cat sits"),
        ("[filewords]", "sits", ("zbx", "cat"), True, "cat, sits"),
        ("a photo", "", ("", "cat"), True, "cat, a photo"),
        ("[filewords]", r"rin \(fate\)", ("", ""), False, "rin (fate)"),
        ("[filewords]", "concatenate", ("zbx", "cat"), False, "zbx, concatenate"),
        ("[filewords]", "a cat sits", (r"z\1\q", "cat"), False, "z1q sits"),
        ("[filewords]", "zbx sits", ("zbx", r"c\q"), True, "cq sits"),
    ],
)
def test_filewords(prompt: str, words: str, tokens: tuple[str, str], is_class: bool, expected: str) -> None:
    concept = Concept("here", "x", instance_token=tokens[0], class_token=tokens[1])
    assert concept_caption(prompt, words, concept, is_class) == expected


def test_concepts(pictures: Path, tmp_path: Path) -> None:
    (pictures / "a.txt").write_text("a cat in the sun", encoding="utf-8")
    document = [
        {
            "instance_data_dir": "pictures", "class_data_dir": "classes", "instance_prompt": "photo, [filewords]",
            "class_prompt": "[filewords]", "instance_token": "zbx", "class_token": "cat", "num_class_images": 4,
            "class_negative_prompt": "ugly", "class_infer_steps": 30, "class_guidance_scale": 7.5,
            "n_save_sample": 2, "save_sample_prompt": "zbx",
        }
    ]  # fmt: skip
    found = scan_file(tmp_path / "concepts.json", document, num_repeats=3, resolution=64, min_bucket_reso=64)
    own, classes = found.subsets
    assert [(entry.path.name, entry.caption) for entry in own.images] == [
        ("12 red hat.png", "zbx, photo, red hat"), ("a.png", "photo, zbx in the sun"), ("b.jpg", "zbx, photo, b"),
    ]  # fmt: skip
    assert (own.repeats, own.is_reg, classes.repeats, classes.is_reg) == (3, False, 1, True)
    assert [(e.path.name, e.caption, e.width, e.height) for e in classes.images] == [
        ("class-00001.png", "cat, red hat", 64, 64), ("class-00002.png", "a cat in the sun", 64, 64),
        ("class-00003.png", "cat, b", 64, 64), ("class-00004.png", "cat, red hat", 64, 64),
    ]  # fmt: skip
    assert classes.folder == tmp_path / "classes"
    order = classes.images[0].order
    assert order is not None and (order.negative_prompt, order.steps, order.cfg_scale) == ("ugly", 30, 7.5)
    assert found.warnings == [
        "n_save_sample, save_sample_prompt in the list of concepts: not used, see the settings of samples"
    ]
    assert [member.repeats for member in found.members] == [3, 3, 3, 3, 2, 2, 2]


def test_class_pictures_that_are_there(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "classes").mkdir()
    for name in ("7 grey.png", "drawn.png"):
        Image.new("RGB", (64, 64)).save(tmp_path / "classes" / name)
    (tmp_path / "classes" / "drawn.txt").write_text("photo of a cat", encoding="utf-8")
    concept = {
        "instance_data_dir": "pictures",
        "class_data_dir": "classes",
        "class_prompt": "photo of a [filewords] cat",
    }
    found = scan_file(tmp_path / "concepts.json", [concept])
    assert [entry.caption for entry in found.subsets[1].images] == ["photo of a grey cat", "photo of a cat"]


def test_a_list_of_concepts_as_text_and_in_a_configuration(pictures: Path) -> None:
    concepts = [{"instance_data_dir": str(pictures), "instance_prompt": "zbx"}]
    for document in (concepts, {"concepts_list": concepts, "learning_rate": 1}):
        found = scan_dataset(make_config({"dataset_config": json.dumps(document)}))
        assert [entry.caption for entry in found.images] == ["zbx", "zbx", "zbx"]


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "concepts.json: the list of concepts is empty"),
        ([{}], "concepts.json, concept 1: instance_data_dir is missing"),
        ([3], "concept 1: allowed is an object with instance_data_dir"),
        ([{"instance_data_dir": "pictures", "instance_promt": "x"}], "instance_promt: .*did you mean instance_prompt"),
        ([{"instance_data_dir": "pictures", "num_class_images": "a"}], "num_class_images = 'a': allowed is a number"),
        ([{"instance_data_dir": "pictures", "class_prompt": 3}], "class_prompt = 3: allowed is text"),
        ([{"instance_data_dir": "gone"}], "concept 1: instance_data_dir = gone: there is neither"),
        ([{"instance_data_dir": "pictures", "class_data_dir": "gone"}], "gone: there is no such folder"),
    ],
)  # fmt: skip
def test_wrong_concepts(pictures: Path, tmp_path: Path, document: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        scan_file(tmp_path / "concepts.json", document)
