"""Samples while a network is trained: when they are drawn, what they show, and that training does not feel them."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lora_ext.checkpoint.checkpoint import Checkpoint
from lora_ext.config.sample_prompts import SamplePrompt
from lora_ext.config.train_config import TrainConfig
from lora_ext.networks.file import read_network
from lora_ext.protocols import (
    ConfigError,
    Control,
    Events,
    GeneratedImage,
    GenerateRequest,
    MessageLevel,
    Progress,
    Sample,
    UserError,
)
from lora_ext.training.samples import check_samplers, read_sample_prompts, sample_request
from lora_ext.training.trainer import Trainer

MakeConfig = Callable[..., TrainConfig]


class Painter:
    """Renders with the checkpoint's own modules, as a host does, and draws upon every random state there is."""

    def __init__(self, checkpoint: Checkpoint, fails: Exception | None = None) -> None:
        self.checkpoint = checkpoint
        self.fails = fails
        self.requests: list[GenerateRequest] = []
        self.outputs: list[torch.Tensor] = []
        self.on_step: Callable[[], None] = lambda: None

    def generate(self, request: GenerateRequest, progress: Progress | None = None) -> list[GeneratedImage]:
        self.requests.append(request)
        random.random()
        np.random.rand()
        torch.rand(3)
        encoder = self.checkpoint.text_encoders[0]
        states = encoder.encode(encoder.tokenize([request.prompt], 75), request.clip_skip)
        latents = torch.linspace(-1, 1, 4 * 8 * 8).reshape(1, 4, 8, 8)
        self.outputs.append(self.checkpoint.unet(latents, torch.tensor([400]), states))
        assert not self.outputs[-1].requires_grad
        self.on_step()
        assert progress is not None
        progress(1, 2)
        if self.fails is not None:
            raise self.fails
        return [
            GeneratedImage(Image.new("RGB", (64, 64)), request.seed, f"{request.prompt}\nSteps: 2, Seed: 1", ("pale",))
        ]


class Seen(Events):
    def __init__(self, on_step: Callable[[int], None] = lambda step: None) -> None:
        self.samples: list[Sample] = []
        self.messages: list[tuple[str, str]] = []
        self.on_step = on_step

    def step(self, report: object) -> None:
        self.on_step(report.step)  # type: ignore[attr-defined]

    def sampled(self, sample: Sample) -> None:
        self.samples.append(sample)

    def message(self, level: MessageLevel, text: str) -> None:
        self.messages.append((level, text))

    @property
    def places(self) -> list[tuple[int, int, int]]:
        return [(sample.epoch, sample.step, sample.prompt_number) for sample in self.samples]


def model_hash(path: Path) -> str:
    return read_network(path).metadata["sshs_model_hash"]


@pytest.mark.parametrize("values", [{}, {"mixed_precision": "bf16"}, {"gradient_checkpointing": True}])
def test_training_does_not_feel_samples(
    values: dict[str, object], checkpoint: Checkpoint, small_config: MakeConfig, tmp_path: Path
) -> None:
    plain = Trainer(checkpoint, small_config(shuffle_caption=True, **values), tmp_path / "plain").run()
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    config = small_config(
        shuffle_caption=True, sample_every_n_steps=1, sample_at_first=True, sample_prompts="a cat\na dog", **values
    )
    events, painter = Seen(), Painter(checkpoint)
    sampled = Trainer(checkpoint, config, tmp_path / "sampled", events, generator=painter).run()
    assert len(events.samples) == 2 * (1 + 6)
    assert [model_hash(path) for path in sampled.files] == [model_hash(path) for path in plain.files]
    assert sampled.losses == plain.losses
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]


def test_samples_show_the_network_as_it_is(checkpoint: Checkpoint, small_config: MakeConfig, tmp_path: Path) -> None:
    painter = Painter(checkpoint)
    config = small_config(sample_every_n_steps=3, sample_at_first=True, sample_prompts="a cat", learning_rate=1e-2)
    Trainer(checkpoint, config, tmp_path, Seen(), generator=painter).run()
    with torch.no_grad():
        Painter.generate(bare := Painter(checkpoint), painter.requests[0], lambda done, total: None)
    first, second, third = painter.outputs
    assert torch.equal(first, bare.outputs[0])  # up weights are zero before the first step
    assert not torch.equal(second, first) and not torch.equal(third, second)


@pytest.mark.parametrize(
    ("values", "places"),
    [
        ({"sample_every_n_epochs": 1}, [(1, 3, 0), (2, 6, 0)]),
        ({"sample_every_n_epochs": 2}, [(2, 6, 0)]),
        ({"sample_every_n_steps": 2}, [(1, 2, 0), (2, 4, 0), (2, 6, 0)]),
        ({"sample_every_n_epochs": 2, "sample_every_n_steps": 1}, [(2, 6, 0)]),
        ({"sample_at_first": True}, [(0, 0, 0)]),
        ({}, []),
    ],
)
def test_when_samples_are_drawn(
    values: dict[str, object], places: list[tuple[int, int, int]],
    checkpoint: Checkpoint, small_config: MakeConfig, tmp_path: Path,
) -> None:  # fmt: skip
    events = Seen()
    config = small_config(sample_prompts="a cat", **values)
    Trainer(checkpoint, config, tmp_path, events, generator=Painter(checkpoint)).run()
    assert events.places == places


