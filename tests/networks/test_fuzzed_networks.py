"""Files that are damaged or meant to do harm: words, or a valid reading, and never anything else."""

from __future__ import annotations

import io
import json
import math
import pickle
import random
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor

from lora_ext.checkpoint.safetensors_file import read_metadata
from lora_ext.networks.description import describe_network
from lora_ext.networks.file import model_hash, read_network, scan_network
from lora_ext.networks.library import NetworkLibrary
from lora_ext.networks.weight_delta import SUFFIXES, module_delta
from lora_ext.protocols import UserError

WEIGHT = (6, 4, 3, 3)
"""The layer that everything is tried on."""

Header = dict[str, Any]


def valid_tensors(chance: random.Random) -> dict[str, Tensor]:
    """A module of every kind, in a random dtype."""
    out, width, kernel = WEIGHT[0], WEIGHT[1], WEIGHT[2:]
    kinds: list[dict[str, tuple[int, ...]]] = [
        {"lora_up.weight": (out, 2, 1, 1), "lora_down.weight": (2, width, *kernel)},
        {"lora_up.weight": (out, 2), "lora_down.weight": (2, width), "lora_mid.weight": (2, 2, *kernel)},
        {"lora_up.weight": (out, 2), "lora_down.weight": (2, width, *kernel), "dora_scale": (1, width, 1, 1)},
        {"hada_w1_a": (out, 2), "hada_w1_b": (2, 36), "hada_w2_a": (out, 2), "hada_w2_b": (2, 36)},
        {"lokr_w1": (2, 2), "lokr_w2_a": (3, 2), "lokr_w2_b": (2, 18)},
        {"oft_blocks": (2, 3, 3), "rescale": (out, 1, 1, 1)},
        {"oft_blocks": (1, 3, 2, 2)},
        {"weight": (1, out, 1, 1), "on_input": ()},
        {"a1.weight": (4, 2), "a2.weight": (2, 4), "b1.weight": (out, 2), "b2.weight": (2, width, *kernel)},
        {"diff": WEIGHT, "diff_b": (out,)},
        {"w_norm": (out,), "b_norm": (out,)},
    ]
    dtype = chance.choice([torch.float32, torch.float16, torch.bfloat16])
    found = {}
    for number, shapes in enumerate(kinds):
        for suffix, shape in {**shapes, "alpha": ()}.items():
            if suffix != "alpha" or not {"weight", "diff", "w_norm"} & set(shapes):
                values = torch.zeros(()) if suffix == "on_input" else torch.rand(shape)
                found[f"lora_unet_{number}.{suffix}"] = values.to(dtype)
    return found


def parts_of(tensors: dict[str, Tensor]) -> tuple[Header, bytes]:
    """The header and the bytes of a safetensors file."""
    names = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
    header: Header = {"__metadata__": {"ss_output_name": "fuzz", "ss_base_model_version": "sd_v1"}}
    data = b""
    for name, tensor in tensors.items():
        content = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        offsets = [len(data), len(data) + len(content)]
        header[name] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
        data += content
    return header, data


