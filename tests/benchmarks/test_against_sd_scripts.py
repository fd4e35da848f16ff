"""The comparison with sd-scripts: its measures and what it hands over, without sd-scripts itself."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.sd_scripts.cases import CASES, Limits, base_options, base_settings
from benchmarks.sd_scripts.compare import Difference, delta_differences, difference, loss_difference
from benchmarks.sd_scripts.driver import Replay, draws_by_step
from benchmarks.sd_scripts.recording import Recorder
from benchmarks.sd_scripts.side_by_side import Timing, mean_step, write_subject
from lora_ext.config.train_config import make_config
from lora_ext.host.standalone.host import StandaloneHost
from lora_ext.training.noise import sample_noise
from lora_ext.training.trainer import Trainer


def module(up: list[list[float]], down: list[list[float]], alpha: float) -> dict[str, Tensor]:
    """A module's tensors by suffix."""
    return {
        "lora_up.weight": torch.tensor(up),
        "lora_down.weight": torch.tensor(down),
        "alpha": torch.tensor(alpha),
    }


def network(**modules: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as in a file."""
    return {f"{key}.{suffix}": tensor for key, tensors in modules.items() for suffix, tensor in tensors.items()}


def test_losses_differ_relatively() -> None:
    assert loss_difference([1.0, 2.02, 4.0], [1.0, 2.0, 4.0]) == pytest.approx(0.01)
    with pytest.raises(ValueError, match="2 losses of ours and 1"):
        loss_difference([1.0, 2.0], [1.0])


def test_modules_differ_by_their_change_of_the_weight() -> None:
    ours = network(
        lora_unet_a=module([[3.0], [4.0]], [[1.0]], 1.0),  # ΔW = (3, 4)
        lora_unet_b=module([[0.0]], [[5.0]], 1.0),  # ΔW = 0, as theirs
        lora_unet_c=module([[1.0]], [[1.0]], 1.0),  # ΔW = 1 where theirs is 0
    )
    theirs = network(
        lora_unet_a=module([[6.0], [0.0]], [[0.5]], 1.0),  # ΔW = (3, 0)
        lora_unet_b=module([[0.0]], [[7.0]], 1.0),
        lora_unet_c=module([[0.0]], [[1.0]], 1.0),
    )
    assert delta_differences(ours, theirs) == {
        "lora_unet_a": pytest.approx(4 / 3),
        "lora_unet_b": 0.0,
        "lora_unet_c": math.inf,
    }


def test_alpha_counts() -> None:
    ours, theirs = network(lora_te_a=module([[1.0]], [[1.0]], 1.0)), network(lora_te_a=module([[1.0]], [[1.0]], 0.5))
    assert delta_differences(ours, theirs) == {"lora_te_a": pytest.approx(1.0)}


def test_networks_of_other_modules_are_not_compared() -> None:
    one, other = network(lora_te_a=module([[1.0]], [[1.0]], 1.0)), network(lora_te_b=module([[1.0]], [[1.0]], 1.0))
    with pytest.raises(ValueError, match="2 modules are in one network only, such as lora_te_a, lora_te_b"):
        delta_differences(one, other)


def test_a_run_that_is_no_number_passes_no_limit() -> None:
    limits = Limits(loss=1e-4, median=1e-3, maximum=1e-2)
    assert Difference(1e-5, 1e-4, 9e-3, "lora_te_a").within(limits)
    assert not Difference(1e-5, 1e-4, 2e-2, "lora_te_a").within(limits)
    tensors = network(lora_te_a=module([[1.0]], [[1.0]], 1.0))
    assert not difference([math.nan], [1.0], tensors, tensors).within(limits)


def test_steps_are_timed_after_two_that_warm_up() -> None:
    times = [100.0, 140.0, 150.0, 152.0, 158.0]  # the first step's beginning, then the end of each of four
    assert mean_step(times) == 4.0
    report = {"times": times, "processor_times": [1.0, 2.0, 3.0, 4.0, 6.0], "peak_gb": 5.5}
    assert Timing.of(report, spawned=90.0) == Timing(startup=10.0, step=4.0, processor=1.5, peak_gb=5.5)


def test_numbers_go_back_by_function_and_shape() -> None:
    noise, shift, timesteps = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 1, 1), torch.tensor([3, 900])
    with Replay([("randn", noise), ("randn", shift), ("randint", timesteps)]).installed():
        assert torch.equal(torch.randint(0, 1000, (2,), device="cpu"), timesteps)
        assert torch.equal(torch.randn((2, 4, 1, 1), device="cpu"), shift)
        assert torch.equal(torch.randn_like(torch.zeros(2, 4, 8, 8)), noise)


def test_numbers_that_only_one_program_draws_are_an_error() -> None:
    with pytest.raises(LookupError, match=r"torch.rand of shape \(1,\) was not drawn"), Replay([]).installed():
        torch.rand(1)
    left = [("randn", torch.zeros(2, 4))]
    with pytest.raises(LookupError, match=r"alone: torch.randn \(2, 4\)"), Replay(left).installed():
        pass


def test_draws_come_by_step_and_in_order() -> None:
    tensors = {f"draw.{step}.{place}.randn": torch.tensor([step, place]) for step in (10, 2) for place in (11, 3)}
    found = [[values.tolist() for _, values in numbers] for numbers in draws_by_step(tensors)]
    assert found == [[[2, 3], [2, 11]], [[10, 3], [10, 11]]]


def test_every_case_is_a_valid_configuration_and_leaves_no_option_out(tmp_path: Path) -> None:
    options = base_options(tmp_path, tmp_path, tmp_path, tmp_path, 128, 2, 20)
    assert options[options.index("--network_dim") + 1] == "16"
    for case in CASES.values():
        config = make_config({**base_settings(tmp_path, tmp_path, 128, 2, 20), **case.settings})
        assert config.network.network_dim == 16
        assert bool(case.settings) == bool(case.options)


def test_a_run_is_written_down_as_it_was_drawn(tiny_host: StandaloneHost, tmp_path: Path) -> None:
    write_subject(tmp_path / "pictures", 128, long_captions=True)
    settings = base_settings(tmp_path / "pictures", tmp_path / "output", 128, 2, 3)
    recorder = Recorder()
    with tiny_host.borrow() as borrow, recorder.listening():
        Trainer(borrow.checkpoint, make_config({**settings, "noise_offset": 0.5}), tmp_path / "output").run()
    recorder.write(tmp_path, borrow.checkpoint.latent_scale)

    handed, order = load_file(tmp_path / "handed.safetensors"), json.loads((tmp_path / "handed.json").read_text())
    draws = draws_by_step(handed)
    assert [len(captions) for captions in order] == [len(numbers[-1][1]) for numbers in draws]
    noise, shift = (values for name, values in draws[0] if name == "randn")
    assert shift.shape[2:] == (1, 1) and noise.shape[2:] == handed[f"latents.{order[0][0]}"].shape[1:]
    network_tensors = load_file(tmp_path / "network.safetensors")
    assert all(not tensor.any() for name, tensor in network_tensors.items() if "lora_up" in name)


def test_a_noise_offset_is_drawn_in_the_order_that_is_replayed() -> None:
    """What is handed over is drawn before the offset is made of it: twice the offset, the same numbers."""
    recorder, generator = Recorder(), torch.Generator()
    numbers: list[tuple[str, Tensor]] = []
    with recorder._writing_down(numbers):
        noise = sample_noise((1, 4, 2, 2), 0.25, generator.manual_seed(5))
    assert [name for name, _ in numbers] == ["randn", "randn"]
    assert torch.equal(noise, numbers[0][1] + 0.25 * numbers[1][1])
