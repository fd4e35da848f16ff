"""Samples and cards of a run: what is kept on disk, and what a host without samples gets told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from lora_ext.config.train_config import TrainConfig
from lora_ext.jobs.registry import RunRegistry
from lora_ext.jobs.runner import JobRunner
from lora_ext.jobs.samples_file import read_samples
from lora_ext.protocols import ConfigError, GenerateRequest
from lora_ext.training.checks import prepare_run

if TYPE_CHECKING:
    from lora_ext.host.standalone.host import StandaloneHost

MakeConfig = Callable[..., TrainConfig]
DRAWN = {"sample_every_n_epochs": 1, "sample_prompts": "a cat --s 2 --d 5\na dog --s 1", "learning_rate": 0.01}


def test_samples_are_kept_and_listed(tiny_host: StandaloneHost, run_config: MakeConfig) -> None:
    runner = JobRunner(tiny_host, RunRegistry(tiny_host.folders().runs))
    config = run_config(**DRAWN, save_precision="float", network_train_unet_only=False)
    record = runner.wait(runner.start(config).id, 60)
    assert (record.state, record.error) == ("finished", None)
    samples = runner.registry.samples(record.id)
    assert [(each.prompt, each.prompt_number, each.epoch, each.step) for each in samples] == [
        ("a cat", 0, 1, 2), ("a dog", 1, 1, 2), ("a cat", 0, 2, 4), ("a dog", 1, 2, 4),
    ]  # fmt: skip
    assert {each.path.parent for each in samples} == {tiny_host.folders().runs / record.id / "samples"}
    with Image.open(samples[2].path) as shown:
        infotext = shown.info["parameters"]
        drawn = np.asarray(shown.convert("RGB")).astype(float)
    assert infotext == samples[2].infotext
    assert infotext.startswith("a cat\nSteps: 2, ") and ", Network in training: cat, Network epoch: 2" in infotext
    request = GenerateRequest("a cat <lora:cat:1>", width=64, height=64, steps=2, seed=5)
    (with_tag,) = tiny_host.generate(request)
    assert np.abs(drawn - np.asarray(with_tag.image)).max() <= 1  # rounded in another place
    assert runner.status(record.id).samples == 4
    assert JobRunner(tiny_host, runner.registry).status(record.id).samples == 4
    assert not list(tiny_host.folders().networks[0].glob("*.json"))


def test_a_prompt_to_try_the_network_with(tiny_host: StandaloneHost, run_config: MakeConfig) -> None:
    """The first of the samples', or else the first caption."""
    registry = RunRegistry(tiny_host.folders().runs)
    for config, prompt in ((run_config(**DRAWN), "a cat"), (run_config(), "cat")):
        prepared = prepare_run(config, tiny_host.folders().networks[0])
        run = registry.create_prepared(prepared)
        assert (run.record.trial_prompt, registry.record(run.record.id).trial_prompt) == (prompt, prompt)
        run.close()


def test_a_line_that_was_cut_off_is_left_out(tiny_host: StandaloneHost, run_config: MakeConfig) -> None:
    runner = JobRunner(tiny_host, RunRegistry(tiny_host.folders().runs))
    record = runner.wait(runner.start(run_config(**DRAWN)).id, 60)
    folder = tiny_host.folders().runs / record.id / "samples"
    with open(folder / "samples.jsonl", "a", encoding="utf-8") as file:
        file.write('{"path": "x.png", "pro')
    assert len(read_samples(folder)) == 4
    read_samples(folder)[0].path.unlink()
    assert [each.step for each in read_samples(folder)] == [2, 4, 4]


def test_cards_are_written_where_they_are_wanted(tiny_host: StandaloneHost, run_config: MakeConfig) -> None:
    runner = JobRunner(tiny_host, RunRegistry(tiny_host.folders().runs))
    config = run_config(**DRAWN, save_sidecar="yes", save_last_n_epochs=1, max_train_epochs=3)
    record = runner.wait(runner.start(config).id, 60)
    networks = tiny_host.folders().networks[0]
    assert sorted(path.name for path in networks.iterdir()) == [
        f"{name}{suffix}" for name in ("cat-000002", "cat") for suffix in (".json", ".png", ".safetensors")
    ]  # fmt: skip
    card = json.loads((networks / "cat.json").read_text(encoding="utf-8"))
    assert card["description"] == "cat: epoch 3, step 6 on tiny-sd1.safetensors"
    assert (card["activation text"], card["sd version"]) == ("cat", "SD1")
    with Image.open(networks / "cat-000002.png") as shown:
        assert "Network step: 4" in shown.info["parameters"]
    assert [Path(file).name for file in record.files] == ["cat-000002.safetensors", "cat.safetensors"]


def test_a_host_that_cannot_draw_trains_all_the_same(host: Any, run_config: MakeConfig) -> None:
    host.samplers = lambda: ["Euler a"]
    runner = JobRunner(host, RunRegistry(host.folders().runs))
    record = runner.wait(runner.start(run_config(**DRAWN)).id, 60)
    assert record.state == "finished" and runner.registry.samples(record.id) == []
    told = [each["text"] for each in runner.status(record.id).messages if each["text"].startswith("The sample")]
    assert told[0] == "The sample “a cat” of step 2 was not drawn: NotImplementedError" and len(told) == 4


def test_a_sampler_that_the_host_lacks_is_refused_at_once(host: Any, run_config: MakeConfig) -> None:
    host.samplers = lambda: ["DDIM"]
    runner = JobRunner(host, RunRegistry(host.folders().runs))
    with pytest.raises(ConfigError, match="sample_sampler = 'Euler a': allowed are DDIM"):
        runner.start(run_config(**DRAWN))
    assert runner.registry.records() == []
