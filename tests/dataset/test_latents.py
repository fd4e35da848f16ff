"""Latents kept and made anew, in memory and in files; the VAE is a stand-in that sees which way round a picture is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from lora_ext.checkpoint.checkpoint import Checkpoint
from lora_ext.checkpoint.schedule import NoiseSchedule
from lora_ext.config.train_config import make_config
from lora_ext.dataset.dataset import Batch, ImageDataset
from lora_ext.dataset.images import load_image
from lora_ext.dataset.sources import scan_dataset
from lora_ext.dataset.tensor_cache import FOLDER_NAME
from lora_ext.protocols import Control, Events


@dataclass
class Posterior:
    mean: Tensor
    logvar: Tensor


class SlopingVAE(nn.Module):
    """Latents are 8×8 averages plus the difference to the position on the right, so that mirrors are no mirrors."""

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))
        self.seen: list[Tensor] = []

    def encode(self, x: Tensor) -> Posterior:
        self.seen += list(x)
        pooled = nn.functional.avg_pool2d(x, 8) * self.weight
        sloping = pooled + 0.5 * (pooled - pooled.roll(1, 3))
        mean = torch.cat([sloping, pooled[:, :1]], dim=1)  # (batch, 4, h/8, w/8)
        return Posterior(mean, torch.full_like(mean, -4.0))


class Said(Events):
    def __init__(self) -> None:
        self.messages: list[str] = []
        self.progress: list[tuple[int, int]] = []

    def message(self, level: str, text: str) -> None:
        self.messages.append(text)

    def phase(self, name: str, done: int, total: int) -> None:
        self.progress.append((done, total))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures of 64×64 and one of 80×48, 2 repeats each."""
    inner = tmp_path / "pictures" / "2_cat"
    inner.mkdir(parents=True)
    for number, size in enumerate([(64, 64), (64, 64), (64, 64), (80, 48)]):
        noise = torch.randint(0, 256, (size[1], size[0], 3), generator=torch.Generator().manual_seed(number))
        Image.fromarray(noise.to(torch.uint8).numpy()).save(inner / f"{number}.png")
    return inner.parent


def checkpoint_with(vae: SlopingVAE) -> Checkpoint:
    return Checkpoint(
        unet=nn.Linear(1, 1), vae=vae, text_encoders=[], schedule=NoiseSchedule.scaled_linear(), architecture="SD1",
        prediction_type="epsilon", name="stand-in", path=None, sha256="", latent_scale=0.5,
    )  # fmt: skip


@pytest.fixture
def latents_of(folder: Path) -> Callable[..., tuple[ImageDataset, SlopingVAE, Said]]:
    """A dataset of the pictures that has cached its latents, its VAE, and what was said."""

    def make(vae: SlopingVAE | None = None, **values: Any) -> tuple[ImageDataset, SlopingVAE, Said]:
        small = {"resolution": 64, "min_bucket_reso": 32, "bucket_reso_steps": 16, "max_bucket_reso": 128}
        config = make_config({"train_data_dir": str(folder), "train_batch_size": 3, **small, **values})
        checkpoint = checkpoint_with(vae or SlopingVAE())
        said = Said()
        dataset = ImageDataset(scan_dataset(config), config)
        dataset.cache_latents(checkpoint, said, Control())
        assert isinstance(checkpoint.vae, SlopingVAE)
        return dataset, checkpoint.vae, said

    return make


Make = Callable[..., tuple[ImageDataset, SlopingVAE, Said]]


def epochs(dataset: ImageDataset) -> list[Batch]:
    return [batch for epoch in (1, 2, 3) for batch in dataset.batches(epoch)]


