"""Network files: safetensors' own bytes, sd-scripts' hashes, and words for what cannot be read or written."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file
from torch import Tensor

from lora_ext.checkpoint.safetensors_file import read_metadata
from lora_ext.networks.file import (
    Precision,
    model_hash,
    precalculate_hashes,
    read_network,
    scan_network,
    write_network,
)
from lora_ext.networks.weight_delta import weight_delta
from lora_ext.protocols import UserError

METADATA = {"ss_output_name": 'häßlich 猫 \n\t\x01\x7f"\\', "ss_seed": "42", "modelspec.title": "test"}


def tensors(count: int = 3, rank: int = 4, width: int = 64) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    found: dict[str, Tensor] = {}
    for index in range(count):
        found[f"lora_unet_{index}.lora_up.weight"] = torch.randn(width, rank, generator=generator)
        found[f"lora_unet_{index}.lora_down.weight"] = torch.randn(rank, width, 1, 1, generator=generator)
        found[f"lora_unet_{index}.alpha"] = torch.tensor(2.0)
    return found


def hashes_by_safetensors(found: dict[str, Tensor], metadata: dict[str, str]) -> tuple[str, str]:
    """sd-scripts' definition, on safetensors' own serialisation."""
    data = save(found, {key: value for key, value in metadata.items() if key.startswith("ss_")})
    (length,) = struct.unpack("<Q", data[:8])
    legacy = BytesIO(data)
    legacy.seek(0x100000)
    return hashlib.sha256(data[8 + length :]).hexdigest(), hashlib.sha256(legacy.read(0x10000)).hexdigest()[:8]


@pytest.mark.parametrize(("precision", "dtype"), [("float", "F32"), ("fp16", "F16"), ("bf16", "BF16")])
def test_a_file_is_what_safetensors_writes(tmp_path: Path, precision: Precision, dtype: str) -> None:
    path, found = tmp_path / "a.safetensors", tensors()
    write_network(path, found, METADATA, precision)
    torch_dtype = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[dtype]
    cast = {name: tensor.to(torch_dtype) for name, tensor in found.items()}
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    theirs, ours = save(cast, metadata), path.read_bytes()
    (length,) = struct.unpack("<Q", ours[:8])
    assert struct.unpack("<Q", theirs[:8]) == (length,)
    assert json.loads(ours[8 : 8 + length]) == json.loads(theirs[8 : 8 + length])
    assert ours[8 + length :] == theirs[8 + length :]
    assert {key: metadata[key] for key in METADATA} == METADATA
    assert all(torch.equal(tensor, cast[name]) for name, tensor in load_file(path).items())


@pytest.mark.parametrize("precision", ["float", "fp16", "bf16"])
@pytest.mark.parametrize(("count", "width"), [(1, 8), (3, 64), (3, 40_000), (9, 40_000)])
def test_hashes_are_sd_scripts(tmp_path: Path, precision: Precision, count: int, width: int) -> None:
    """Files below, across and beyond the 64 KiB at 1 MiB that the legacy hash is made of; hashed after the cast."""
    path = tmp_path / "a.safetensors"
    write_network(path, tensors(count, 4, width), METADATA, precision)
    file = read_network(path)
    expected = hashes_by_safetensors(file.tensors, METADATA)
    assert (file.metadata["sshs_model_hash"], file.metadata["sshs_legacy_hash"]) == expected
    assert precalculate_hashes(file.tensors, METADATA) == expected
    assert model_hash(path) == expected[0]


def test_the_hash_of_a_file_without_one_is_made_from_its_tensors(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(save(tensors()))
    assert model_hash(path) == hashes_by_safetensors(tensors(), {})[0]


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    found = tensors()
    shuffled = dict(reversed(list(found.items())))
    write_network(tmp_path / "a.safetensors", found, {f"ss_{n}": str(n) for n in range(40)}, "fp16")
    write_network(tmp_path / "b.safetensors", shuffled, {f"ss_{n}": str(n) for n in reversed(range(40))}, "fp16")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_tensors_of_several_dtypes_lie_as_safetensors_lays_them(tmp_path: Path) -> None:
    found = {
        "b": torch.ones(3, dtype=torch.float16),
        "a": torch.ones(3),
        "c": torch.ones(2, dtype=torch.int64),
        "d": torch.ones(5, dtype=torch.bfloat16),
        "e": torch.ones(1, dtype=torch.uint8),
        "f": torch.ones(1, dtype=torch.float64),
    }
    assert precalculate_hashes(found, {}) == hashes_by_safetensors(found, {})


def test_reading_back(tmp_path: Path) -> None:
    path, found = tmp_path / "a.safetensors", tensors()
    write_network(path, found, METADATA, "float")
    file = read_network(path)
    assert all(torch.equal(tensor, found[name]) for name, tensor in file.tensors.items())
    assert set(file.modules) == {"lora_unet_0", "lora_unet_1", "lora_unet_2"}
    assert set(file.modules["lora_unet_1"]) == {"alpha", "lora_down.weight", "lora_up.weight"}
    header = scan_network(path)
    assert header.shapes == {name: tuple(tensor.shape) for name, tensor in found.items()}
    assert sorted(header.keys) == sorted(found)
    assert header.metadata == file.metadata


def test_what_was_read_does_not_change_with_the_file(tmp_path: Path) -> None:
    path, found = tmp_path / "a.safetensors", tensors()
    write_network(path, found, {}, "float")
    file = read_network(path)
    path.write_bytes(b"\0" * path.stat().st_size)  # in place, as another program might
    assert all(torch.equal(tensor, found[name]) for name, tensor in file.tensors.items())


def test_an_overflow_in_fp16_is_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(UserError, match=r"x.alpha has values up to 1e\+05.*bf16 or float"):
        write_network(path, {"x.alpha": torch.tensor(1e5)}, {}, "fp16")
    assert not path.exists()
    write_network(path, {"x.alpha": torch.tensor(1e5)}, {}, "bf16")


@pytest.mark.parametrize("keep", [0, 5, 100, 0.5, -1])
def test_cut_off_files_are_refused_in_words(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "a.safetensors"
    write_network(path, tensors(), METADATA, "fp16")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])
    for reader in (scan_network, read_network):
        with pytest.raises(UserError, match=r"a\.safetensors is (cut off|empty|no safetensors file)"):
            reader(path)


@pytest.mark.parametrize(
    "content",
    [
        b"PK\x03\x04" + b"\0" * 200,
        b"<html>not found</html>",
        struct.pack("<Q", 4) + b"[1]  ",
        struct.pack("<Q", 9) + b"{'a': 1} ",
        struct.pack("<Q", 8) + b'{"a": 1}',
        struct.pack("<Q", 3) + b"\xff\xfe\xfd",
    ],
)
def test_other_files_are_refused_in_words(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    for reader in (scan_network, read_network):
        with pytest.raises(UserError, match="is no safetensors file"):
            reader(path)


def test_headers_that_contradict_themselves_are_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    header = json.dumps({"a": {"dtype": "F32", "shape": [5], "data_offsets": [0, 4]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 4)
    with pytest.raises(UserError, match="no valid safetensors file"):
        read_network(path)


def test_numbers_of_eight_bits_are_read(tmp_path: Path) -> None:
    """1, 2 and -3 as F8_E4M3, at a place where larger numbers could not lie."""
    path = tmp_path / "a.safetensors"
    header = json.dumps(
        {
            "lora_unet_x.alpha": {"dtype": "F8_E4M3", "shape": [], "data_offsets": [0, 1]},
            "lora_unet_x.lora_down.weight": {"dtype": "F8_E4M3", "shape": [1, 2], "data_offsets": [1, 3]},
            "lora_unet_x.lora_up.weight": {"dtype": "F16", "shape": [1, 1], "data_offsets": [3, 5]},
        }
    ).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes([0x38, 0x40, 0xC4]) + struct.pack("<e", 4.0))
    assert weight_delta(read_network(path).modules["lora_unet_x"]).tolist() == [[8.0, -12.0]]


def test_metadata_alone_are_read_wherever_they_stand(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    first, last = {"__metadata__": {"ss_seed": "1"}}, {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    for header, gap in (({**first, **last}, (", ", ": ")), ({**last, **first}, (",", ":")), (last, None)):
        text = json.dumps(header, separators=gap).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 4)
        assert read_metadata(path) == header.get("__metadata__", {})


def test_missing_files_and_folders_are_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"missing\.safetensors cannot be read"):
        scan_network(tmp_path / "missing.safetensors")
    with pytest.raises(UserError, match="cannot be read"):
        read_network(tmp_path)


def test_tensors_that_are_made_when_they_are_written_give_the_same_file(tmp_path: Path) -> None:
    found = tensors(3, 4, 700)
    write_network(tmp_path / "a.safetensors", found, METADATA, "fp16")
    outlines = {name: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta") for name, tensor in found.items()}
    asked: list[str] = []

    def content(names: Sequence[str]) -> Iterator[Tensor]:
        for name in names:
            asked.append(name)
            yield found[name]

    write_network(tmp_path / "b.safetensors", outlines, METADATA, "fp16", content)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert asked == list(read_network(tmp_path / "b.safetensors").tensors)


def test_large_files_are_read_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "large.safetensors"
    found = {"a": torch.arange(5_000_003, dtype=torch.int32), "b": torch.arange(7, dtype=torch.float64)}
    save_file(found, path)
    for name, tensor in read_network(path).tensors.items():
        assert torch.equal(tensor, found[name])


@pytest.mark.parametrize("padding", [0, 1, 4])
def test_mapped_files_are_read_as_they_are_and_stay_so(tmp_path: Path, padding: int) -> None:
    path = tmp_path / "mapped.safetensors"
    found = {"a": torch.arange(5, dtype=torch.float64), "b": torch.arange(7, dtype=torch.float16)}
    content = save(found)
    length = int.from_bytes(content[:8], "little") + padding  # some writers leave the tensors where they fall
    path.write_bytes(
        length.to_bytes(8, "little")
        + content[8 : 8 + length - padding]
        + b" " * padding
        + content[8 + length - padding :]
    )
    before = path.read_bytes()
    file = read_network(path, mapped=True)
    for name, tensor in file.tensors.items():
        assert torch.equal(tensor, found[name])
        tensor += 1
    assert path.read_bytes() == before
    (tmp_path / "none.safetensors").write_bytes(save({}))
    assert read_network(tmp_path / "none.safetensors", mapped=True).tensors == {}
