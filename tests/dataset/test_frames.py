"""What SDXL is told of a picture: its size in its file, what was cut off, and the size that is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lora_ext.checkpoint.conditioning import Conditioning, Frame, frame_vectors
from lora_ext.dataset.buckets import Bucket
from lora_ext.dataset.options import SubsetOptions
from lora_ext.dataset.pictures import Picture
from lora_ext.dataset.seeds import Occurrence


def picture(**options: Any) -> Picture:
    """1000×600 in its file, scaled to 853×512, of which 832×512 are trained."""
    return Picture(0, Path("a.png"), Bucket((832, 512), (853, 512)), (1000, 600), SubsetOptions(**options))


def test_the_centre_and_its_mirror_image() -> None:
    of = picture()
    assert of.frame(of.plain()) == Frame((1000, 600), (10, 0), (832, 512))
    assert of.frame(of.plain(flipped=True)) == Frame((1000, 600), (11, 0), (832, 512))


def test_a_random_crop_tells_where_it_was_cut_out() -> None:
    of = picture(random_crop=True, flip_aug=True)
    seen = set()
    for repeat in range(200):
        view = of.view(Occurrence(1, 0, repeat), 7)
        left, top = of.frame(view).corner
        assert left == (21 - view.corner[0] if view.flipped else view.corner[0]) and top == 0
        seen.add(left)
    assert min(seen) == 0 and max(seen) == 21


def test_the_vector_has_heights_before_widths_and_cosines_before_sines() -> None:
    vector = frame_vectors([Frame((1000, 600), (10, 4), (832, 512))])
    assert vector.shape == (1, 6 * 256)
    numbers = torch.tensor([600.0, 1000.0, 4.0, 10.0, 512.0, 832.0])
    torch.testing.assert_close(vector.view(6, 256)[:, 0], numbers.cos())
    torch.testing.assert_close(vector.view(6, 256)[:, 128], numbers.sin())
    torch.testing.assert_close(vector.view(6, 256)[:, 64], (numbers / 100).cos())  # 10000 ** (64 / 128) is 100


def test_the_u_nets_vector_is_the_texts_and_the_frames() -> None:
    given = Conditioning(torch.zeros(2, 77, 8), torch.ones(2, 4))
    vector = given.vector([Frame.whole((64, 32))] * 2)
    assert vector is not None and vector.shape == (2, 4 + 1536) and vector[:, :4].eq(1).all()
    torch.testing.assert_close(vector[1, 4 + 4 * 256], torch.tensor(32.0).cos())
    assert Conditioning(torch.zeros(2, 77, 8)).vector([]) is None


def test_against_diffusers_time_ids() -> None:
    """diffusers embeds (original, crop, target) in this order with `flip_sin_to_cos`."""
    pytest.importorskip("diffusers")
    from diffusers.models.embeddings import Timesteps

    frame = Frame((1000, 600), (10, 4), (832, 512))
    expected = Timesteps(256, flip_sin_to_cos=True, downscale_freq_shift=0)(torch.tensor([600, 1000, 4, 10, 512, 832]))
    torch.testing.assert_close(frame_vectors([frame]), expected.reshape(1, -1), atol=1e-5, rtol=0)
