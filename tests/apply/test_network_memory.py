"""What stays in memory: files up to a limit and as they are now, and no parameter of a model that was given up."""

from __future__ import annotations

import weakref
from pathlib import Path

import pytest
import torch

from lora_ext.apply import loaded_files
from lora_ext.checkpoint.checkpoint import Checkpoint
from lora_ext.networks.file import NetworkFile, read_network
from lora_ext.protocols import UserError
from tests.apply.network_setup import LINEAR, TEXT, Setup


@pytest.fixture
def setup(checkpoint: Checkpoint, tmp_path: Path) -> Setup:
    return Setup(checkpoint, tmp_path)


def test_a_file_written_anew_is_applied_anew(setup: Setup) -> None:
    setup.write("cat", seed=1)
    setup.activate("<lora:cat:1>")
    first, old_hash = setup.state()[LINEAR], setup.active.hashes()
    setup.write("cat", seed=2)
    setup.activate("<lora:cat:1>")
    assert not torch.equal(setup.weights[LINEAR], first)
    setup.check(LINEAR, setup.delta("cat", LINEAR))
    assert setup.active.hashes() != old_hash


def test_files_stay_in_memory_up_to_a_limit(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    """Besides those of the prompt."""
    read: list[str] = []
    original = loaded_files.read_network
    monkeypatch.setattr(loaded_files, "read_network", lambda path: (read.append(path.stem), original(path))[1])
    for name in "abcd":
        size = sum(tensor.nbytes for tensor in read_network(setup.write(name)).tensors.values())
    setup.files.memory_limit = 2 * size
    for names in ("a", "b", "c", "a", "d", "b"):
        setup.activate(f"<lora:{names}:1>")
    assert read == ["a", "b", "c", "d", "b"]  # d drops b
    setup.files.memory_limit = 0
    read.clear()
    for names in ("ac", "ac", "a", "ca", ""):
        setup.activate(" ".join(f"<lora:{name}:1>" for name in names))
    assert read == ["c", "c"]


def test_a_file_that_changes_while_it_is_read(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    path = setup.write("cat")
    original = loaded_files.model_hash

    def written_meanwhile(file: Path) -> str:
        with file.open("ab") as stream:
            stream.write(b"more")
        return original(file)

    monkeypatch.setattr(loaded_files, "model_hash", written_meanwhile)
    (message,) = setup.activate("<lora:cat:1>")
    assert "cat.safetensors is being written at the moment" in message
    assert setup.changed() == set()
    monkeypatch.undo()
    setup.write("cat")
    assert setup.activate("<lora:cat:1>") == []
    assert path.exists()
    assert setup.changed() == {LINEAR, TEXT}


def test_a_file_that_another_program_held_is_tried_again(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is the same one as before; nothing else asks for it anew."""
    setup.write("cat")
    setup.write("dog", seed=1)

    def held(path: Path) -> NetworkFile:
        raise UserError(f"{path} cannot be read (Permission denied)")

    with monkeypatch.context() as patch:
        patch.setattr(loaded_files, "read_network", held)
        (first, _) = setup.activate("<lora:cat:1> <lora:dog:0.5>")
        assert first.startswith("cat is left out: ") and setup.changed() == set()
        assert not setup.active.is_complete
    assert setup.activate("<lora:cat:1> <lora:dog:0.5>") == []
    assert setup.changed() == {LINEAR, TEXT} and setup.active.is_complete
    setup.check(LINEAR, setup.delta("cat", LINEAR) + 0.5 * setup.delta("dog", LINEAR))


@pytest.mark.parametrize("prompt", ["<lora:cat:1>", ""], ids=["with a network", "after one"])
def test_no_parameter_is_kept_after_deactivating(setup: Setup, prompt: str) -> None:
    """The WebUI frees a model's memory by new parameters in its modules: the old ones have to go."""
    setup.write("cat")
    setup.activate("<lora:cat:1>")
    setup.activate(prompt)
    held = [weakref.ref(parameter) for parameter in setup.checkpoint.unet.parameters()]
    setup.active.deactivate()
    setup.weights.clear()
    setup.checkpoint.unet.to("meta")
    assert [parameter() for parameter in held if parameter() is not None] == []