def written(header: object, data: bytes, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def any_entry(chance: random.Random, header: Header) -> Header:
    return header[chance.choice([name for name in header if name != "__metadata__"])]


HOSTILE = [0, 1, -1, 2**31, 2**62, 2**63, 2**64, 10**30, 1.5, None, "4", True, [], {}, [[1]], math.nan]


def cut_off(chance: random.Random, header: Header, data: bytes) -> bytes:
    content = written(header, data)
    return content[: chance.randrange(len(content))]


def flipped_bytes(chance: random.Random, header: Header, data: bytes) -> bytes:
    content = bytearray(written(header, data))
    for _ in range(chance.choice([1, 3, 30])):
        content[chance.randrange(len(content))] = chance.randrange(256)
    return bytes(content)


def other_length(chance: random.Random, header: Header, data: bytes) -> bytes:
    return written(header, data, chance.choice([0, 1, 2, 7, 10**6, 31_999_999, 2**31, 2**63, 2**64 - 1]))


def other_shape(chance: random.Random, header: Header, data: bytes) -> bytes:
    entry = any_entry(chance, header)
    if chance.random() < 0.5:  # as many numbers in another shape
        count = math.prod(entry["shape"])
        entry["shape"] = chance.choice(
            [[count], [1, count], [count, 1], [1, 1, 1, count], [2, count // 2], [count] + [1] * 6]
        )
    else:
        entry["shape"] = [chance.choice(HOSTILE) for _ in range(chance.randrange(4))]
    return written(header, data)


def other_offsets(chance: random.Random, header: Header, data: bytes) -> bytes:
    entry = any_entry(chance, header)
    entry["data_offsets"] = chance.choice(
        [[chance.choice(HOSTILE), chance.choice(HOSTILE)], [0, 8], chance.choice(HOSTILE)]
    )
    return written(header, data)


def lying_upon_each_other(chance: random.Random, header: Header, data: bytes) -> bytes:
    first, second = any_entry(chance, header), any_entry(chance, header)
    second |= {"shape": first["shape"], "data_offsets": first["data_offsets"], "dtype": first["dtype"]}
    return written(header, data)


def other_dtype(chance: random.Random, header: Header, data: bytes) -> bytes:
    any_entry(chance, header)["dtype"] = chance.choice(["F8_E4M3", "I64", "BOOL", "C64", "F4", "", "f32", *HOSTILE])
    return written(header, data)


def other_metadata(chance: random.Random, header: Header, data: bytes) -> bytes:
    header["__metadata__"] = chance.choice([*HOSTILE, {"a": 1, "b": [1], "": None}, {"ss_epoch": "x" * 10_000}])
    return written(header, data)


def other_entry(chance: random.Random, header: Header, data: bytes) -> bytes:
    header[chance.choice(list(header))] = chance.choice(HOSTILE)
    return written(header, data)


def other_header(chance: random.Random, header: Header, data: bytes) -> bytes:
    strange = [b"[" * 100_000, b'{"a":' * 50_000, b"{}", b"[]", b"null", b'"', b"\xff\xfe{}", b'{"a":NaN}', b" " * 100]
    return written(chance.choice(strange), data)


def named_twice(chance: random.Random, header: Header, data: bytes) -> bytes:
    text = json.dumps(header)
    name = chance.choice(list(header))
    return written((text[:-1] + f', "{name}": {json.dumps(chance.choice(HOSTILE))}}}').encode(), data)


def other_names(chance: random.Random, header: Header, data: bytes) -> bytes:
    name = chance.choice([name for name in header if name != "__metadata__"])
    suffix = chance.choice(
        [*sorted(SUFFIXES), "", ".", "x" * 5000, "\0", "lora_A.default.weight", "lora_magnitude_vector"]
    )
    long = f"down_blocks_{'9' * 5000}_attentions_1_x"
    others = [
        f"lora_unet_{long}",
        "unet:0:up",
        "unet.mid_block",
        f"base_model.model.{long}",
        "text_encoder_2",
        "bundle_emb",
    ]
    other = chance.choice([name.split(".")[0], *others])
    return written(
        {**{key: value for key, value in header.items() if key != name}, f"{other}.{suffix}": header[name]}, data
    )


def strange_values(chance: random.Random, header: Header, data: bytes) -> bytes:
    begin = chance.randrange(len(data) - 16) // 16 * 16
    return written(header, data[:begin] + chance.choice([b"\xff", b"\x7f", b"\0"]) * 16 + data[begin + 16 :])


def left_out(chance: random.Random, header: Header, data: bytes) -> bytes:
    for _ in range(chance.randrange(1, 4)):
        del header[chance.choice([name for name in header if name != "__metadata__"])]
    return written(header, data)


def huge_rank(chance: random.Random, header: Header, data: bytes) -> bytes:
    """Factors that are small in the file, and a Tucker core whose product with them would not be."""
    rank = chance.choice([16_385, 40_000, 100_000])
    tensors = {
        "lora_unet_0.lora_up.weight": torch.zeros(1, rank, dtype=torch.float16),
        "lora_unet_0.lora_mid.weight": torch.zeros(rank, 1, 1, 1, dtype=torch.float16),
        "lora_unet_0.lora_down.weight": torch.zeros(1, rank, dtype=torch.float16),
        "lora_unet_1.lokr_w1": torch.zeros(rank, 1, dtype=torch.float16),
        "lora_unet_1.lokr_w2": torch.zeros(1, rank, dtype=torch.float16),
    }
    return written(*parts_of(tensors))


MUTATIONS: list[Callable[[random.Random, Header, bytes], bytes]] = [
    cut_off,
    flipped_bytes,
    other_length,
    other_shape,
    other_offsets,
    lying_upon_each_other,
    other_dtype,
    other_metadata,
    other_entry,
    other_header,
    named_twice,
    other_names,
    strange_values,
    left_out,
    huge_rank,
]


def use(path: Path) -> str:
    """Everything that is done with a file; "read" where all of it went well, else what a person is told first."""
    told = []
    for reader in (scan_network, model_hash, *([read_metadata] if path.suffix == ".safetensors" else [])):
        try:
            reader(path)
        except UserError as error:
            told.append(str(error))
    library = NetworkLibrary([path.parent])
    assert library.find(path.stem) == path and isinstance(library.short_metadata(path), dict)
    try:
        file = read_network(path)
        described = describe_network(file)
    except UserError as error:
        return str(error)
    applied = 0
    for key, tensors in file.modules.items():
        if key not in described.problems:
            applied += change(tensors)
    assert applied <= len(file.modules)
    return [*told, *described.problems.values(), "read"][0]


def change(tensors: dict[str, Tensor]) -> bool:
    """Whether a module fits the layer; if it does, it changes it by as many numbers."""
    delta = module_delta(tensors)
    if not delta.fits(WEIGHT):
        return False
    weight = torch.rand(WEIGHT)
    for parameter in delta.parameters:
        base = weight if parameter == "weight" else weight[:, 0, 0, 0]
        assert delta.delta(base, 0.7, dyn=1, parameter=parameter).shape == base.shape
    return True


def mutate_and_use(path: Path, seed: int) -> str:
    chance = random.Random(seed)
    torch.manual_seed(seed)
    header, data = parts_of(valid_tensors(chance))
    path.write_bytes(MUTATIONS[seed % len(MUTATIONS)](chance, header, data))
    return use(path)


def test_the_file_that_is_mutated_is_sound(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(written(*parts_of(valid_tensors(random.Random(0)))))
    assert use(path) == "read"
    modules = read_network(path).modules.values()
    assert [change(tensors) for tensors in modules] == [True] * 10 + [False]  # norms change no convolution


def test_some_mutated_files(tmp_path: Path) -> None:
    told = [mutate_and_use(tmp_path / "a.safetensors", seed) for seed in range(210)]
    assert 20 < told.count("read") < 120


@pytest.mark.slow
def test_many_mutated_files(tmp_path: Path) -> None:
    before = peak_memory()
    told = [mutate_and_use(tmp_path / "a.safetensors", seed) for seed in range(1000, 3000)]
    assert all(words == "read" or len(words) > 20 for words in told)
    assert peak_memory() - before < 300 * 2**20


def peak_memory() -> int:
    """The most bytes that this process has had; on Windows what it has."""
    if sys.platform == "win32":
        return psutil.Process().memory_info().rss
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def archive(tensors: object, zipped: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(tensors, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("this ran",))


def bomb() -> bytes:
    """A gigabyte of zeros that takes a megabyte."""
    small = archive({"lora_unet_0.lora_up.weight": torch.zeros(2**18)})
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(small)) as source, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    return buffer.getvalue()


PICKLED: dict[str, bytes] = {
    "harmful": pickle.dumps(Harmful()),
    "harmful in an archive": archive({"lora_unet_0.lora_up.weight": Harmful()}),
    "compressed": bomb(),
    "expanded": archive({"lora_unet_0.lora_up.weight": torch.zeros(1).expand(10**6, 10**6)}),
    "sparse": archive({"lora_unet_0.lora_up.weight": torch.zeros(3, 3).to_sparse()}),
    "no tensors": archive({"a": 1}),
    "a list of numbers": archive([1, 2, 3]),
    "a few pairs": archive([torch.zeros(4, 2), torch.zeros(2, 4)] * 3),
    "a number": archive(3),
    "text": b"not a pickle at all",
    "empty": b"",
    "memo": b"\x80\x02" + b"(" * 100_000 + b".",
    "deep": b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b".",
    "zip without a pickle": b"PK\x05\x06" + b"\0" * 18,
}


@pytest.mark.parametrize("name", PICKLED)
def test_pickled_files_that_are_none(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(PICKLED[name])
    if name in ("no tensors", "a list of numbers"):
        assert read_network(path).modules == {}
    else:
        with pytest.raises(UserError, match=r"a\.pt|pairs of tensors"):
            read_network(path).modules  # noqa: B018
    assert "this ran" not in capsys.readouterr().out


@pytest.mark.parametrize("zipped", [True, False])
def test_some_mutated_pickled_files(tmp_path: Path, zipped: bool) -> None:
    sound = archive(valid_tensors(random.Random(0)), zipped)
    path = tmp_path / "a.pt"
    path.write_bytes(sound)
    assert use(path) == "read"
    for seed in range(40):
        chance = random.Random(seed)
        content = bytearray(sound[: chance.randrange(1, len(sound))] if seed % 3 == 0 else sound)
        for _ in range(chance.choice([1, 5, 50])):
            content[chance.randrange(len(content))] = chance.randrange(256)
        path.write_bytes(bytes(content))
        use(path)
