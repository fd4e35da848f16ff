"""What cannot be extracted is refused by name before anything is written, and what is compared only in part is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lora_ext.host.standalone.random_checkpoint import TINY_KINDS
from lora_ext.merge.extract import TOOL
from lora_ext.merge.tools import make_settings
from lora_ext.merge.work import ToolReport, Work
from lora_ext.protocols import ConfigError, UserError

Q = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight"
BIAS = "model.diffusion_model.out.2.bias"


@pytest.fixture
def bases(tiny_kind_path: Callable[[str], Path]) -> dict[str, Path]:
    """Tiny checkpoints by kind; nobody changes them."""
    return {name: tiny_kind_path(name) for name in TINY_KINDS}


def extract(base: Path, tuned: Path, out: Path | None = None, **values: object) -> ToolReport:
    """Run the tool as a form would."""
    given = {
        "base": str(base),
        "tuned": str(tuned),
        "rank": 4,
        "out": str(out or tuned.with_name("network.safetensors")),
    }
    return TOOL.run(make_settings(TOOL, {**given, **values}), Work())


def changed(base: Path, folder: Path, change: Callable[[dict[str, Tensor]], None], name: str = "tuned") -> Path:
    """A copy of a checkpoint with other tensors, without a YAML."""
    tensors = load_file(base)
    change(tensors)
    path = folder / f"{name}.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)
    return path


def add_to_q(tensors: dict[str, Tensor]) -> None:
    tensors[Q] = tensors[Q] + torch.eye(*tensors[Q].shape)


def test_identical_checkpoints_and_such_that_no_network_holds_the_difference_of(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    copy = changed(bases["sd1"], tmp_path, lambda tensors: None)
    with pytest.raises(UserError, match="tiny-sd1 and tuned do not differ: there is nothing to extract"):
        extract(bases["sd1"], copy)

    def other_bias(tensors: dict[str, Tensor]) -> None:
        tensors[BIAS][0] += 1

    with pytest.raises(UserError, match="do not differ in anything that the network would hold, only in: biases"):
        extract(bases["sd1"], changed(bases["sd1"], tmp_path, other_bias))
    assert not (tmp_path / "network.safetensors").exists()


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ("sd1", "sdxl", "tiny-sd1.safetensors is an SD1 checkpoint and tiny-sdxl.safetensors an SDXL one"),
        (
            "sd2",
            "sd2-v",
            r"tiny-sd2.safetensors predicts the noise \(ε\) and tiny-sd2-v.safetensors the velocity \(v\)",
        ),
    ],
)
def test_checkpoints_of_other_kinds(
    bases: dict[str, Path], tmp_path: Path, first: str, second: str, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        extract(bases[first], bases[second], tmp_path / "network.safetensors")


def test_a_mark_or_metadata_tell_the_prediction_too(bases: dict[str, Path], tmp_path: Path) -> None:
    def marked(tensors: dict[str, Tensor]) -> None:
        add_to_q(tensors)
        tensors["v_pred"] = torch.zeros(0)

    velocity = changed(bases["sdxl"], tmp_path, marked)
    with pytest.raises(UserError, match=r"predicts the noise \(ε\) and tuned.safetensors the velocity"):
        extract(bases["sdxl"], velocity)
    save_file(load_file(bases["sdxl"]), tmp_path / "base.safetensors", {"modelspec.prediction_type": "epsilon"})
    with pytest.raises(UserError, match=r"base.safetensors predicts the noise \(ε\)"):
        extract(tmp_path / "base.safetensors", velocity)


def test_another_width_is_refused_by_the_name_of_a_module(bases: dict[str, Path], tmp_path: Path) -> None:
    def wider(tensors: dict[str, Tensor]) -> None:
        tensors[Q] = torch.cat([tensors[Q], tensors[Q]])

    with pytest.raises(
        UserError, match=r"mid_block_attentions_0_transformer_blocks_0_attn1_to_q is \(64, 64\) in tiny-sd1"
    ):
        extract(bases["sd1"], changed(bases["sd1"], tmp_path, wider))


def test_the_shared_part_of_an_inpainting_checkpoint_is_extracted_and_told(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    def inpainting(tensors: dict[str, Tensor]) -> None:
        add_to_q(tensors)
        name = "model.diffusion_model.input_blocks.0.0.weight"
        tensors[name] = torch.cat([tensors[name], torch.zeros(len(tensors[name]), 5, 3, 3)], 1)

    report = extract(bases["sd1"], changed(bases["sd1"], tmp_path, inpainting))
    assert len(report.modules) == 1
    assert any("tuned is an inpainting checkpoint, the other is none" in words for words in report.warnings)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("is_base", [True, False])
def test_values_that_are_no_numbers_are_named(
    bases: dict[str, Path], tmp_path: Path, value: float, is_base: bool
) -> None:
    def damage(tensors: dict[str, Tensor]) -> None:
        tensors[Q][3, 4] = value

    damaged = changed(bases["sd1"], tmp_path, damage, "damaged")
    healthy = changed(bases["sd1"], tmp_path, add_to_q, "healthy")
    pair = (damaged, healthy) if is_base else (healthy, damaged)
    with pytest.raises(UserError, match=rf"damaged\.safetensors: {Q} holds values that are no numbers"):
        extract(*pair, tmp_path / "network.safetensors")
    assert not (tmp_path / "network.safetensors").exists()


def test_damage_in_what_is_left_out_is_told(bases: dict[str, Path], tmp_path: Path) -> None:
    def damage(tensors: dict[str, Tensor]) -> None:
        add_to_q(tensors)
        tensors[BIAS][0] = float("nan")

    report = extract(bases["sd1"], changed(bases["sd1"], tmp_path, damage))
    assert any(BIAS in words and "no numbers" in words for words in report.warnings)


def test_pickled_checkpoints_are_read_and_such_with_code_refused(bases: dict[str, Path], tmp_path: Path) -> None:
    tensors = load_file(bases["sd1"])
    add_to_q(tensors)
    pickled = tmp_path / "tuned.ckpt"
    torch.save({"state_dict": tensors}, pickled)
    assert len(extract(bases["sd1"], pickled).modules) == 1
    torch.save({"state_dict": tensors, "callback": print}, pickled)
    with pytest.raises(UserError, match=r"tuned\.ckpt"):
        extract(bases["sd1"], pickled, overwrite=True)


def test_averaged_weights_and_mixed_precision_are_told(bases: dict[str, Path], tmp_path: Path) -> None:
    def averaged(tensors: dict[str, Tensor]) -> None:
        add_to_q(tensors)
        tensors["model_ema.middle_block1proj_inweight"] = tensors[Q].clone()

    report = extract(bases["sd1"], changed(bases["sd1"], tmp_path, averaged))
    assert any("tuned has averaged weights (EMA) too" in words for words in report.warnings)

    def half(tensors: dict[str, Tensor]) -> None:
        add_to_q(tensors)
        for name in tensors:
            tensors[name] = tensors[name].half()

    report = extract(bases["sd1"], changed(bases["sd1"], tmp_path, half), overwrite=True)
    assert any("tiny-sd1 in float32 and tuned in float16" in words for words in report.warnings)


def test_outputs_that_may_not_be_written(bases: dict[str, Path], tmp_path: Path) -> None:
    tuned = changed(bases["sd1"], tmp_path, add_to_q)
    before = tuned.read_bytes()
    with pytest.raises(UserError, match="is read and would be written over"):
        extract(bases["sd1"], tuned, tuned, overwrite=True)
    with pytest.raises(UserError, match="files are written as .safetensors"):
        extract(bases["sd1"], tuned, tmp_path / "network.pt")
    extract(bases["sd1"], tuned)
    with pytest.raises(UserError, match="is there already"):
        extract(bases["sd1"], tuned)
    assert tuned.read_bytes() == before


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"rank": "none"}, "the mode fixed needs a rank"),
        ({"mode": "ratio"}, "ratio: the mode ratio needs a number"),
        ({"mode": "quantile", "quantile": 2}, "quantile = 2: allowed is a number from 0 to 1"),
        ({"mode": "best"}, "allowed is one of fixed, threshold, ratio, quantile"),
        ({"base": ""}, "base: no checkpoint is named"),
        ({"what": "vae"}, 'allowed is one of "unet,te", unet, te'),
    ],
)
def test_settings_that_make_no_sense(
    bases: dict[str, Path], tmp_path: Path, values: dict[str, object], words: str
) -> None:
    given = {"base": str(bases["sd1"]), "tuned": str(bases["sd2"]), "out": str(tmp_path / "out.safetensors")}
    with pytest.raises(ConfigError, match=words):
        TOOL.run(make_settings(TOOL, {**given, **values}), Work())


def test_too_little_memory_is_told_before_anything_is_read(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned = changed(bases["sd1"], tmp_path, add_to_q)
    monkeypatch.setattr("lora_ext.merge.memory.available_memory", lambda device: 1000)
    with pytest.raises(UserError, match="extracting from tuned.safetensors takes about"):
        extract(bases["sd1"], tuned)


def test_a_checkpoint_without_text_encoders_is_compared_in_its_unet(bases: dict[str, Path], tmp_path: Path) -> None:
    def alone(tensors: dict[str, Tensor]) -> None:
        add_to_q(tensors)
        for name in [name for name in tensors if name.startswith("cond_stage_model.")]:
            del tensors[name]

    report = extract(bases["sd1"], changed(bases["sd1"], tmp_path, alone))
    assert len(report.modules) == 1
    assert any("12 modules are in one of both checkpoints alone" in words for words in report.warnings)
    with pytest.raises(UserError, match="have no such part in common"):
        extract(bases["sd1"], tmp_path / "tuned.safetensors", what="te", overwrite=True)
