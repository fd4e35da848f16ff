"""Damaged, hostile and mistaken inputs for every tool: words that name the file, or a correct result, and no traces."""

from __future__ import annotations

import io
import json
import math
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lora_ext.checkpoint.tensor_files import open_tensor_file
from lora_ext.merge.tools import make_settings
from lora_ext.merge.work import ToolReport, Work
from lora_ext.protocols import UserError
from tests.merge.tool_cases import PRESENT, Inputs, ToolCase, difference, expected_deltas, result_deltas
from tests.networks.test_fuzzed_networks import MUTATIONS as OF_NETWORKS

Mutation = Callable[[random.Random, Path], object]
"""Changes a file in its place."""

FEW, MANY = 4, 500
"""Mutated inputs of each case in a quick run, and of all cases together in the slow one."""


def _header_and_data(path: Path) -> tuple[dict[str, Any], bytes]:
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def _of_the_file(change: Callable[[random.Random, dict[str, Any], bytes], bytes]) -> Mutation:
    def mutate(chance: random.Random, path: Path) -> None:
        path.write_bytes(change(chance, *_header_and_data(path)))

    mutate.__name__ = change.__name__
    return mutate


def _of_a_tensor(choose: str, change: Callable[[random.Random, torch.Tensor], torch.Tensor]) -> Mutation:
    def mutate(chance: random.Random, path: Path) -> None:
        tensors = load_file(path)
        name = chance.choice([name for name in sorted(tensors) if choose in name] or sorted(tensors))
        tensors[name] = change(chance, tensors[name]).contiguous()
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        save_file(tensors, path, metadata)

    return mutate


