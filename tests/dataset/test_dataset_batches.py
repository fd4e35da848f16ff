"""Batches of an epoch, cached latents, and their reproducibility; the VAE is a stand-in of three lines."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from lora_ext.checkpoint.checkpoint import Checkpoint
from lora_ext.checkpoint.schedule import NoiseSchedule
from lora_ext.config.train_config import TrainConfig, make_config
from lora_ext.dataset.dataset import Batch, ImageDataset, epoch_batches
from lora_ext.dataset.sources import scan_dataset
from lora_ext.protocols import Cancelled, Control, Events, UserError


@dataclass
class Posterior:
    mean: Tensor
    logvar: Tensor


class AveragingVAE(nn.Module):
    """Latents are averages over 8×8 pixels; `deviation` is the posterior's standard deviation."""

    def __init__(self, deviation: float = 0.1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.logvar = 2 * torch.tensor(deviation).log()
        self.batches: list[tuple[int, ...]] = []

    def encode(self, x: Tensor) -> Posterior:
        self.batches.append(tuple(x.shape))
        pooled = nn.functional.avg_pool2d(x, 8) * self.weight
        mean = torch.cat([pooled, pooled[:, :1]], dim=1)  # (batch, 4, h/8, w/8)
        return Posterior(mean, self.logvar.expand_as(mean))


def checkpoint_with(vae: nn.Module) -> Checkpoint:
    return Checkpoint(
        unet=nn.Linear(1, 1), vae=vae, text_encoders=[], schedule=NoiseSchedule.scaled_linear(), architecture="SD1",
        prediction_type="epsilon", name="stand-in", path=None, sha256="", latent_scale=0.5,
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three squares with 2 repeats, two landscapes with 3: 6 + 6 pictures an epoch."""
    for index in range(3):
        path = tmp_path / "2_square" / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (64, 64), (40 * index, 0, 0)).save(path)
        path.with_suffix(".txt").write_text(f" zbx, square {index}, red, plain ", encoding="utf-8")
    for index in range(2):
        path = tmp_path / "3_wide" / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (80, 48), (0, 40 * index, 0)).save(path)
    return tmp_path


def config_for(folder: Path, **values: object) -> TrainConfig:
    small = {"resolution": 64, "min_bucket_reso": 32, "bucket_reso_steps": 16, "max_bucket_reso": 128}
    return make_config({"train_data_dir": str(folder), "train_batch_size": 4, **small, **values})


def dataset_of(folder: Path, vae: nn.Module | None = None, **values: object) -> ImageDataset:
    config = config_for(folder, **values)
    dataset = ImageDataset(scan_dataset(config), config)
    dataset.cache_latents(checkpoint_with(vae or AveragingVAE()), Events(), Control())
    return dataset


def flat(batches: list[Batch]) -> list[tuple[str, tuple[float, ...]]]:
    """Captions and latents of every picture, in order, for comparing."""
    return [(c, tuple(z.flatten().tolist())) for b in batches for c, z in zip(b.captions, b.latents, strict=True)]


def test_batches_keep_sizes_apart_and_partial_ones(folder: Path) -> None:
    dataset = dataset_of(folder)
    batches = list(dataset.batches(1))
    assert dataset.batches_per_epoch == len(batches) == 4
    assert sorted((len(batch.captions), batch.sizes[0]) for batch in batches) == [
        (2, (64, 64)), (2, (80, 48)), (4, (64, 64)), (4, (80, 48)),
    ]  # fmt: skip
    for batch in batches:
        width, height = batch.sizes[0]
        assert set(batch.sizes) == {(width, height)}
        assert batch.latents.shape == (len(batch.captions), 4, height // 8, width // 8)
        assert batch.latents.dtype == torch.float32 and batch.latents.device.type == "cpu"
        assert batch.loss_weights.tolist() == [1.0] * len(batch.captions)
    captions = Counter(caption for batch in batches for caption in batch.captions)
    assert captions == {f"zbx, square {i}, red, plain": 2 for i in range(3)} | {"wide": 6}
    assert sorted(dataset.captions) == ["wide", *(f"zbx, square {i}, red, plain" for i in range(3))]


def test_the_same_seed_and_epoch_give_the_same_batches(folder: Path) -> None:
    one, other = dataset_of(folder, shuffle_caption=True), dataset_of(folder, shuffle_caption=True)
    assert flat(list(one.batches(2))) == flat(list(other.batches(2)))
    list(one.batches(7))
    assert flat(list(one.batches(2))) == flat(list(other.batches(2)))
    assert flat(list(one.batches(2))) != flat(list(one.batches(3)))
    assert flat(list(one.batches(2))) != flat(list(dataset_of(folder, shuffle_caption=True, seed=7).batches(2)))


def test_global_random_states_are_left_alone(folder: Path) -> None:
    config, checkpoint = config_for(folder, shuffle_caption=True), checkpoint_with(AveragingVAE())
    python, torch_state = random.getstate(), torch.get_rng_state()
    dataset = ImageDataset(scan_dataset(config), config)
    dataset.cache_latents(checkpoint, Events(), Control())
    list(dataset.batches(1))
    assert random.getstate() == python and torch.equal(torch.get_rng_state(), torch_state)


def test_shuffled_captions_keep_the_trigger_and_the_pictures_order(folder: Path) -> None:
    plain = list(dataset_of(folder).batches(1))
    shuffled = list(dataset_of(folder, shuffle_caption=True, keep_tokens=1).batches(1))
    assert [b.latents.tolist() for b in plain] == [b.latents.tolist() for b in shuffled]
    for before, after in zip(plain, shuffled, strict=True):
        for one, other in zip(before.captions, after.captions, strict=True):
            assert sorted(one.split(", ")) == sorted(other.split(", "))
            assert one.split(", ")[0] == other.split(", ")[0]
    assert [b.captions for b in plain] != [b.captions for b in shuffled]


def test_latents_are_scaled_in_use(folder: Path) -> None:
    vae = AveragingVAE(deviation=1e-12)
    dataset = dataset_of(folder, vae)
    greens = {round(float(z[1, 0, 0]), 4) for b in dataset.batches(1) if b.sizes[0] == (80, 48) for z in b.latents}
    assert greens == {-0.5, round(0.5 * (40 / 127.5 - 1), 4)}


def test_the_posteriors_draw_does_not_depend_on_the_vae_batch(folder: Path) -> None:
    one, three = AveragingVAE(), AveragingVAE()
    assert flat(list(dataset_of(folder, one, vae_batch_size=1).batches(1))) == flat(
        list(dataset_of(folder, three, vae_batch_size=3).batches(1))
    )
    assert one.batches == [(1, 3, 64, 64)] * 3 + [(1, 3, 48, 80)] * 2
    assert three.batches == [(3, 3, 64, 64), (2, 3, 48, 80)]


def test_pictures_have_draws_of_their_own(folder: Path) -> None:
    for path in (folder / "2_square").glob("*.png"):
        Image.new("RGB", (64, 64), (9, 9, 9)).save(path)
    latents = {tuple(z.flatten().tolist()) for b in dataset_of(folder).batches(1) for z in b.latents}
    assert len(latents) == 5
    seeded = dataset_of(folder)
    seeded.cache_latents(checkpoint_with(AveragingVAE()), Events(), Control(), torch.Generator().manual_seed(1))
    assert flat(list(seeded.batches(1))) != flat(list(dataset_of(folder).batches(1)))


def test_progress_and_stop(folder: Path) -> None:
    class Recorder(Events):
        def __init__(self, control: Control | None = None) -> None:
            self.seen: list[tuple[str, int, int]] = []
            self.control = control

        def phase(self, name: str, done: int, total: int) -> None:
            self.seen.append((name, done, total))
            if self.control is not None and done == 2:
                self.control.stop()

    config = config_for(folder)
    dataset = ImageDataset(scan_dataset(config), config)
    events = Recorder()
    dataset.cache_latents(checkpoint_with(AveragingVAE()), events, Control())
    assert events.seen == [("caching latents", done, 5) for done in range(6)]
    control = Control()
    stopping = Recorder(control)
    with pytest.raises(Cancelled):
        dataset.cache_latents(checkpoint_with(AveragingVAE()), stopping, control)
    assert stopping.seen[-1] == ("caching latents", 2, 5)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_latents_that_are_no_numbers_are_refused(folder: Path, value: float) -> None:
    vae = AveragingVAE()
    vae.weight.data.fill_(value)
    with pytest.raises(UserError, match=r"0\.png: the VAE returns values that are not numbers .*: choose another VAE"):
        dataset_of(folder, vae)


def test_batches_before_the_latents_are_refused(folder: Path) -> None:
    config = config_for(folder)
    with pytest.raises(RuntimeError, match="cache_latents"):
        next(ImageDataset(scan_dataset(config), config).batches(1))


def test_an_epochs_batches_have_a_known_order() -> None:
    groups = [([0, 1, 2, 3, 4], 2), ([5, 6], 2)]
    assert epoch_batches(groups, random.Random(0)) == [[2, 1], [3], [0, 4], [5, 6]]


@settings(deadline=None)
@given(groups=st.lists(st.tuples(st.integers(1, 20), st.integers(1, 8)), max_size=5), seed=st.integers(0, 2**63))
def test_every_picture_comes_up_once(groups: list[tuple[int, int]], seed: int) -> None:
    members = [[100 * place + i for i in range(count)] for place, (count, _) in enumerate(groups)]
    sizes = [size for _, size in groups]
    batches = epoch_batches(list(zip(members, sizes, strict=True)), random.Random(seed))
    assert len(batches) == sum(-(-count // size) for count, size in groups)
    assert all(1 <= len(batch) <= sizes[batch[0] // 100] for batch in batches)
    assert all(len({index // 100 for index in batch}) == 1 for batch in batches)
    assert sorted(index for batch in batches for index in batch) == sorted(i for group in members for i in group)


def test_an_epoch_is_gone_on_with_in_its_middle(folder: Path) -> None:
    dataset = dataset_of(folder, shuffle_caption=True, caption_dropout_rate=0.3, enable_wildcard=True)
    whole = list(dataset.batches(3))
    for skip in range(len(whole) + 1):
        assert flat(list(dataset.batches(3, skip))) == flat(whole[skip:])


def test_what_is_drawn_for_a_picture_does_not_depend_on_the_others(folder: Path) -> None:
    """The same pictures in batches of another size get the same captions."""
    drawn = []
    for size in (1, 4):
        batches = list(dataset_of(folder, shuffle_caption=True, train_batch_size=size).batches(1))
        drawn.append(sorted((e, c) for b in batches for e, c in zip(b.entries, b.captions, strict=True)))
    assert drawn[0] == drawn[1]
    assert len({caption for entry, caption in drawn[0] if entry == 0}) == 2  # its two repeats differ


def test_batches_name_their_pictures(folder: Path) -> None:
    dataset = dataset_of(folder)
    for batch in dataset.batches(1):
        entries = [dataset.scan.images[index] for index in batch.entries]
        assert [entry.caption for entry in entries] == batch.captions
        assert batch.is_reg == [False] * len(entries) and batch.masks is None
    assert Counter(index for batch in dataset.batches(1) for index in batch.entries) == {0: 2, 1: 2, 2: 2, 3: 3, 4: 3}


def test_regularisation_pictures_weigh_as_set(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    reg = tmp_path_factory.mktemp("reg")
    Image.new("RGB", (64, 64)).save(reg / "r.png")
    batches = list(dataset_of(folder, reg_data_dir=str(reg), prior_loss_weight=0.25).batches(1))
    assert sum(sum(batch.is_reg) for batch in batches) == 12
    for batch in batches:
        assert batch.loss_weights.tolist() == [0.25 if each else 1.0 for each in batch.is_reg]


def test_tags_warm_up_by_the_runs_steps(folder: Path) -> None:
    """Four batches an epoch, two to a step; all tags are there from the third of the four steps on."""
    values = {"token_warmup_step": 0.5, "gradient_accumulation_steps": 2, "max_train_epochs": 2}
    dataset = dataset_of(folder, **values)
    counts = [
        {len(caption.split(", ")) for caption in batch.captions if caption.startswith("zbx")}
        for epoch in (1, 2)
        for batch in dataset.batches(epoch)
    ]
    assert [count for place, count in enumerate(counts) if count] and not dataset.captions_are_known
    for place, count in enumerate(counts):
        step = place // 2
        assert count <= {{0: 1, 1: 2}.get(step, 4)}


def test_variants_make_changing_captions_few(folder: Path) -> None:
    dataset = dataset_of(folder, shuffle_caption=True, caption_dropout_rate=0.2)
    assert not dataset.captions_are_known
    dataset.caption_variants = 3
    assert dataset.captions_are_known
    known = set(dataset.captions)
    assert "" in known and len(known) <= 3 * 3 + 2
    seen = Counter(c for epoch in range(1, 30) for b in dataset.batches(epoch) for c in b.captions)
    assert set(seen) <= known and len(seen) >= 8
    assert 29 * 12 * 0.14 <= seen[""] <= 29 * 12 * 0.26


def test_captions_that_only_drop_out_are_known(folder: Path) -> None:
    dataset = dataset_of(folder, caption_dropout_every_n_epochs=2)
    assert dataset.captions_are_known and dataset.captions[-1] == "wide" and "" in dataset.captions
    assert {c for b in dataset.batches(2) for c in b.captions} == {""}
    assert "" not in {c for b in dataset.batches(1) for c in b.captions}
