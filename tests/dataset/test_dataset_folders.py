"""What is found in dataset folders, and what is said about the rest."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from lora_ext.config.train_config import TrainConfig, make_config
from lora_ext.dataset.sources import scan_dataset
from lora_ext.protocols import UserError


def draw(path: Path, width: int = 16, height: int = 16, caption: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), (width % 256, height % 256, len(path.stem))).save(path)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path


def settings(folder: Path, **values: object) -> TrainConfig:
    return make_config({"train_data_dir": str(folder), **values})


def test_concept_folders(tmp_path: Path) -> None:
    draw(tmp_path / "10_my cat_2" / "b.png", 20, 10, "a cat")
    draw(tmp_path / "10_my cat_2" / "a.JPG")
    draw(tmp_path / "2_dog" / "c.webp", caption="a dog")
    scan = scan_dataset(settings(tmp_path))
    cat, dog = scan.subsets
    assert (cat.folder.name, cat.repeats, cat.concept) == ("10_my cat_2", 10, "my cat_2")
    assert (dog.folder.name, dog.repeats, dog.concept) == ("2_dog", 2, "dog")
    assert [(e.path.name, e.width, e.height, e.caption) for e in cat.images] == [
        ("a.JPG", 16, 16, "my cat_2"),
        ("b.png", 20, 10, "a cat"),
    ]
    assert cat.images[0].caption_file is None
    assert cat.images[1].caption_file == tmp_path / "10_my cat_2" / "b.txt"
    assert scan.problems == [] and scan.warnings == []


def test_flat_folder(tmp_path: Path) -> None:
    draw(tmp_path / "pictures" / "b.bmp", caption="b")
    draw(tmp_path / "pictures" / "a.jpeg")
    scan = scan_dataset(settings(tmp_path / "pictures", num_repeats=3))
    assert [(s.repeats, s.concept) for s in scan.subsets] == [(3, "")]
    assert [entry.caption for entry in scan.images] == ["", "b"]


def test_a_concept_folder_given_directly(tmp_path: Path) -> None:
    draw(tmp_path / "7_cat" / "a.png")
    scan = scan_dataset(settings(tmp_path / "7_cat", num_repeats=2))
    assert [(s.repeats, s.concept, len(s.images)) for s in scan.subsets] == [(7, "cat", 1)]


def test_loose_pictures_and_other_folders_are_left_out_in_words(tmp_path: Path) -> None:
    draw(tmp_path / "3_cat" / "a.png")
    draw(tmp_path / "3_cat" / "old" / "b.png")
    draw(tmp_path / "loose.png")
    draw(tmp_path / "dogs" / "c.png")
    draw(tmp_path / "0_never" / "d.png")
    (tmp_path / "notes").mkdir()
    scan = scan_dataset(settings(tmp_path))
    assert [entry.path.name for entry in scan.images] == ["a.png"]
    text = "\n".join(scan.warnings)
    assert "1 picture beside the N_name folders left out (loose.png, …)" in text
    assert "dogs: 1 picture left out" in text and "1_dogs" in text
    assert "3_cat/old: 1 picture left out" in text
    assert "0_never: left out, because its name asks for 0 repeats" in text
    assert len(scan.warnings) == 4


def test_caption_extensions(tmp_path: Path) -> None:
    draw(tmp_path / "a.png", caption="from txt")
    (tmp_path / "a.caption").write_text("from caption", encoding="utf-8")
    draw(tmp_path / "b.png")
    (tmp_path / "b.CAPTION").write_text("only caption", encoding="utf-8")
    auto = scan_dataset(settings(tmp_path))
    assert [entry.caption for entry in auto.images] == ["from txt", "only caption"]
    assert auto.warnings == [
        f"{tmp_path.name}: 1 picture with both a .txt and a .caption file (a): the .txt is read; "
        "delete one of the two, or set caption_extension"
    ]
    txt = scan_dataset(settings(tmp_path, caption_extension=".txt"))
    assert [entry.caption for entry in txt.images] == ["from txt", ""]
    assert "1 picture with a caption file of another extension than .txt (b)" in txt.warnings[0]
    assert [e.caption for e in scan_dataset(settings(tmp_path, caption_extension=".caption")).images] == [
        "from caption",
        "only caption",
    ]


def test_orphan_captions(tmp_path: Path) -> None:
    draw(tmp_path / "a.png", caption="a")
    (tmp_path / "b.txt").write_text("b", encoding="utf-8")
    assert scan_dataset(settings(tmp_path)).warnings == [
        f"{tmp_path.name}: 1 caption file without a picture (b.txt): name each like its picture"
    ]


def test_hidden_files_are_not_looked_at(tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    (tmp_path / "._a.png").write_bytes(b"\x00")
    (tmp_path / ".cache").mkdir()
    scan = scan_dataset(settings(tmp_path))
    assert [entry.path.name for entry in scan.images] == ["a.png"] and scan.problems == []


def test_all_problems_are_named_together(tmp_path: Path) -> None:
    draw(tmp_path / "5_cat" / "good.png", caption="good")
    whole = draw(tmp_path / "5_cat" / "cut.png", 64, 64)
    whole.write_bytes(whole.read_bytes()[:60])
    (tmp_path / "5_cat" / "empty.jpg").write_bytes(b"")
    draw(tmp_path / "5_cat" / "thin.png", 400, 2)
    draw(tmp_path / "5_cat" / "latin.png")
    (tmp_path / "5_cat" / "latin.txt").write_bytes("hütchen".encode("latin-1"))
    draw(tmp_path / "20230101_cat" / "a.png")
    scan = scan_dataset(settings(tmp_path))
    assert [entry.path.name for entry in scan.images] == ["good.png", "latin.png"]
    with pytest.raises(UserError) as raised:
        scan.raise_on_problems()
    text = str(raised.value)
    assert text.startswith("5 problems in the dataset:\n")
    assert "20230101_cat: its name asks for 20230101 repeats, allowed are 1 to 10000: rename the folder" in text
    assert f"{tmp_path / '5_cat' / 'cut.png'}: broken picture (" in text
    assert "empty.jpg: broken picture (the file is empty): replace or delete it" in text
    assert "thin.png: 400×2 pixels is narrower than 1:32: crop or delete it" in text
    assert "latin.txt: is not UTF-8 text (byte 1): save it as UTF-8" in text


def test_a_good_dataset_has_no_problems(tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    scan_dataset(settings(tmp_path)).raise_on_problems()


def test_no_folder_given() -> None:
    with pytest.raises(UserError, match="train_data_dir is empty"):
        scan_dataset(TrainConfig())


def test_missing_folder_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        scan_dataset(settings(tmp_path / "not" / "there"))
    assert f"there is no such folder (the nearest that exists is {tmp_path})" in str(raised.value)


def test_file_in_place_of_a_folder(tmp_path: Path) -> None:
    picture = draw(tmp_path / "a.png")
    with pytest.raises(UserError, match="this is a file; give the folder it lies in"):
        scan_dataset(settings(picture))


def test_empty_folder_says_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "readme.md").write_text("hello", encoding="utf-8")
    with pytest.raises(UserError, match="no pictures to train on .*looked for png, jpg, jpeg, webp, bmp"):
        scan_dataset(settings(tmp_path))


def test_folder_above_the_dataset_is_told_apart(tmp_path: Path) -> None:
    draw(tmp_path / "img" / "3_cat" / "a.png")
    with pytest.raises(UserError) as raised:
        scan_dataset(settings(tmp_path))
    assert f"{tmp_path / 'img'} holds N_name folders: give that one" in str(raised.value)


def test_only_broken_pictures(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"no pictures to train on[\s\S]*a\.png: broken picture"):
        scan_dataset(settings(tmp_path))