def _with_a_value(value: float) -> Callable[[random.Random, torch.Tensor], torch.Tensor]:
    def change(chance: random.Random, tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.clone()
        tensor.view(-1)[chance.randrange(max(tensor.numel(), 1))] = value
        return tensor

    return change


def _with_code(path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> tuple[Any, ...]:
            return (print, ("this ran",))

    buffer = io.BytesIO()
    torch.save({"lora_unet_conv_in.lora_up.weight": Harmful()}, buffer)
    path.write_bytes(buffer.getvalue())


MUTATIONS: dict[str, Mutation] = {
    **{change.__name__: _of_the_file(change) for change in OF_NETWORKS if change.__name__ != "huge_rank"},
    "alpha of a number that is none": _of_a_tensor("alpha", _with_a_value(math.nan)),
    "alpha infinite": _of_a_tensor("alpha", _with_a_value(math.inf)),
    "alpha 0": _of_a_tensor("alpha", _with_a_value(0.0)),
    "alpha negative": _of_a_tensor("alpha", _with_a_value(-3.0)),
    "alpha huge": _of_a_tensor("alpha", _with_a_value(1e30)),
    "alpha of many": _of_a_tensor("alpha", lambda chance, tensor: tensor.repeat(chance.choice([2, 7]))),
    "a value that is no number": _of_a_tensor("weight", _with_a_value(math.nan)),
    "a value that is infinite": _of_a_tensor("weight", _with_a_value(-math.inf)),
    "a huge value": _of_a_tensor("weight", _with_a_value(3e38)),
    "all zero": _of_a_tensor("weight", lambda _, tensor: torch.zeros_like(tensor)),
    "as whole numbers": _of_a_tensor("weight", lambda _, tensor: (tensor * 9).to(torch.int32)),
    "as truth values": _of_a_tensor("weight", lambda _, tensor: tensor > 0),
    "in fp64": _of_a_tensor("weight", lambda _, tensor: tensor.double()),
    "in 8 bits": _of_a_tensor("weight", lambda _, tensor: tensor.to(torch.float8_e4m3fn)),
    "no rows": _of_a_tensor("weight", lambda _, tensor: tensor[:0]),
    "no columns": _of_a_tensor("weight", lambda _, tensor: tensor[:, :0] if tensor.ndim > 1 else tensor[:0]),
    "fewer rows": _of_a_tensor("weight", lambda _, tensor: tensor[:-1]),
    "transposed": _of_a_tensor("weight", lambda _, tensor: tensor.transpose(0, -1)),
    "one axis more": _of_a_tensor("weight", lambda _, tensor: tensor[None]),
    "empty": lambda _, path: path.write_bytes(b""),
    "text": lambda _, path: path.write_text("<html>404</html>", encoding="utf-8"),
    "pickled code": lambda _, path: _with_code(path),
    "a pickle": lambda _, path: path.write_bytes(pickle.dumps([1, 2])),
}


def files(folder: Path) -> dict[str, bytes]:
    """Every file of a folder and its content."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def outcome(case: ToolCase, inputs: Inputs, mutated: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """ "done", or "refused": with words that name the file or a module of it; asserts all that holds in either case."""
    before = files(inputs.folder)
    try:
        report = case.run(inputs)
    except UserError as error:
        assert files(inputs.folder) == before
        words = str(error)
        assert mutated.stem in words or "lora_" in words, words
        assert 20 < len(words) < 2000, words
        return "refused"
    finally:
        assert "this ran" not in capsys.readouterr().out
    after = files(inputs.folder)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {each.path.name for each in report.files}
    check_result(case, inputs, report)
    return "done"


def check_result(case: ToolCase, inputs: Inputs, report: ToolReport) -> None:
    """What was written can be read, is what the definition says, and no value of it has ceased to be a number."""
    damaged_before = damaged(inputs.checkpoint) if case.tool == "merge-checkpoint" else set()
    for each in report.files:
        assert damaged(each.path) <= damaged_before
    json.dumps(report.as_json(), allow_nan=False)
    networks = [getattr(inputs, name) for name in case.reads if name in ("network", "other")]
    if case.tolerance is not None and all(only_low_rank(path) for path in networks):
        assert difference(result_deltas(case, inputs), expected_deltas(case, inputs)) < 1e-4


def damaged(path: Path) -> set[str]:
    """The tensors of a file with values that are infinite or no numbers."""
    file = open_tensor_file(path)
    tensors = ((name, each.float()) for name, each in file.read(set(file.shapes)) if each.is_floating_point())
    return {name for name, each in tensors if not torch.isfinite(each).all()}


def only_low_rank(path: Path) -> bool:
    """Whether a network is there and plain LoRA as before, so that the definition can be written down here."""
    endings = (".lora_up.weight", ".lora_down.weight", ".alpha")
    return path.is_file() and all(name.endswith(endings) for name in open_tensor_file(path).shapes)


def tried(
    seed: int, cases: list[ToolCase], sound: Inputs, folder: Path, capsys: pytest.CaptureFixture[str]
) -> tuple[str, str]:
    """The mutation's name and the outcome of the seed's case, file and mutation."""
    chance = random.Random(seed)
    torch.manual_seed(seed)
    case = cases[seed % len(cases)]
    folder = folder / str(seed)
    folder.mkdir()
    copies = {name: folder / f"{name}-file.safetensors" for name in ("network", "other", "checkpoint", "tuned")}
    for name, path in copies.items():
        if name in case.reads:
            path.write_bytes(getattr(sound, name).read_bytes())
    inputs = Inputs(folder, **copies)
    name = chance.choice(case.reads)
    mutation = chance.choice(sorted(MUTATIONS))
    MUTATIONS[mutation](chance, copies[name])
    try:
        return mutation, outcome(case, inputs, copies[name], capsys)
    except Exception as error:
        raise AssertionError(f"seed {seed}: {case}, {name}, {mutation}") from error


@pytest.mark.parametrize("case", PRESENT, ids=str)
def test_some_mutated_inputs(
    case: ToolCase, sound_inputs: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in range(FEW):
        tried(seed, [case], sound_inputs, tmp_path, capsys)


@pytest.mark.slow
def test_many_mutated_inputs(sound_inputs: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = [tried(seed, PRESENT, sound_inputs, tmp_path, capsys) for seed in range(1000, 1000 + MANY)]
    outcomes = [outcome for _, outcome in found]
    assert outcomes.count("refused") > MANY // 5
    assert outcomes.count("done") > MANY // 10
    assert {mutation for mutation, _ in found} == set(MUTATIONS)


MISTAKES: dict[str, Callable[[Inputs, Path], Path]] = {
    "is not there": lambda inputs, path: path.with_name("not-there.safetensors"),
    "a folder": lambda inputs, path: inputs.folder,
    "another ending": lambda inputs, path: path.rename(path.with_suffix(".txt")),
    "no ending": lambda inputs, path: path.rename(path.with_suffix("")),
    "a checkpoint that is none": lambda inputs, path: path.rename(path.with_suffix(".ckpt")),
    "the other kind of file": lambda inputs, path: (
        inputs.checkpoint if path in (inputs.network, inputs.other) else inputs.network
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("case", PRESENT, ids=str)
def test_another_file_than_was_meant(case: ToolCase, inputs: Inputs, mistake: str) -> None:
    for name in case.reads:
        original = getattr(inputs, name)
        kept = original.read_bytes()
        given = MISTAKES[mistake](inputs, original)
        values = {key: _replaced(value, original, given) for key, value in case.values(inputs).items()}
        before = files(inputs.folder)
        tool = case.registered
        try:
            report = tool.run(make_settings(tool, values), Work())
        except UserError as error:
            assert given.name in str(error) or given.stem in str(error), str(error)
        else:  # what a file is called says nothing of it; what reads any file tells what it is
            assert mistake in ("another ending", "no ending") or not case.writes, report
            check_result(case, inputs, report)
            for each in report.files:
                each.path.unlink()
        assert files(inputs.folder) == before
        if given.parent == original.parent and given != original and given.suffix != original.suffix:
            given.unlink()
        original.write_bytes(kept)


def _replaced(value: object, original: Path, given: Path) -> object:
    return value.replace(str(original), str(given)) if isinstance(value, str) else value
