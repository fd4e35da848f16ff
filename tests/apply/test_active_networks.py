"""From tags to weights: sums, messages, exact restoring, and no work where nothing changed."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lora_ext.apply import loaded_files
from lora_ext.apply.tags import LoraTag
from lora_ext.checkpoint.checkpoint import Checkpoint
from lora_ext.config.groups import NetworkSettings
from lora_ext.networks import weight_patch
from lora_ext.networks.file import read_network, write_network
from lora_ext.networks.network import Network
from lora_ext.networks.targets import find_targets
from tests.apply.network_setup import CONVOLUTION, LINEAR, POINTWISE, TEXT, Setup, weights_of


@pytest.fixture
def setup(checkpoint: Checkpoint, tmp_path: Path) -> Setup:
    return Setup(checkpoint, tmp_path)


def test_multipliers_for_text_encoder_and_unet(setup: Setup) -> None:
    setup.write("cat", (LINEAR, POINTWISE, CONVOLUTION, TEXT))
    assert setup.activate("<lora:cat:0.5:0.25>") == []
    assert setup.changed() == {LINEAR, POINTWISE, CONVOLUTION, TEXT}
    setup.check(TEXT, 0.5 * setup.delta("cat", TEXT))
    for key in (LINEAR, POINTWISE, CONVOLUTION):
        setup.check(key, 0.25 * setup.delta("cat", key))


def test_several_networks_and_the_same_name_twice_add_up(setup: Setup) -> None:
    setup.write("cat", seed=1)
    setup.write("dog", (LINEAR, CONVOLUTION), rank=2, seed=2)
    assert setup.activate("<lora:cat:0.5> <lora:dog:-1> <lora:cat:0.25:1>") == []
    setup.check(LINEAR, 1.5 * setup.delta("cat", LINEAR) - setup.delta("dog", LINEAR))
    setup.check(TEXT, 0.75 * setup.delta("cat", TEXT))
    setup.check(CONVOLUTION, -setup.delta("dog", CONVOLUTION))


@pytest.mark.parametrize("block", [1, 200, 1000])
def test_large_weights_are_changed_block_by_block(setup: Setup, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    """In whatever blocks: less than a row, some rows with a rest, and a second time from what was backed up."""
    monkeypatch.setattr(weight_patch, "_BLOCK", block)
    setup.write("cat", (LINEAR, POINTWISE, CONVOLUTION, TEXT))
    for multiplier in (0.5, 0.75):
        assert setup.activate(f"<lora:cat:{multiplier}>") == []
        for key in (LINEAR, POINTWISE, CONVOLUTION, TEXT):
            setup.check(key, multiplier * setup.delta("cat", key))


def test_order_does_not_matter(setup: Setup) -> None:
    setup.write("cat", seed=1)
    setup.write("dog", seed=2)
    setup.activate("<lora:cat:0.5> <lora:dog:0.3>")
    first = setup.state()
    setup.active.deactivate()
    setup.activate("<lora:dog:0.3> <lora:cat:0.5>")
    assert all(torch.equal(weight, first[key]) for key, weight in setup.state().items())


@pytest.mark.parametrize("prompt", ["", "<lora:cat:0>", "<lora:cat:1> <lora:cat:-1>", "<lora:cat:0:0>"])
def test_nothing_to_apply_restores_bit_for_bit(setup: Setup, prompt: str) -> None:
    setup.write("cat")
    setup.activate("<lora:cat:1>")
    assert setup.changed()
    assert setup.activate(prompt) == []
    assert setup.changed() == set()
    assert (setup.ledger.patched, setup.active.hashes()) == (0, {})


def test_a_multiplier_of_0_leaves_that_part_alone(setup: Setup) -> None:
    setup.write("cat")
    setup.activate("<lora:cat:0:1>")
    assert setup.changed() == {LINEAR}
    setup.activate("<lora:cat:1:0>")
    assert setup.changed() == {TEXT}
    assert setup.ledger.patched == 1


def test_deactivating(setup: Setup) -> None:
    setup.write("cat")
    setup.activate("<lora:cat:1>")
    setup.active.deactivate()
    assert setup.changed() == set()
    assert setup.active.hashes() == {}
    setup.activate("<lora:cat:1>")
    assert setup.changed() == {LINEAR, TEXT}


def test_the_first_ranks_alone(setup: Setup) -> None:
    setup.write("cat", (LINEAR,))
    module = read_network(setup.folder / "cat.safetensors").modules[LINEAR]
    setup.activate("<lora:cat:1:dyn=2>")
    up, down = module["lora_up.weight"].double(), module["lora_down.weight"].double()
    setup.check(LINEAR, 0.5 * up[:, :2] @ down[:2])


def test_weights_by_block(setup: Setup) -> None:
    """MIDD leaves the convolution of IN04 out; a list multiplies each block, the text encoder with its first number."""
    setup.write("cat", (LINEAR, POINTWISE, CONVOLUTION, TEXT))
    assert setup.activate("<lora:cat:0.5:lbw=MIDD>") == []
    assert setup.changed() == {LINEAR, POINTWISE, TEXT}
    numbers = ["0"] * 26
    numbers[0], numbers[5], numbers[13] = "0.5", "-1", "2"
    assert setup.activate(f"<lora:cat:0.5:lbw={','.join(numbers)}>") == []
    setup.check(TEXT, 0.25 * setup.delta("cat", TEXT))
    setup.check(CONVOLUTION, -0.5 * setup.delta("cat", CONVOLUTION))
    setup.check(LINEAR, setup.delta("cat", LINEAR))
    assert setup.activate("<lora:cat:1:lbw=INS><lora:cat:0.5:lbw=MIDD>") == []
    setup.check(TEXT, 1.5 * setup.delta("cat", TEXT))
    setup.check(CONVOLUTION, setup.delta("cat", CONVOLUTION))
    setup.check(LINEAR, 0.5 * setup.delta("cat", LINEAR))


def test_weights_by_block_of_another_kind_of_checkpoint_are_told(setup: Setup) -> None:
    setup.write("cat")
    setup.write("dog", (CONVOLUTION,))
    (message,) = setup.activate(f"<lora:cat:1:lbw={','.join('1' * 12)}><lora:dog:1>")
    assert message.startswith("cat is left out: lbw=1,1,1,1,1,1,1,1,1,1,1,1 is not for SD1 checkpoints")
    assert setup.changed() == {CONVOLUTION}


def test_an_epoch_of_a_run(setup: Setup) -> None:
    setup.write("cat-000001", seed=1)
    setup.write("cat", seed=2)
    assert setup.activate("<lora:cat:1:epoch=1>") == []
    setup.check(LINEAR, setup.delta("cat-000001", LINEAR))
    assert set(setup.active.hashes()) == {"cat-000001"}
    assert setup.activate("<lora:cat:1:epoch=last>") == []
    setup.check(LINEAR, setup.delta("cat", LINEAR))
    (message,) = setup.activate("<lora:cat:1:epoch=5>")
    assert message == "<lora:cat:1:epoch=5>: cat has no file of epoch 5: there are 1, and last"
    assert setup.changed() == set()


def test_unknown_names_are_told_and_the_others_applied(setup: Setup) -> None:
    setup.write("cat")
    messages = setup.activate("<lora:bird:1> <lora:cat:1> <lora:bird:1>")
    assert messages == [f"<lora:bird:1>: there is no network of this name in {setup.folder}"]
    assert setup.changed() == {LINEAR, TEXT}
    assert setup.activate("<lora:bird:1> <lora:cat:1>") == messages


@pytest.mark.parametrize(("suffix", "reason"), [
    ("hada_w1_a", f"{POINTWISE}: tensors hada_w1_a belong to a kind of network that cannot be applied"),
    ("mystery", f"{POINTWISE}: tensors mystery belong to a kind of network that cannot be applied"),
    ("dora_scale", f"{POINTWISE}: dora_scale has 3 lengths for"),
])  # fmt: skip
def test_files_that_cannot_be_applied_are_told_and_left_out(setup: Setup, suffix: str, reason: str) -> None:
    setup.write("cat", (TEXT,))
    path = setup.write("other", (LINEAR, POINTWISE))
    tensors = read_network(path).tensors
    write_network(path, {**tensors, f"{POINTWISE}.{suffix}": torch.ones(3, 1)}, {}, "fp16")
    (message,) = setup.activate("<lora:other:1> <lora:cat:1>")
    assert message.startswith(f"other is left out: {reason}")
    assert setup.changed() == {TEXT}
    assert set(setup.active.hashes()) == {"cat"}
    assert setup.activate("<lora:other:1> <lora:cat:1>") == [message]


def test_broken_files_are_told_and_left_out(setup: Setup) -> None:
    setup.write("cat")
    path = setup.write("cut")
    path.write_bytes(path.read_bytes()[:-10])
    (setup.folder / "old.pt").write_bytes(b"PK\x03\x04 a pickle")
    cut, old = setup.activate("<lora:cut:1> <lora:cat:1> <lora:old:1>")
    assert "cut is left out" in cut and "cut.safetensors is cut off" in cut
    assert "old is left out" in old and "old.pt holds no weights" in old
    assert setup.changed() == {LINEAR, TEXT}


def test_keys_that_match_nothing_are_counted(setup: Setup) -> None:
    path = setup.write("cat")
    tensors = read_network(path).tensors
    for number in range(5):
        tensors[f"lora_unet_input_{number}.lora_up.weight"] = torch.ones(2, 1)
        tensors[f"lora_unet_input_{number}.lora_down.weight"] = torch.ones(1, 2)
    write_network(path, tensors, {}, "fp16")
    (message,) = setup.activate("<lora:cat:1>")
    assert message == (
        "cat: the checkpoint does not have 5 of its 7 modules "
        "(lora_unet_input_0, lora_unet_input_1, lora_unet_input_2, …)"
    )
    assert setup.changed() == {LINEAR, TEXT}


def test_a_network_of_which_nothing_matches_is_left_out(setup: Setup) -> None:
    tensors = {"lora_te2_x.lora_up.weight": torch.ones(2, 1), "lora_te2_x.lora_down.weight": torch.ones(1, 2)}
    write_network(setup.folder / "xl.safetensors", tensors, {}, "fp16")
    assert setup.activate("<lora:xl:1>") == ["xl is left out: the checkpoint has none of its 1 modules (lora_te2_x)"]
    assert setup.active.hashes() == {}


def test_a_network_for_another_kind_of_checkpoint_is_left_out(setup: Setup) -> None:
    path = setup.write("cat")
    tensors = {**read_network(path).tensors, f"{TEXT}.lora_down.weight": torch.ones(4, 33)}
    write_network(path, tensors, {}, "fp16")
    (message,) = setup.activate("<lora:cat:1>")
    assert "made for another kind of checkpoint" in message
    assert "1 of 2 modules" in message
    assert f"{TEXT} (64, 33) instead of (64, 32)" in message
    assert setup.changed() == set()


def test_what_is_in_place_is_not_touched(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    setup.write("cat")
    setup.activate("<lora:cat:1>")
    revision = setup.ledger.revision
    monkeypatch.setattr(loaded_files, "read_network", None)
    setup.activate("a photo <lora:cat:1>")
    assert setup.ledger.revision == revision
    setup.activate("<lora:cat:0.5>")  # the file is in memory still
    setup.check(LINEAR, 0.5 * setup.delta("cat", LINEAR))


def test_it_is_applied_again_after_someone_else_had_the_weights(setup: Setup) -> None:
    setup.write("cat")
    setup.activate("<lora:cat:1>")
    applied = setup.state()
    with setup.ledger.exclusive("training"):
        assert setup.changed() == set()
        assert setup.activate("") == []
        with pytest.raises(RuntimeError, match="while training"):
            setup.activate("<lora:cat:1>")
    setup.activate("<lora:cat:1>")
    assert all(torch.equal(weight, applied[key]) for key, weight in setup.state().items())


def test_tensors_of_no_network_and_embeddings_that_come_along(setup: Setup) -> None:
    path = setup.write("cat")
    further = {"bundle_emb.star.string_to_param.*": torch.ones(2, 32), "what.ever": torch.ones(1)}
    write_network(path, {**read_network(path).tensors, **further}, {}, "fp16")
    assert setup.activate("<lora:cat:1>") == [
        "cat: 1 of its tensors are of no known network and are left out (what.ever)"
    ]
    ((name, (network, tensors)),) = setup.active.embeddings().items()
    assert (name, network, list(tensors)) == ("star", "cat", ["string_to_param.*"])
    setup.activate("")
    assert setup.active.embeddings() == {}


def test_a_network_that_cannot_be_made_is_left_out_and_the_others_applied(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rotation without an inverse, which no check of the file shows; some weights are patched before it."""
    setup.write("cat")
    blocks = torch.zeros(1, setup.weights[LINEAR].shape[0], setup.weights[LINEAR].shape[0])
    tensors = {f"{LINEAR}.oft_blocks": blocks, "bundle_emb.word.emb_params": torch.ones(1, 4)}
    write_network(setup.folder / "turn.safetensors", tensors, {}, "fp16")

    def no_inverse(*_: Tensor) -> Tensor:
        raise RuntimeError("the input matrix is singular")

    monkeypatch.setattr(torch.linalg, "solve", no_inverse)
    messages = setup.activate("<lora:cat:1> <lora:turn:1>")
    assert messages == [f"turn is left out: {LINEAR}: the input matrix is singular"] and not setup.active.is_complete
    assert setup.changed() == {LINEAR, TEXT}
    assert (set(setup.active.hashes()), setup.active.embeddings()) == ({"cat"}, {})
    setup.check(LINEAR, setup.delta("cat", LINEAR))
    setup.activate("")
    assert setup.changed() == set()


