"""What a run does when something goes wrong; the `checkpoint` fixture proves each time that the base is as it was."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lora_ext.checkpoint.checkpoint import Checkpoint
from lora_ext.config.train_config import TrainConfig
from lora_ext.networks.file import read_network
from lora_ext.protocols import Events, MessageLevel, StepReport, UserError
from lora_ext.training.checks import check_replaced
from lora_ext.training.out_of_memory import is_out_of_memory
from lora_ext.training.trainer import Trainer

MakeConfig = Callable[..., TrainConfig]


def refusal(checkpoint: Checkpoint, config: TrainConfig, folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        Trainer(checkpoint, config, folder).run()
    return str(caught.value)


def test_a_network_needs_a_name(checkpoint: Checkpoint, small_config: MakeConfig, tmp_path: Path) -> None:
    assert "output_name is empty" in refusal(checkpoint, small_config(output_name=" "), tmp_path / "out")


def test_an_output_folder_that_is_a_file(checkpoint: Checkpoint, small_config: MakeConfig, tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"")
    message = refusal(checkpoint, small_config(), tmp_path / "out")
    assert str(tmp_path / "out") in message and "cannot be written to" in message


@pytest.mark.parametrize("name", ["cat", "cat-000001"])  # the last file, and one that the run would delete again
def test_a_checkpoint_is_never_replaced(
    name: str, checkpoint: Checkpoint, small_config: MakeConfig, tmp_path: Path
) -> None:
    assert checkpoint.path is not None
    place = tmp_path / f"{name}.safetensors"
    shutil.copyfile(checkpoint.path, place)
    message = refusal(checkpoint, small_config(max_train_epochs=3, save_last_n_epochs=1), tmp_path)
    assert message.startswith(f"{place} is there already and is no network") and "choose another output_name" in message
    assert place.read_bytes() == checkpoint.path.read_bytes()


@pytest.mark.parametrize(
    ("key", "metadata"),
    [
        ("lora_unet_x.lora_up.weight", {}), ("lycoris_x.w_norm", {}), ("unet.x.lora_A.weight", {}),
        ("lora_unet_x.a1.weight", {}), ("oft_unet_x.oft_blocks", {}), ("strange", {"ss_network_module": "own"}),
    ],
)  # fmt: skip
def test_networks_of_all_kinds_may_be_replaced(key: str, metadata: dict[str, str], tmp_path: Path) -> None:
    place = tmp_path / "cat.safetensors"
    save_file({key: torch.zeros(2)}, place, metadata)
    check_replaced([place, tmp_path / "not-there.safetensors"])
    place.write_bytes(b"half a file")
    check_replaced([place])


def test_a_missing_dataset_is_found_before_any_work(
    checkpoint: Checkpoint, small_config: MakeConfig, tmp_path: Path
) -> None:
    message = refusal(checkpoint, small_config(train_data_dir=str(tmp_path / "nowhere")), tmp_path / "out")
    assert "nowhere" in message


def test_broken_pictures_keep_a_run_from_starting(
    checkpoint: Checkpoint, small_config: MakeConfig, tmp_path: Path
) -> None:
    config = small_config()
    folder = Path(config.dataset.train_data_dir) / "2_cat"
    (folder / "0.png").write_bytes(b"no picture")
    (folder / "1.txt").write_bytes(b"\xff\xfe\xfa")
    message = refusal(checkpoint, config, tmp_path / "out")
    assert "0.png" in message and "1.txt" in message


def test_five_bad_steps_in_a_row_end_the_run(
    checkpoint: Checkpoint, small_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unet = checkpoint.unet
    monkeypatch.setattr(unet, "forward", _nan_from(unet.forward, lambda call: call > 2))
    config = small_config(max_train_epochs=9, learning_rate=0.5)
    message = refusal(checkpoint, config, tmp_path / "out")
    monkeypatch.undo()
    assert "5 steps in a row" in message and "learning rate" in message and "unet 0.5" in message
    files = sorted((tmp_path / "out").iterdir())
    assert [path.name for path in files] == ["cat-000001.safetensors", "cat-000002.safetensors"]
    assert all(torch.isfinite(tensor).all() for tensor in read_network(files[-1]).tensors.values())


def _nan_from(forward: Callable[..., Tensor], bad: Callable[[int], bool]) -> Callable[..., Tensor]:
    """A forward whose output is NaN at calls (from 1 on) that `bad` picks."""
    calls = 0

    def wrapped(*args: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return forward(*args) * (math.nan if bad(calls) else 1.0)

    return wrapped


def test_single_bad_steps_are_left_out_and_counted(
    checkpoint: Checkpoint, small_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unet = checkpoint.unet
    monkeypatch.setattr(unet, "forward", _nan_from(unet.forward, lambda call: call == 2))
    messages: list[str] = []

    class Listener(Events):
        def message(self, level: MessageLevel, text: str) -> None:
            messages.append(text)

    result = Trainer(checkpoint, small_config(), tmp_path / "out", Listener()).run()
    monkeypatch.undo()
    assert (result.steps, result.bad_steps, math.isnan(result.losses[1])) == (6, 1, True)
    assert math.isfinite(result.final_loss) and "Step 2 was left out: its loss is nan." in messages
    assert all(torch.isfinite(tensor).all() for tensor in read_network(result.files[-1]).tensors.values())


def test_out_of_memory_is_explained(
    checkpoint: Checkpoint, small_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(*args: object) -> Tensor:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(checkpoint.unet, "forward", explode)
    message = refusal(checkpoint, small_config(), tmp_path / "out")
    monkeypatch.undo()
    assert "not enough memory" in message and "gradient_checkpointing" in message and "train_batch_size" in message


def test_memory_that_the_cpu_lacks_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    windows = "DefaultCPUAllocator: not enough memory: you tried to allocate 1152921504606846976 bytes."
    for text in (
        windows,
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`",
    ):
        assert is_out_of_memory(RuntimeError(text)), text
    assert not is_out_of_memory(RuntimeError("shapes cannot be multiplied"))


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_an_exception_in_the_middle_leaves_the_base_alone(
    precision: str, checkpoint: Checkpoint, small_config: MakeConfig, tmp_path: Path
) -> None:
    class Breaking(Events):
        def step(self, report: StepReport) -> None:
            if report.step == 2:
                raise KeyError("a bug somewhere")

    config = small_config(gradient_checkpointing=True, mixed_precision=precision)
    with pytest.raises(KeyError):
        Trainer(checkpoint, config, tmp_path / "out", Breaking()).run()


@pytest.mark.skipif(sys.platform == "win32", reason="folders have no write permission to take away there")
def test_an_unwritable_output_folder(checkpoint: Checkpoint, small_config: MakeConfig) -> None:
    message = refusal(checkpoint, small_config(), Path("/proc/lora-workshop"))
    assert "/proc/lora-workshop cannot be written to" in message