def test_sample_now_uses_the_first_caption_and_says_so(
    checkpoint: Checkpoint, small_config: MakeConfig, tmp_path: Path
) -> None:
    control = Control()
    events = Seen(lambda step: control.sample_now() if step in (2, 6) else None)
    painter = Painter(checkpoint)
    Trainer(checkpoint, small_config(), tmp_path, events, control, generator=painter).run()
    assert events.places == [(1, 2, 0), (2, 6, 0)]
    assert [request.prompt for request in painter.requests] == ["a cat, number 0, yellow"] * 2
    assert events.messages.count(("warning", "Samples: pale")) == 1
    said = [text for level, text in events.messages if "no sample prompts" in text]
    assert said == ["There are no sample prompts: the first caption is drawn, “a cat, number 0, yellow”."]
    assert events.samples[0].image.infotext.endswith(
        "Seed: 1, Network in training: cat, Network epoch: 1, Network step: 2"
    )


@pytest.mark.parametrize("error", [UserError("NaN in the picture"), RuntimeError("NaN in the picture")])
def test_a_failing_sample_is_a_warning(
    error: Exception, checkpoint: Checkpoint, small_config: MakeConfig, tmp_path: Path
) -> None:
    events = Seen()
    config = small_config(sample_every_n_epochs=1, sample_prompts="a cat\na dog")
    result = Trainer(checkpoint, config, tmp_path, events, generator=Painter(checkpoint, error)).run()
    assert (result.steps, result.stopped, len(result.files)) == (6, False, 2)
    warnings = [text for level, text in events.messages if level == "warning" and "sample" in text]
    assert len(warnings) == 4
    assert warnings[0] == "The sample “a cat” of step 3 was not drawn: NaN in the picture"


def test_stop_in_the_middle_of_a_sample(checkpoint: Checkpoint, small_config: MakeConfig, tmp_path: Path) -> None:
    control, events, painter = Control(), Seen(), Painter(checkpoint)
    painter.on_step = control.stop
    config = small_config(sample_every_n_steps=2, sample_prompts="a cat\na dog")
    result = Trainer(checkpoint, config, tmp_path, events, control, generator=painter).run()
    assert (result.steps, result.stopped, events.samples, len(painter.requests)) == (2, True, [], 1)
    assert [path.name for path in result.files] == ["cat.safetensors"]


def test_without_a_generator_samples_are_told_of(
    checkpoint: Checkpoint, small_config: MakeConfig, tmp_path: Path
) -> None:
    events = Seen()
    Trainer(checkpoint, small_config(sample_at_first=True), tmp_path, events).run()
    assert ("warning", "No samples are drawn: this program renders no pictures while it trains.") in events.messages


def test_what_a_prompt_leaves_open_is_the_runs(small_config: MakeConfig) -> None:
    config = small_config(resolution="64,96", seed=9, clip_skip=2, sample_sampler="ddim")
    assert sample_request(SamplePrompt("a cat"), config) == GenerateRequest(
        "a cat", width=64, height=96, steps=20, cfg_scale=7.0, sampler="DDIM", seed=9, clip_skip=2
    )
    words = sample_request(SamplePrompt("a photo of [filewords]"), config, "a zib, number 3")
    assert words.prompt == "a photo of a zib, number 3"
    own = SamplePrompt("a cat", "dog", 128, 72, 0, 5, 3.0, "Euler")
    assert sample_request(own, config) == GenerateRequest("a cat", "dog", 128, 72, 5, 3.0, "Euler", 0, 1, 2)


def test_prompts_in_a_file(small_config: MakeConfig, tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("# mine\na cat --s 5\na dog\n", encoding="utf-8")
    config = small_config(sample_prompts=str(path))
    assert [prompt.prompt for prompt in read_sample_prompts(config)] == ["a cat", "a dog"]
    path.write_text("a cat --s 0", encoding="utf-8")
    with pytest.raises(ConfigError, match="sample_prompts, line 1: --s 0"):
        read_sample_prompts(config)
    table = tmp_path / "prompts.json"
    table.write_text('[{"prompt": "a bird", "sample_steps": 5}]', encoding="utf-8")
    assert read_sample_prompts(small_config(sample_prompts=str(table))) == [SamplePrompt("a bird", steps=5)]
    path.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        read_sample_prompts(config)


def test_unknown_samplers_are_refused_where_samples_are_wanted(small_config: MakeConfig) -> None:
    known = ["Euler a", "DDIM"]
    check_samplers(small_config(sample_sampler="LMS"), [], known)
    with pytest.raises(ConfigError, match="sample_sampler = 'LMS': allowed are Euler a, DDIM"):
        check_samplers(small_config(sample_sampler="LMS", sample_at_first=True), [], known)
    with pytest.raises(ConfigError, match="sample_sampler = 'LMS': allowed are Euler a, DDIM"):
        check_samplers(small_config(sample_sampler="LMS"), [], known, class_pictures=4)
    with pytest.raises(ConfigError, match="--ss = 'Heun'"):
        check_samplers(small_config(), [SamplePrompt("a cat", sampler="Heun")], known)