def same(one: list[Batch], other: list[Batch]) -> bool:
    assert [batch.entries for batch in one] == [batch.entries for batch in other]
    return all(a.latents.equal(b.latents) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("vae_batch_size", [1, 3])
def test_kept_or_not_in_memory_or_files_latents_are_the_same(latents_of: Make, flip: bool, vae_batch_size: int) -> None:
    values = {"flip_aug": flip, "vae_batch_size": vae_batch_size}
    kept, _, said = latents_of(**values)
    assert said.messages == []
    batches = epochs(kept)
    anew, vae, said = latents_of(cache_latents=False, **values)
    assert vae.seen == [] and said.progress == []
    assert said.messages == [
        "The latents of 4 of 4 pictures are not kept, because cache_latents is off: the VAE encodes them anew each "
        "time, which makes every step longer."
    ]
    assert same(epochs(anew), batches)
    first, vae, _ = latents_of(cache_latents_to_disk=True, **values)
    assert len(vae.seen) == (8 if flip else 4) and same(epochs(first), batches)
    second, vae, said = latents_of(cache_latents_to_disk=True, **values)
    assert vae.seen == [] and same(epochs(second), batches)
    assert said.progress == [(0, 4), (4, 4)]


def test_the_picture_is_mirrored_before_it_is_encoded(latents_of: Make, folder: Path) -> None:
    dataset, vae, _ = latents_of(flip_aug=True)
    assert len(vae.seen) == 8
    for item in dataset._items:
        plain = load_image(item.picture.path, item.picture.plain())
        assert sum(each.shape == plain.shape and each.equal(plain) for each in vae.seen) == 1
        assert sum(each.shape == plain.shape and each.equal(plain.flip(2)) for each in vae.seen) == 1
    shown: dict[int, list[Tensor]] = {}
    for batch in epochs(dataset):
        for entry, latent in zip(batch.entries, batch.latents, strict=True):
            known = shown.setdefault(entry, [])
            known += [] if any(latent.equal(each) for each in known) else [latent]
    assert {len(each) for each in shown.values()} == {2}
    assert not any(one.equal(other.flip(2)) for one, other in shown.values())


def test_mirroring_leaves_the_plain_latents_as_they_were(latents_of: Make) -> None:
    plain = {entry: z for b in epochs(latents_of()[0]) for entry, z in zip(b.entries, b.latents, strict=True)}
    flipped = [(e, z) for b in epochs(latents_of(flip_aug=True)[0]) for e, z in zip(b.entries, b.latents, strict=True)]
    unchanged = sum(latent.equal(plain[entry]) for entry, latent in flipped)
    assert 6 <= unchanged <= 18  # of 24, about half


def test_random_pictures_are_encoded_anew_and_the_same_again(latents_of: Make, folder: Path) -> None:
    Image.new("RGB", (120, 90), (9, 99, 9)).save(folder / "2_cat" / "face_60_40_30_30.png")
    values = {"face_crop_aug_range": "1.5,3.0"}
    dataset, vae, said = latents_of(**values)
    assert len(vae.seen) == 4 and "The latents of 1 of 5 pictures are not kept" in said.messages[0]
    batches = epochs(dataset)
    assert len(vae.seen) == 4 + 6
    assert same(epochs(latents_of(**values)[0]), batches)
    assert same(list(latents_of(**values)[0].batches(3)), [b for b in dataset.batches(3)])
    anew, vae, said = latents_of(random_crop=True, color_aug=True, cache_latents_to_disk=True)
    assert vae.seen == [] and "color_aug, random_crop or face_crop_aug_range" in said.messages[0]
    pictures = [z for b in epochs(anew) for entry, z in zip(b.entries, b.latents, strict=True) if entry == 0]
    assert len({tuple(z.flatten().tolist()) for z in pictures}) == 6
    assert not (folder / "2_cat" / FOLDER_NAME).exists()


def test_after_a_pause_another_instance_of_the_vae_encodes(latents_of: Make) -> None:
    dataset, first, _ = latents_of(cache_latents=False)
    expected = epochs(dataset)
    seen, second = len(first.seen), SlopingVAE()
    dataset.release_checkpoint()
    dataset.use_checkpoint(checkpoint_with(second))
    assert same(epochs(dataset), expected)
    assert len(first.seen) == seen == len(second.seen) == 24


def change_picture(folder: Path) -> None:
    Image.new("RGB", (64, 64), (1, 2, 3)).save(folder / "2_cat" / "0.png")


@pytest.mark.parametrize(
    ("change", "values", "vae", "encoded"),
    [
        (None, {}, 1.0, 0),
        (None, {"seed": 7, "train_batch_size": 1}, 1.0, 0),
        (change_picture, {}, 1.0, 1),
        (None, {"resolution": 48}, 1.0, 4),
        (None, {"resize_interpolation": "bicubic"}, 1.0, 4),
        (None, {"flip_aug": True}, 1.0, 8),
        (None, {}, 1.5, 4),
    ],
)
def test_files_are_never_stale(
    latents_of: Make,
    folder: Path,
    change: Callable[[Path], None] | None,
    values: dict[str, Any],
    vae: float,
    encoded: int,
) -> None:
    latents_of(cache_latents_to_disk=True)
    if change is not None:
        change(folder)
    cached, seen, _ = latents_of(SlopingVAE(vae), cache_latents_to_disk=True, **values)
    fresh, _, _ = latents_of(SlopingVAE(vae), **values)
    assert len(seen.seen) == encoded
    assert same(epochs(cached), epochs(fresh))


def test_a_picture_that_changes_under_way_leaves_no_file(latents_of: Make, folder: Path) -> None:
    class Busy(SlopingVAE):
        """While it encodes the first picture, a person saves another one in its place."""

        def encode(self, x: Tensor) -> Posterior:
            if not self.seen:
                change_picture(folder)
            return super().encode(x)

    latents_of(Busy(), cache_latents_to_disk=True)
    assert len(list((folder / "2_cat" / FOLDER_NAME).iterdir())) == 3


def test_deleted_and_damaged_files_are_made_anew(latents_of: Make, folder: Path) -> None:
    expected = epochs(latents_of(cache_latents_to_disk=True)[0])
    files = sorted((folder / "2_cat" / FOLDER_NAME).iterdir())
    assert len(files) == 4
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes()[:-1])
    files[2].write_bytes(files[3].read_bytes())
    dataset, vae, said = latents_of(cache_latents_to_disk=True)
    assert len(vae.seen) == 3 and said.messages == [] and same(epochs(dataset), expected)
    assert latents_of(cache_latents_to_disk=True)[1].seen == []


