"""Training on SD2, SDXL and inpainting checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_ext.checkpoint.checkpoint import Checkpoint
from lora_ext.config.train_config import TrainConfig
from lora_ext.host.standalone.loader import load_checkpoint
from lora_ext.networks.file import read_network
from lora_ext.protocols import Control, Events, StepReport
from lora_ext.training.trainer import Trainer

pytestmark = pytest.mark.slow
MakeConfig = Callable[..., TrainConfig]
StateOf = Callable[[Checkpoint], list[Any]]
KINDS = ("sd1-inpainting", "sd2", "sd2-v", "sdxl")


class Said(Events):
    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, level: str, text: str) -> None:
        self.messages.append(text)


@pytest.fixture
def watched(tiny_kind_path: Callable[[str], Path], state_of: StateOf) -> Iterator[Callable[[str], Checkpoint]]:
    """Loads kinds; what a test has not put back fails it."""
    before: list[tuple[Checkpoint, list[Any]]] = []

    def load(name: str) -> Checkpoint:
        checkpoint = load_checkpoint(tiny_kind_path(name), torch.device("cpu"), torch.float32).checkpoint
        before.append((checkpoint, state_of(checkpoint)))
        return checkpoint

    yield load
    for checkpoint, state in before:
        assert state_of(checkpoint) == state


def trained_groups(tensors: dict[str, torch.Tensor]) -> dict[str, int]:
    """How many modules of each part have been trained: their up weights are no longer zero."""
    groups: dict[str, int] = {}
    for key, tensor in tensors.items():
        if key.endswith("lora_up.weight") and tensor.abs().sum() > 0:
            part = key.split("_text_model")[0] if "_text_model" in key else "lora_unet"
            groups[part] = groups.get(part, 0) + 1
    return groups


@pytest.mark.parametrize(
    ("name", "groups"),
    [
        ("sd1-inpainting", {"lora_unet": 192, "lora_te": 12}),
        ("sd2", {"lora_unet": 192, "lora_te": 12}),
        ("sd2-v", {"lora_unet": 192, "lora_te": 12}),
        ("sdxl", {"lora_unet": 192, "lora_te1": 6, "lora_te2": 18}),
    ],
)
def test_every_part_is_trained_and_the_base_left_alone(
    name: str, groups: dict[str, int], watched: Callable[[str], Checkpoint], small_config: MakeConfig, tmp_path: Path
) -> None:
    """SDXL takes the states before CLIP's last layer, so that one learns nothing; OpenCLIP's is heard in the pooled."""
    checkpoint = watched(name)
    result = Trainer(checkpoint, small_config(max_train_epochs=1), tmp_path).run()
    assert result.bad_steps == 0 and result.steps == 3
    assert trained_groups(read_network(result.files[-1]).tensors) == groups


@pytest.mark.parametrize("name", ["sd2", "sdxl"])
def test_kept_encodings_change_nothing(
    name: str, watched: Callable[[str], Checkpoint], small_config: MakeConfig, tmp_path: Path
) -> None:
    checkpoint = watched(name)
    losses = []
    for number, values in enumerate(
        [{"cache_text_encoder_outputs": False}, {}, {"cache_text_encoder_outputs_to_disk": True}]
        + [{"cache_text_encoder_outputs_to_disk": True}]
    ):
        config = small_config(
            network_train_unet_only=True, max_train_epochs=1, max_token_length=150, weighted_captions=True,
            caption_dropout_rate=0.3, flip_aug=True, **values,
        )  # fmt: skip
        losses.append(Trainer(checkpoint, config, tmp_path / str(number)).run().losses)
    for each in losses[1:]:
        assert each == pytest.approx(losses[0], rel=1e-5)


def test_gradient_checkpointing_gives_the_same_network(
    watched: Callable[[str], Checkpoint], small_config: MakeConfig, tmp_path: Path
) -> None:
    checkpoint = watched("sdxl")
    files = [
        Trainer(checkpoint, small_config(max_train_epochs=1, gradient_checkpointing=on), tmp_path / str(on))
        .run()
        .files[-1]
        for on in (False, True)
    ]
    one, other = (read_network(file).tensors for file in files)
    assert one.keys() == other.keys()
    for key, tensor in one.items():
        torch.testing.assert_close(other[key], tensor, atol=2e-5, rtol=1e-4)


def test_sdxl_is_told_the_frame_of_each_picture(
    watched: Callable[[str], Checkpoint], small_config: MakeConfig, tmp_path: Path
) -> None:
    """Pictures of 96×64 are cut to the bucket 80×48; what the U-Net is given ends in their sinusoids."""
    from lora_ext.checkpoint.conditioning import Frame, frame_vectors

    checkpoint = watched("sdxl")
    seen: dict[tuple[int, ...], torch.Tensor] = {}
    unet = checkpoint.unet
    original = unet.forward

    def forward(x: torch.Tensor, timesteps: torch.Tensor, context: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        assert context.shape[1:] == (77, 64) and y.shape[1] == 32 + 1536
        seen[tuple(x.shape[2:])] = y[0, 32:].detach().clone()
        return original(x, timesteps, context, y)

    unet.__dict__["forward"] = forward
    try:
        Trainer(checkpoint, small_config(max_train_epochs=1, network_train_unet_only=True), tmp_path).run()
    finally:
        del unet.__dict__["forward"]
    expected = {(8, 8): Frame.whole((64, 64)), (6, 10): Frame((96, 64), (0, 2), (80, 48))}
    assert seen.keys() == expected.keys()
    for size, frame in expected.items():
        torch.testing.assert_close(seen[size], frame_vectors([frame])[0])


def test_an_inpainting_u_net_sees_an_empty_picture(
    watched: Callable[[str], Checkpoint], small_config: MakeConfig, tmp_path: Path
) -> None:
    checkpoint = watched("sd1-inpainting")
    seen: list[torch.Tensor] = []
    original = checkpoint.unet.forward

    def forward(x: torch.Tensor, *given: torch.Tensor) -> torch.Tensor:
        seen.append(x.detach().clone())
        return original(x, *given)

    checkpoint.unet.__dict__["forward"] = forward
    try:
        config = small_config(max_train_epochs=1, network_train_unet_only=True, enable_bucket=False)
        Trainer(checkpoint, config, tmp_path).run()
    finally:
        del checkpoint.unet.__dict__["forward"]
    with torch.no_grad():
        grey = checkpoint.encode_images(torch.zeros(1, 3, 64, 64))[0] * 0.18215
    for x in seen:
        assert x.shape[1:] == (9, 8, 8) and x[:, 4].eq(1).all()
        torch.testing.assert_close(x[:, 5:], grey.expand(len(x), -1, -1, -1))


def test_clip_skip_without_effect_is_told(
    watched: Callable[[str], Checkpoint], small_config: MakeConfig, tmp_path: Path
) -> None:
    said = Said()
    config = small_config(max_train_steps=1, max_train_epochs=None, clip_skip=2, network_train_unet_only=True)
    Trainer(watched("sdxl"), config, tmp_path, said).run()
    assert any("clip_skip = 2 has no effect" in message for message in said.messages)


def test_a_stopped_run_on_sdxl_goes_on_bit_for_bit(
    watched: Callable[[str], Checkpoint], small_config: MakeConfig, tmp_path: Path
) -> None:
    class Stopping(Events):
        def step(self, report: StepReport) -> None:
            if report.step == 2:
                control.stop()

    checkpoint = watched("sdxl")
    config = small_config(max_train_epochs=1, save_state_on_train_end=True, shuffle_caption=True)
    going_on = replace(config, saving=replace(config.saving, resume="latest"))
    control = Control()
    stopped = Trainer(checkpoint, config, tmp_path / "parts", Stopping(), control).run()
    assert stopped.stopped and stopped.steps == 2
    parts = Trainer(checkpoint, going_on, tmp_path / "parts").run()
    whole = Trainer(checkpoint, config, tmp_path / "whole").run()
    assert parts.losses == whole.losses
    one, other = (read_network(result.files[-1]).metadata["sshs_model_hash"] for result in (parts, whole))
    assert one == other