def test_hashes_for_the_infotext(setup: Setup) -> None:
    path = setup.write("cat")
    plain = setup.folder / "plain.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    stripped = data[8 : 8 + length].replace(b"sshs_model_hash", b"xxxx_model_hash").replace(b"alias", b"other")
    plain.write_bytes(data[:8] + stripped + data[8 + length :])
    setup.activate("<lora:alias of cat:1> <lora:plain:1> <lora:cat:0.5>")
    digest = hashlib.sha256(data[8 + length :]).hexdigest()
    assert read_network(path).metadata["sshs_model_hash"] == digest
    assert setup.active.hashes() == {"alias of cat": digest[:12], "plain": digest[:12]}


def test_applied_weights_do_what_the_network_in_training_does(setup: Setup) -> None:
    checkpoint = setup.checkpoint
    network = Network(
        find_targets(checkpoint, NetworkSettings(network_dim=4, network_alpha=2)), torch.Generator().manual_seed(0)
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for adapter in network.adapters.values():
            adapter.lora_up.weight.copy_(torch.randn(adapter.lora_up.weight.shape, generator=generator) * 0.02)
    write_network(setup.folder / "all.safetensors", network.state_dict_for_file(), {}, "float")
    latents, ids = torch.randn(1, 4, 8, 8, generator=generator), torch.randint(0, 400, (1, 1, 77), generator=generator)

    def predict() -> Tensor:
        with torch.no_grad():
            context = checkpoint.text_encoders[0].encode(ids)
            result: Tensor = checkpoint.unet(latents, torch.tensor([500]), context)
        return result

    base = predict()
    with network.attached():
        training = predict()
    assert setup.active.activate([LoraTag("all", 1.0)]) == []
    assert (training - base).abs().max() > 0.01
    torch.testing.assert_close(predict(), training, rtol=1e-5, atol=1e-5)
    setup.active.deactivate()
    assert torch.equal(predict(), base)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_are_the_rounded_exact_ones(setup: Setup, dtype: torch.dtype) -> None:
    """Two networks sum in fp32 before the one rounding."""
    setup.checkpoint.unet.to(dtype)
    setup.weights = weights_of(setup.checkpoint)
    base = setup.weights[LINEAR].detach().double()
    setup.write("cat", (LINEAR,), seed=1)
    setup.write("dog", (LINEAR,), seed=2)
    setup.active.activate([LoraTag("cat", 0.7), LoraTag("dog", -0.4)])
    exact = base + 0.7 * setup.delta("cat", LINEAR) - 0.4 * setup.delta("dog", LINEAR)
    assert setup.weights[LINEAR].eq(exact.to(dtype)).double().mean() >= 0.999
    setup.active.deactivate()
    assert torch.equal(setup.weights[LINEAR].double(), base)


def test_a_pickled_network_is_the_same_as_a_safetensors_one(setup: Setup) -> None:
    path = setup.write("cat", (LINEAR, POINTWISE, CONVOLUTION, TEXT))
    torch.save(read_network(path).tensors, path.with_name("old.pt"))
    setup.activate("<lora:cat:0.8>")
    expected = setup.state()
    setup.activate("")
    assert setup.activate("<lora:old:0.8>") == []
    assert all(torch.equal(weight, expected[key]) for key, weight in setup.state().items())