def test_masks_follow_the_pictures(latents_of: Make, folder: Path) -> None:
    image = Image.open(folder / "2_cat" / "0.png").convert("RGBA")
    image.paste((0, 0, 0, 0), (0, 0, 16, 64))
    image.save(folder / "2_cat" / "0.png")
    plain = torch.ones(1, 8, 8)
    plain[:, :, :2] = 0
    for values in ({}, {"cache_latents": False}, {"cache_latents_to_disk": True}):
        dataset, _, _ = latents_of(alpha_mask=True, flip_aug=True, **values)
        masks = [
            (entry, mask) for b in epochs(dataset) for entry, mask in zip(b.entries, b.masks, strict=True)  # type: ignore[arg-type]
        ]  # fmt: skip
        cut = [mask for entry, mask in masks if entry == 0]
        assert len(cut) == 6 and all(mask.equal(plain) or mask.equal(plain.flip(2)) for mask in cut)
        assert {mask.equal(plain) for mask in cut} == {True, False}
        assert all(mask.eq(1).all() for entry, mask in masks if entry != 0)
        assert dict(masks)[3].shape == (1, 6, 10)
    assert all(batch.masks is None for batch in epochs(latents_of()[0]))


def test_a_mask_folder_counts_where_masked_loss_is_on(latents_of: Make, folder: Path, tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    for number, size in enumerate([(64, 64), (64, 64), (64, 64), (80, 48)]):
        Image.new("L", size, 51 * number).save(masks / f"{number}.png")
    dataset, _, _ = latents_of(conditioning_data_dir=str(masks), masked_loss=True)
    for batch in epochs(dataset):
        assert batch.masks is not None and batch.masks.shape == (len(batch.entries), 1, *batch.latents.shape[2:])
        assert batch.masks.mean(dim=(1, 2, 3)).tolist() == pytest.approx([0.2 * entry for entry in batch.entries])
    assert all(batch.masks is None for batch in epochs(latents_of(conditioning_data_dir=str(tmp_path / "none"))[0]))
