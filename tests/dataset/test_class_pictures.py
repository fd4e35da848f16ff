"""Class pictures: planned before they are there, drawn once, gone on with after an interruption."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from lora_ext.config.train_config import TrainConfig, make_config
from lora_ext.dataset.class_pictures import check_class_pictures, draw_class_pictures, pictures_to_draw
from lora_ext.dataset.report import make_report
from lora_ext.dataset.sources import scan_dataset
from lora_ext.protocols import (
    Cancelled,
    Control,
    Events,
    GeneratedImage,
    GenerateRequest,
    Progress,
    UserError,
)


class Painter:
    """Paints the seed as a colour, and remembers what it was asked for; cancels a control after some pictures."""

    def __init__(self, control: Control | None = None, cancel_after: int = 1000) -> None:
        self.requests: list[GenerateRequest] = []
        self._control = control
        self._cancel_after = cancel_after

    def generate(self, request: GenerateRequest, progress: Progress | None = None) -> list[GeneratedImage]:
        self.requests.append(request)
        if self._control is not None and len(self.requests) > self._cancel_after:
            self._control.cancel()
        if progress is not None:
            progress(1, 2)
        colour = (request.seed & 255, request.seed >> 8 & 255, request.seed >> 16 & 255)
        return [GeneratedImage(Image.new("RGB", (request.width, request.height), colour), request.seed, "")]


class Phases(Events):
    def __init__(self) -> None:
        self.seen: list[tuple[str, int, int]] = []

    def phase(self, name: str, done: int, total: int) -> None:
        self.seen.append((name, done, total))


def draw(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True)
    for name in names:
        Image.new("RGB", (64, 64), (len(name), 7, 0)).save(folder / name)


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    """Four pictures an epoch, and four class pictures wanted."""
    draw(tmp_path / "2_zbx cat", "a.png", "b.png")
    return make_config(
        {
            "train_data_dir": str(tmp_path), "reg_data_dir": str(tmp_path / "reg"), "class_prompt": "a cat",
            "num_class_images": 4, "resolution": "64,128", "min_bucket_reso": 64, "clip_skip": 2,
            "sample_sampler": "euler_a",
        }
    )  # fmt: skip


def test_the_plan_counts_pictures_that_are_not_there_yet(config: TrainConfig, tmp_path: Path) -> None:
    scan = scan_dataset(config)
    assert [(e.path.name, e.width, e.height, e.caption) for e in pictures_to_draw(scan)] == [
        (f"class-0000{number}.png", 64, 128, "a cat") for number in (1, 2, 3, 4)
    ]
    report = make_report(scan, config)
    assert (report.pictures, report.repeats, report.reg_repeats, report.to_draw) == (6, 8, 4, 4)
    assert report.buckets == {(64, 64): 4, (64, 128): 4} and report.missing == 2
    assert "4 class pictures are drawn before the first step" in report.summary()
    scan.raise_on_problems()
    assert not (tmp_path / "reg").exists()


def test_they_are_drawn_once(config: TrainConfig, tmp_path: Path) -> None:
    scan, painter, events = scan_dataset(config), Painter(), Phases()
    check_class_pictures(scan, painter)
    drawn = draw_class_pictures(scan, config, painter, events, Control())
    assert {(r.prompt, r.width, r.height, r.sampler, r.clip_skip) for r in painter.requests} == {
        ("a cat", 64, 128, "Euler a", 2)
    }
    assert len({request.seed for request in painter.requests}) == 4
    assert events.seen == [("drawing class pictures", done, 4) for done in range(5)]
    assert pictures_to_draw(drawn) == []
    assert sorted(path.name for path in (tmp_path / "reg").iterdir()) == sorted(
        f"class-0000{number}.{extension}" for number in (1, 2, 3, 4) for extension in ("png", "txt")
    )
    again = scan_dataset(config)
    assert again.subsets == drawn.subsets
    assert make_report(again, config).buckets == make_report(scan, config).buckets


def test_a_restart_goes_on_where_it_was_ended(config: TrainConfig, tmp_path: Path) -> None:
    control = Control()
    painter = Painter(control, cancel_after=2)
    scan = scan_dataset(config)
    check_class_pictures(scan, painter)
    with pytest.raises(Cancelled):
        draw_class_pictures(scan, config, painter, Events(), control)
    assert sorted(path.name for path in (tmp_path / "reg").glob("*.png")) == ["class-00001.png", "class-00002.png"]
    rest = scan_dataset(config)
    assert [entry.path.name for entry in pictures_to_draw(rest)] == ["class-00003.png", "class-00004.png"]
    second = Painter()
    draw_class_pictures(rest, config, second, Events(), Control())
    whole = [entry.order.seed for entry in pictures_to_draw(scan) if entry.order]
    assert [request.seed for request in second.requests] == whole[2:]


def test_own_pictures_are_counted_and_kept(config: TrainConfig, tmp_path: Path) -> None:
    draw(tmp_path / "reg" / "1_cat", "mine.png", "class-00001.png")
    scan = scan_dataset(config)
    (subset,) = [subset for subset in scan.subsets if subset.is_reg]
    assert [(entry.path.name, entry.order is None) for entry in subset.images] == [
        ("class-00001.png", True), ("class-00002.png", False), ("class-00003.png", False), ("mine.png", True),
    ]  # fmt: skip
    assert {entry.caption for entry in subset.images} == {"cat", "a cat"}
    assert subset.images[2].path.parent == tmp_path / "reg" / "1_cat"
    drawn = draw_class_pictures(scan, config, Painter(), Events(), Control())
    assert scan_dataset(config).images == drawn.images  # a state that was saved now is that of the same run


def test_a_prompt_of_several_lines_is_one_caption(config: TrainConfig) -> None:
    """As it is drawn, so it is read again from the file beside the picture."""
    config = make_config({"class_prompt": "a cat,\n  sitting\n"}, config)
    scan = scan_dataset(config)
    check_class_pictures(scan, Painter())
    drawn = draw_class_pictures(scan, config, Painter(), Events(), Control())
    assert {entry.caption for entry in drawn.images} == {"zbx cat", "a cat, sitting"}
    assert scan_dataset(config).images == drawn.images


def test_enough_pictures_leave_nothing_to_draw(config: TrainConfig, tmp_path: Path) -> None:
    draw(tmp_path / "reg", "a.png", "b.png", "c.png", "d.png", "e.png")
    scan = scan_dataset(config)
    assert pictures_to_draw(scan) == [] and len(scan.images) == 7
    check_class_pictures(scan, None)
    assert draw_class_pictures(scan, config, Painter(), Events(), Control()).subsets == scan.subsets


def test_a_program_that_cannot_draw_says_so(config: TrainConfig) -> None:
    with pytest.raises(UserError, match="4 class pictures are to be drawn, and this program renders none"):
        check_class_pictures(scan_dataset(config), None)


@pytest.mark.parametrize("missing", ["class_prompt", "reg_data_dir"])
def test_prompt_and_folder_are_needed(config: TrainConfig, missing: str) -> None:
    with pytest.raises(UserError, match=f"num_class_images = 4 needs {missing}"):
        make_config({missing: ""}, config)


def test_a_folder_that_cannot_be_made(config: TrainConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    scan = scan_dataset(make_config({"reg_data_dir": str(tmp_path / "file" / "reg")}, config))
    with pytest.raises(UserError, match="the folder for class pictures cannot be made"):
        check_class_pictures(scan, Painter())
