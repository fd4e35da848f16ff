from __future__ import annotations

from pathlib import Path

import pytest

from lora_ext.config.train_config import TrainConfig, make_config
from lora_ext.dataset.report import DatasetReport, count_batches
from lora_ext.training.plan import make_plan, step_to_delete


def report_of(buckets: dict[tuple[int, int], int], batch_size: int = 1) -> DatasetReport:
    return DatasetReport(
        pictures=3, captions=3, missing=0, repeats=sum(buckets.values()),
        batches_per_epoch=count_batches(buckets, batch_size), buckets=buckets, mean_ar_error=0.0, folders=[],
        problems=[], warnings=[], tag_frequency={},
    )  # fmt: skip


def config_of(**values: object) -> TrainConfig:
    return make_config({"output_name": "cat", "train_data_dir": "x", **values})


@pytest.mark.parametrize(
    ("values", "batches", "updates", "steps", "epochs"),
    [
        ({"max_train_epochs": 10}, 15, 15, 150, 10),
        ({"max_train_epochs": 10, "train_batch_size": 4}, 5, 5, 50, 10),
        ({"max_train_epochs": 2, "train_batch_size": 4, "gradient_accumulation_steps": 2}, 5, 3, 6, 2),
        ({"max_train_epochs": None, "max_train_steps": 100}, 15, 15, 100, 7),
        ({"max_train_epochs": None, "max_train_steps": 90}, 15, 15, 90, 6),
        ({"max_train_epochs": 3, "max_train_steps": 7}, 15, 15, 45, 3),
    ],
)
def test_steps_and_epochs(
    values: dict[str, object], batches: int, updates: int, steps: int, epochs: int, tmp_path: Path
) -> None:
    config = config_of(**values)
    report = report_of({(64, 64): 9, (64, 96): 6}, config.learning.train_batch_size)
    plan = make_plan(config, report, tmp_path)
    assert (plan.batches_per_epoch, plan.updates_per_epoch) == (batches, updates)
    assert (plan.total_steps, plan.total_epochs) == (steps, epochs)
    assert (plan.images, plan.repeats_total) == (3, 15)


@pytest.mark.parametrize(
    ("values", "files"),
    [
        ({"max_train_epochs": 3}, ["cat-000001", "cat-000002", "cat"]),
        ({"max_train_epochs": 1}, ["cat"]),
        ({"max_train_epochs": 7, "save_every_n_epochs": 3}, ["cat-000003", "cat-000006", "cat"]),
        ({"max_train_epochs": 6, "save_every_n_epochs": 3}, ["cat-000003", "cat"]),
        ({"max_train_epochs": 5, "save_every_n_epochs": None}, ["cat"]),
        ({"max_train_epochs": 6, "save_last_n_epochs": 2}, ["cat-000004", "cat-000005", "cat"]),
        (
            {"max_train_epochs": 9, "save_every_n_epochs": 2, "save_last_n_epochs": 2},
            ["cat-000006", "cat-000008", "cat"],
        ),
        (
            {"max_train_epochs": 3, "save_every_n_epochs": 2, "save_every_n_steps": 3},
            ["cat-step00000003", "cat-step00000006", "cat-000002", "cat-step00000009", "cat-step00000012", "cat"],
        ),
        (  # sd-scripts keeps 3 of these at step 50: 20, 30 and 40 are not older than 30 steps
            {
                "max_train_epochs": None, "max_train_steps": 50, "save_every_n_epochs": None, "save_every_n_steps": 10,
                "save_last_n_steps": 30,
            },
            ["cat-step00000020", "cat-step00000030", "cat-step00000040", "cat-step00000050", "cat"],
        ),
    ],
)  # fmt: skip
def test_files(values: dict[str, object], files: list[str], tmp_path: Path) -> None:
    plan = make_plan(config_of(**values), report_of({(64, 64): 4}), tmp_path)
    assert plan.files == [tmp_path / f"{name}.safetensors" for name in files]


def test_files_of_the_old_kind(tmp_path: Path) -> None:
    plan = make_plan(config_of(max_train_epochs=2, save_model_as="ckpt"), report_of({(64, 64): 4}), tmp_path)
    assert [path.name for path in plan.files] == ["cat-000001.ckpt", "cat.ckpt"]


@pytest.mark.parametrize(
    ("step", "keep", "old"), [(50, 30, 10), (40, 30, None), (50, 29, 20), (50, None, None), (50, 0, 40)]
)
def test_the_step_that_is_deleted(step: int, keep: int | None, old: int | None) -> None:
    assert step_to_delete(config_of(save_every_n_steps=10).saving, step, keep) == old


def test_a_run_that_is_gone_on_with_replaces_its_own_files(tmp_path: Path) -> None:
    for name in ("cat.safetensors", "cat-000009.safetensors"):
        (tmp_path / name).write_bytes(b"")
    assert make_plan(config_of(resume="latest"), report_of({(64, 64): 4}), tmp_path).warnings == []


def test_replaced_and_foreign_epochs_are_warned_of(tmp_path: Path) -> None:
    for name in ("cat.safetensors", "cat-000001.safetensors", "cat-000009.safetensors", "cathedral-000009.safetensors"):
        (tmp_path / name).write_bytes(b"")
    plan = make_plan(config_of(max_train_epochs=2), report_of({(64, 64): 4}), tmp_path)
    replaced, others = plan.warnings
    assert "replaced: cat-000001.safetensors, cat.safetensors" in replaced
    assert "cat-000009.safetensors" in others and "cathedral" not in others


def test_missing_folder_is_no_problem_for_the_plan(tmp_path: Path) -> None:
    plan = make_plan(config_of(), report_of({(64, 64): 4}), tmp_path / "new")
    assert plan.warnings == [] and plan.summary()[0] == "40 steps in 10 epochs of 4 steps (4 batches each)"


def test_accumulation_of_a_whole_epoch_is_warned_of(tmp_path: Path) -> None:
    plan = make_plan(config_of(gradient_accumulation_steps=8), report_of({(64, 64): 4}), tmp_path)
    assert plan.updates_per_epoch == 1 and "gradient_accumulation_steps = 8" in plan.warnings[0]


@pytest.mark.parametrize(
    ("values", "warned"),
    [
        ({"lr_warmup_steps": 500}, True),
        ({"lr_warmup_steps": 39}, False),
        ({"lr_warmup_steps": 0.5}, False),
        ({"lr_warmup_steps": 500, "lr_scheduler": "torch.optim.lr_scheduler.StepLR"}, False),
        ({"lr_warmup_steps": 500, "optimizer_type": "AdamWScheduleFree"}, False),
    ],
)
def test_a_warmup_that_never_ends_is_warned_of(values: dict[str, object], warned: bool, tmp_path: Path) -> None:
    plan = make_plan(config_of(**values), report_of({(64, 64): 4}), tmp_path)
    assert any("never comes up to what is set" in text for text in plan.warnings) is warned
