"""The standalone host: prompts to pictures, tags, borrowing, files."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from lora_ext.checkpoint.module_names import unet_module_names
from lora_ext.host.standalone.host import StandaloneHost, save_image
from lora_ext.host.standalone.infotext import parse_infotext
from lora_ext.networks.file import write_network
from lora_ext.protocols import GeneratedImage, GenerateRequest, Host, UserError


def request(prompt: str = "a cat", **changes: object) -> GenerateRequest:
    settings: dict[str, object] = {"width": 64, "height": 64, "steps": 3, "seed": 5, "cfg_scale": 4.0, **changes}
    return GenerateRequest(prompt, **settings)  # type: ignore[arg-type]


def same(first: GeneratedImage, second: GeneratedImage) -> bool:
    return first.image.tobytes() == second.image.tobytes()


def write_random_network(host: StandaloneHost, name: str, seed: int = 0, strength: float = 1.0) -> Path:
    """A LoRA of rank 2 on two modules of the U-Net."""
    checkpoint = host.loaded.checkpoint
    generator = torch.Generator().manual_seed(seed)
    paths = unet_module_names(checkpoint.unet, checkpoint.architecture)
    tensors: dict[str, Tensor] = {}
    for key in [key for key in paths if key.endswith("attn1_to_q") or key.endswith("ff_net_2")]:
        out_size, in_size = checkpoint.unet.get_submodule(paths[key]).weight.shape
        tensors[f"{key}.lora_down.weight"] = torch.randn((2, in_size), generator=generator)
        tensors[f"{key}.lora_up.weight"] = torch.randn((out_size, 2), generator=generator) * strength
        tensors[f"{key}.alpha"] = torch.tensor(2.0)
    path = host.folders().networks[0] / f"{name}.safetensors"
    write_network(path, tensors, {"ss_output_name": name}, "float")
    host.network_saved(path)
    return path


def weights_of(host: StandaloneHost) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in host.loaded.checkpoint.unet.state_dict().items()}


def unchanged(host: StandaloneHost, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, before[name]) for name, tensor in host.loaded.checkpoint.unet.state_dict().items())


def test_it_is_a_host(tiny_host: StandaloneHost) -> None:
    host: Host = tiny_host
    info = host.checkpoint_info()
    assert (info.name, info.architecture, info.device, info.dtype) == ("tiny-sd1", "SD1", "cpu", "float32")
    assert host.samplers() == ["Euler a", "Euler", "DDIM", "DPM++ 2M", "DPM++ 2M Karras"]
    folders = host.folders()
    assert folders.networks[0].parts[-2:] == ("models", "Lora")
    assert all(folder.is_dir() for folder in (*folders.networks, folders.runs, folders.images))


def test_pictures_have_their_size_seed_and_infotext(tiny_host: StandaloneHost) -> None:
    pictures = tiny_host.generate(
        request("a (red:1.2) cat", negative_prompt="bad", width=72, height=56, batch_size=2, clip_skip=2)
    )
    assert [picture.seed for picture in pictures] == [5, 6]
    assert [picture.image.size for picture in pictures] == [(72, 56)] * 2
    assert pictures[0].messages == ()
    digits = tiny_host.loaded.checkpoint.sha256[:10]
    assert pictures[1].infotext == (
        "a (red:1.2) cat\nNegative prompt: bad\n"
        "Steps: 3, Sampler: Euler a, Schedule type: Automatic, CFG scale: 4.0, Seed: 6, Size: 72x56, "
        f"Model hash: {digits}, Model: tiny-sd1, Clip skip: 2, RNG: CPU, Version: LoRA Workshop 0.1.0"
    )


def test_seeds_reproduce_and_a_batch_changes_nothing(tiny_host: StandaloneHost) -> None:
    batch = tiny_host.generate(request(batch_size=3))
    again = tiny_host.generate(request(batch_size=3))
    assert all(same(*pair) for pair in zip(batch, again, strict=True))
    alone = tiny_host.generate(request(seed=6))[0]
    difference = [abs(a - b) for a, b in zip(batch[1].image.tobytes(), alone.image.tobytes(), strict=True)]
    assert max(difference) <= 1
    assert not same(batch[0], batch[1])


def test_any_seed_is_drawn_without_the_global_random_state(tiny_host: StandaloneHost) -> None:
    before = torch.random.get_rng_state()
    first, second = (tiny_host.generate(request(seed=-1, steps=1))[0] for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first.seed != second.seed
    assert f"Seed: {first.seed}," in first.infotext


def test_sampler_and_schedule_are_two_entries(tiny_host: StandaloneHost) -> None:
    parameters = parse_infotext(tiny_host.generate(request(sampler="DPM++ 2M Karras"))[0].infotext).parameters
    assert (parameters["Sampler"], parameters["Schedule type"]) == ("DPM++ 2M", "Karras")


def test_everything_that_is_wrong_is_told_together(tiny_host: StandaloneHost) -> None:
    with pytest.raises(UserError) as caught:
        tiny_host.generate(request(width=60, steps=0, sampler="Heun", batch_size=0, cfg_scale=0.5, seed=-2))
    message = str(caught.value)
    for words in (
        "width is 60; allowed: multiples of 8",
        "steps is 0; allowed: 1 to 500",
        "batch_size is 0; allowed: 1 to 64",
        "cfg_scale is 0.5; allowed: 1 to 100",
        "seed is -2; allowed: -1 (any)",
        "sampler 'Heun' is unknown; allowed: Euler a",
    ):
        assert words in message


def test_a_tag_changes_the_picture_and_weights_come_back(tiny_host: StandaloneHost) -> None:
    before = weights_of(tiny_host)
    path = write_random_network(tiny_host, "thing")
    base = tiny_host.generate(request())[0]
    tagged = tiny_host.generate(request("a cat<lora:thing:0.8>"))[0]
    assert not same(base, tagged)
    assert tagged.messages == ()
    assert re.search(r'Lora hashes: "thing: [0-9a-f]{12}"', tagged.infotext)
    assert tagged.infotext.startswith("a cat<lora:thing:0.8>\n")
    assert same(tiny_host.generate(request("a cat<lora:thing:0>"))[0], base)
    assert same(tiny_host.generate(request())[0], base)
    assert unchanged(tiny_host, before)
    path.unlink()
    write_random_network(tiny_host, "thing", seed=1)
    retrained = tiny_host.generate(request("a cat<lora:thing:0.8>"))[0]
    assert not same(retrained, tagged)


@pytest.mark.parametrize("sampler", ["Euler a", "Euler", "DDIM", "DPM++ 2M", "DPM++ 2M Karras"])
def test_networks_act_in_the_steps_that_a_tag_names(tiny_host: StandaloneHost, sampler: str) -> None:
    write_random_network(tiny_host, "cat")
    before, seen = weights_of(tiny_host), []
    hook = tiny_host.loaded.checkpoint.unet.register_forward_pre_hook(
        lambda *_: seen.append("#."[unchanged(tiny_host, before)])
    )
    told: list[tuple[int, int]] = []
    prompt = "a cat <lora:cat:1:step=2-4>"
    (picture,) = tiny_host.generate(request(prompt, steps=6, sampler=sampler), lambda *step: told.append(step))
    hook.remove()
    assert ("".join(seen), told[-1]) == ("..##..", (6, 6))
    assert "Lora hashes: " in picture.infotext
    whole, none = (tiny_host.generate(request(f"a cat {tag}", sampler=sampler))[0] for tag in ("<lora:cat:1>", ""))
    assert same(tiny_host.generate(request("a cat <lora:cat:1:stop=99>", sampler=sampler))[0], whole)
    assert same(tiny_host.generate(request("a cat <lora:cat:1:start=99>", sampler=sampler))[0], none)


def test_a_persons_own_block_weights(tiny_host: StandaloneHost) -> None:
    write_random_network(tiny_host, "cat")
    base = tiny_host.generate(request("a cat"))[0]
    (told,) = tiny_host.generate(request("a cat <lora:cat:1:lbw=TEXT>"))
    assert same(told, base) and "lbw = 'TEXT' is no preset" in told.messages[0]
    numbers = ",".join(["1"] + ["0"] * 16)
    (tiny_host.home / "lbwpresets.txt").write_text(f"TEXT:{numbers}\n", encoding="utf-8")
    (picture,) = tiny_host.generate(request("a cat <lora:cat:1:lbw=TEXT>"))
    assert same(picture, base) and picture.messages == ()
    (tiny_host.home / "lbwpresets.txt").unlink()


def test_an_unknown_tag_is_told_and_left_out(tiny_host: StandaloneHost) -> None:
    base = tiny_host.generate(request())[0]
    picture = tiny_host.generate(request("a cat<lora:nothing:1>"))[0]
    assert same(picture, base)
    assert len(picture.messages) == 1 and "nothing" in picture.messages[0]
    assert "Lora hashes" not in picture.infotext


def test_a_network_saved_elsewhere_is_found(tiny_host: StandaloneHost, tmp_path: Path) -> None:
    inside = write_random_network(tiny_host, "moved")
    outside = tmp_path / "elsewhere" / "moved.safetensors"
    outside.parent.mkdir()
    inside.rename(outside)
    assert tiny_host.generate(request("<lora:moved:1>"))[0].messages
    tiny_host.network_saved(outside)
    assert tiny_host.generate(request("<lora:moved:1>"))[0].messages == ()
    assert outside.parent in tiny_host.folders().networks


def test_borrowing_removes_networks_and_puts_states_back(tiny_host: StandaloneHost) -> None:
    before = weights_of(tiny_host)
    write_random_network(tiny_host, "thing")
    tagged = tiny_host.generate(request("a cat<lora:thing:1>"))[0]
    with pytest.raises(ZeroDivisionError), tiny_host.borrow() as borrow:
        assert unchanged(tiny_host, before)
        assert not any(parameter.requires_grad for parameter in borrow.checkpoint.unet.parameters())
        borrow.checkpoint.unet.train()
        borrow.checkpoint.unet.requires_grad_(True)
        raise ZeroDivisionError
    unet = tiny_host.loaded.checkpoint.unet
    assert not unet.training and not unet.out[0].training
    assert not any(parameter.requires_grad for parameter in unet.parameters())
    assert unchanged(tiny_host, before)
    assert same(tiny_host.generate(request("a cat<lora:thing:1>"))[0], tagged)


def test_pictures_wait_for_the_borrower_and_its_own_are_made_at_once(tiny_host: StandaloneHost) -> None:
    base = tiny_host.generate(request())[0]
    finished: list[float] = []

    def render() -> None:
        tiny_host.generate(request(steps=1))
        finished.append(time.monotonic())

    with tiny_host.borrow():
        thread = threading.Thread(target=render)
        thread.start()
        own = tiny_host.generate(request("a cat<lora:nothing:1>"))[0]
        thread.join(0.3)
        assert thread.is_alive()
        left = time.monotonic()
    thread.join(10)
    assert finished and finished[0] >= left
    assert same(own, base)
    assert "left out while a network is in training" in own.messages[0]


def test_saved_pictures_carry_the_infotext_and_are_numbered(tiny_host: StandaloneHost, tmp_path: Path) -> None:
    picture = tiny_host.generate(request("a cat, 猫"))[0]
    first, second = tiny_host.save_image(picture), tiny_host.save_image(picture)
    assert (first.name, second.name) == ("00000-5.png", "00001-5.png")
    assert first.parent == tiny_host.folders().images
    with Image.open(first) as stored:
        assert stored.text["parameters"] == picture.infotext  # type: ignore[attr-defined]
        assert stored.tobytes() == picture.image.tobytes()
    blocked = tmp_path / "file"
    blocked.write_text("in the way", encoding="utf-8")
    with pytest.raises(UserError, match="cannot be written there"):
        save_image(picture, blocked)


def test_a_home_that_cannot_be_made_is_told(tiny_checkpoint_path: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way", encoding="utf-8")
    with pytest.raises(UserError, match="choose another home folder"):
        StandaloneHost(tiny_checkpoint_path, blocked, device="cpu")


def test_nan_is_told_and_not_drawn(tiny_host: StandaloneHost) -> None:
    with torch.no_grad():
        tiny_host.loaded.checkpoint.unet.out[2].bias.fill_(float("nan"))
    with pytest.raises(UserError, match="NaN"):
        tiny_host.generate(request())


@pytest.mark.gpu
def test_on_a_gpu_the_picture_is_about_the_cpus(tiny_host: StandaloneHost, tmp_path: Path) -> None:
    path = tiny_host.loaded.checkpoint.path
    assert path is not None
    host = StandaloneHost(path, tmp_path / "gpu", device="cuda", dtype="fp32")
    assert (host.checkpoint_info().total_memory_gb or 0) > 0
    for sampler in host.samplers():
        ours, theirs = (each.generate(request(sampler=sampler))[0].image for each in (host, tiny_host))
        differences = [abs(a - b) for a, b in zip(ours.tobytes(), theirs.tobytes(), strict=True)]
        assert sum(differences) / len(differences) < 2
    half = StandaloneHost(path, tmp_path / "half", device="cuda")
    assert half.checkpoint_info().dtype in ("bfloat16", "float16")
    assert half.generate(request())[0].image.size == (64, 64)
