"""The list of network files, and which paths a page may name."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_ext.networks.folder_list import parse_folders
from lora_ext.networks.listing import list_networks, network_at
from lora_ext.protocols import UserError


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    one, two = tmp_path / "one", tmp_path / "two"
    for path in (
        one / "b.safetensors",
        one / "A.pt",
        one / "A_txt.pt",
        one / "sub" / "deep" / "c.safetensors",
        two / "d.SAFETENSORS",
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"12345")
    for name in ("b.preview.png", "b.txt", "A.json", "sub/deep/other.png"):
        (one / name).write_bytes(b"")
    (tmp_path / "outside.safetensors").write_bytes(b"")
    return one, two


def test_every_network_with_its_cover(folders: tuple[Path, Path]) -> None:
    found = list_networks([*folders, folders[0] / "not there"])
    assert [(each.path.name, Path(each.folder).as_posix(), each.size) for each in found] == [
        ("A.pt", ".", 5), ("b.safetensors", ".", 5), ("c.safetensors", "sub/deep", 5), ("d.SAFETENSORS", ".", 5),
    ]  # fmt: skip
    assert [each.cover and each.cover.name for each in found] == [None, "b.preview.png", None, None]


def test_a_folder_within_another_one(folders: tuple[Path, Path]) -> None:
    found = list_networks([folders[0], folders[0] / "sub"])
    assert [(each.path.name, Path(each.folder).as_posix()) for each in found][-1] == ("c.safetensors", "sub/deep")
    assert len(found) == 3


def test_a_network_in_the_folders_may_be_named(folders: tuple[Path, Path]) -> None:
    inside = folders[0] / "sub" / "deep" / "c.safetensors"
    assert network_at(str(inside), folders) == inside


@pytest.mark.parametrize(
    "text",
    ["{one}/../outside.safetensors", "{one}/sub/../../outside.safetensors", "/etc/passwd", "{one}/b.txt", "", "b"],
)
def test_other_paths_are_refused(folders: tuple[Path, Path], text: str) -> None:
    with pytest.raises(UserError, match="no network's file in"):
        network_at(text.format(one=folders[0]), folders)


def test_a_deleted_network_is_told(folders: tuple[Path, Path]) -> None:
    with pytest.raises(UserError, match="no longer there"):
        network_at(str(folders[0] / "gone.safetensors"), folders)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" , ", []),
        ("/a/b, /c", ["/a/b", "/c"]),
        ('"/a,b", /c', ["/a,b", "/c"]),
        ('"/a""b"', ['/a"b']),
        ("/a,/a", ["/a"]),
        ("~nobody-of-this-name/a, /b", ["~nobody-of-this-name/a", "/b"]),
    ],
)
def test_lists_of_folders(text: str, expected: list[str]) -> None:
    assert parse_folders(text) == [Path(each).absolute() for each in expected]


def test_a_link_to_nowhere_is_none(folders: tuple[Path, Path]) -> None:
    before = list_networks(folders)
    (folders[0] / "gone.safetensors").symlink_to(folders[0] / "nothing.safetensors")
    assert list_networks(folders) == before
