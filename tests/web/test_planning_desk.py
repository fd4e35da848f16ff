"""What is read again while a person changes settings, and what may be read at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
from PIL import Image

from lora_ext.config.train_config import TrainConfig, make_config
from lora_ext.protocols import Host, UserError
from lora_ext.web.planning import PlanningDesk, count_tokens


def desk(*roots: Path) -> PlanningDesk:
    return PlanningDesk(cast(Host, None), roots or None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pictures = tmp_path / "inside" / "2_cat"
    pictures.mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(pictures / "a.png")
    return pictures.parent


def config_of(folder: Path, **values: Any) -> TrainConfig:
    return make_config({"train_data_dir": str(folder), "resolution": 64, "min_bucket_reso": 64, **values})


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"train_batch_size": 2}, 1),
        ({"resolution": 128}, 2),
        ({"class_tokens": "zbx"}, 2),
        ({"caption_prefix": "zbx"}, 2),
        ({"validation_split": 0.5}, 2),
    ],
)
def test_changed_settings_are_looked_at(folder: Path, values: dict[str, Any], told: int) -> None:
    """Two pictures an epoch: with another setting the plan follows at once, not after a minute."""
    here = desk()
    first = here.look(config_of(folder), fresh=False)
    assert here.look(config_of(folder, learning_rate=1), fresh=False).scan is first.scan
    second = here.look(config_of(folder, **values), fresh=False)
    assert second.scan is not first.scan and second.report.batches_per_epoch == told
    assert second.scan.subsets[0].terms != first.scan.subsets[0].terms


def test_emphasis_counts_where_it_is_text(folder: Path) -> None:
    caption = ", ".join(["(cat:1.2)"] * 40)
    (folder / "2_cat" / "a.txt").write_text(caption, encoding="utf-8")
    assert count_tokens(caption, weighted=True) == 40 + 39
    plain, weighted = (
        desk().look(config_of(folder, weighted_captions=value)).report.warnings for value in (False, True)
    )
    assert any("captions over 225 tokens" in text for text in plain)
    assert not any("captions over 225 tokens" in text for text in weighted)


def test_masks_are_asked_for_at_once(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    here, masks = desk(), {"conditioning_data_dir": str(tmp_path / "masks")}
    assert here.look(config_of(folder, **masks), fresh=False).report.problems == []
    assert "a.png" in here.look(config_of(folder, **masks, masked_loss=True), fresh=False).report.problems[0]


def test_every_path_is_looked_at_as_the_run_reads_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Quotes around a path, as Windows copies it, make it no name in the working directory, which is open."""
    monkeypatch.chdir(folder)
    outside = f'"{tmp_path / "outside"}"'
    names = ("reg_data_dir", "output_dir", "logging_dir", "vae", "network_weights", "base_weights", "resume")
    for name, text in [*((name, outside) for name in names), ("sample_prompts", f'"{tmp_path / "a.txt"}"'),
                       ("dataset_config", f'"{tmp_path / "a.toml"}"'), ("output_dir", "~nobody/../..")]:  # fmt: skip
        with pytest.raises(UserError, match=f"{name} = .*not open to the page"):
            desk(folder).check_paths(config_of(folder, **{name: text}))
    desk(folder).check_paths(config_of(folder, output_dir=f'"{folder / "out"}"', network_weights="cat"))
    with pytest.raises(UserError, match="log_prefix = .*a folder's name"):
        config_of(folder, log_prefix="../../elsewhere/")


def test_a_dataset_file_may_not_lead_outside(folder: Path, tmp_path: Path) -> None:
    text = "[[datasets]]\n[[datasets.subsets]]\nimage_dir = '{}'"
    inside = config_of(folder, train_data_dir="", dataset_config=text.format(folder / "2_cat"))
    assert desk(folder).look(inside).report.pictures == 1
    for outside in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match="this folder is not open to the page"):
            desk(folder).look(config_of(folder, train_data_dir="", dataset_config=text.format(outside)))
