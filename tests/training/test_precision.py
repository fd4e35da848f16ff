from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from lora_ext.checkpoint.checkpoint import Checkpoint
from lora_ext.config.train_config import TrainConfig, make_config
from lora_ext.networks.file import read_network
from lora_ext.protocols import UserError
from lora_ext.training import precision, trainer
from lora_ext.training.precision import check_precision, computing_in, training_dtype
from lora_ext.training.trainer import Trainer

MakeConfig = Callable[..., TrainConfig]


class Pair(nn.Module):
    """Two layers that share a weight, a float buffer and an integer one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.register_buffer("table", torch.tensor([1.0, 2.0]))
        self.register_buffer("ids", torch.arange(3))


def test_casting_is_undone_bit_for_bit() -> None:
    pair = Pair().half()
    with torch.no_grad():
        pair.first.weight.view(torch.int16)[0, 0] = 0x7E01  # a NaN with a payload
    before = [(id(t), t.data_ptr(), t.dtype, t.clone()) for t in (*pair.parameters(), *pair.buffers())]
    with computing_in([pair, pair.first], torch.float32):
        assert {t.dtype for t in pair.parameters()} == {torch.float32}
        assert pair.first.weight is pair.second.weight
        assert pair.table.dtype == torch.float32 and pair.ids.dtype == torch.int64
    for tensor, (identity, pointer, dtype, values) in zip((*pair.parameters(), *pair.buffers()), before, strict=True):
        assert (id(tensor), tensor.data_ptr(), tensor.dtype) == (identity, pointer, dtype)
        assert torch.equal(tensor.detach().view(torch.uint8), values.view(torch.uint8))


@pytest.mark.parametrize("room", [0, 20])
def test_originals_lie_in_main_memory_where_a_gpu_has_no_room(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cast weights take no memory then beside what the originals had; 20 bytes are enough for some of them."""
    monkeypatch.setattr(precision, "room_on", lambda device: room)
    pair = Pair().half()
    pair.first.weight.data = pair.first.weight.data.t()  # any order in memory
    with torch.no_grad():
        pair.first.weight.view(torch.int16)[0, 0] = 0x7E01  # a NaN with a payload
    tensors = [*pair.parameters(), pair.table]
    before = [(t.data_ptr(), t.stride(), t.detach().clone()) for t in tensors]
    with pytest.raises(ValueError, match="x"), computing_in([pair], torch.bfloat16):
        for tensor, (_, stride, values) in zip(tensors, before, strict=True):
            assert tensor.dtype == torch.bfloat16 and tensor.stride() == stride
            assert torch.equal(tensor.nan_to_num(), values.bfloat16().nan_to_num())
        kept_in_place = [t.data_ptr() == pointer for t, (pointer, *_) in zip(tensors, before, strict=True)]
        assert all(kept_in_place) if room == 0 else set(kept_in_place) == {True, False}
        raise ValueError("x")
    for tensor, (pointer, stride, values) in zip(tensors, before, strict=True):
        assert (tensor.data_ptr(), tensor.stride(), tensor.dtype) == (pointer, stride, torch.float16)
        assert torch.equal(tensor.detach().view(torch.int16), values.view(torch.int16))


def test_casting_is_undone_after_an_exception() -> None:
    layer = nn.Linear(2, 2).bfloat16()
    with pytest.raises(ValueError, match="x"), computing_in([layer], torch.float32):
        raise ValueError("x")
    assert layer.weight.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("precision", "base", "during"),
    [
        ("no", torch.float32, torch.float32),
        ("no", torch.float16, torch.float32),
        ("no", torch.bfloat16, torch.float32),
        ("bf16", torch.float32, torch.float32),
        ("bf16", torch.bfloat16, torch.bfloat16),
        ("bf16", torch.float16, torch.bfloat16),
    ],
)
def test_the_base_trains_in_its_dtype_and_gets_it_back(
    precision: str, base: torch.dtype, during: torch.dtype,
    checkpoint: Checkpoint, small_config: MakeConfig, tmp_path: Path,
) -> None:  # fmt: skip
    modules = [checkpoint.unet, checkpoint.vae, checkpoint.text_encoders[0].module]
    config = small_config(max_train_epochs=1, mixed_precision=precision)
    with computing_in(modules, base):
        assert training_dtype(config, checkpoint) == during
        pointers = [parameter.data_ptr() for module in modules for parameter in module.parameters()]
        result = Trainer(checkpoint, config, tmp_path / "out").run()
        assert pointers == [parameter.data_ptr() for module in modules for parameter in module.parameters()]
        assert {p.dtype for module in modules for p in module.parameters()} == {base}
    ups = [t for name, t in read_network(result.files[-1]).tensors.items() if name.endswith("lora_up.weight")]
    assert all(torch.isfinite(up).all() and up.any() for up in ups)
    assert result.bad_steps == 0


def test_bf16_comes_near_fp32(checkpoint: Checkpoint, small_config: MakeConfig, tmp_path: Path) -> None:
    exact = Trainer(checkpoint, small_config(max_train_epochs=1), tmp_path / "a").run()
    rough = Trainer(checkpoint, small_config(max_train_epochs=1, mixed_precision="bf16"), tmp_path / "b").run()
    assert rough.losses != exact.losses and rough.losses == pytest.approx(exact.losses, rel=0.03)


def test_everything_in_bf16(checkpoint: Checkpoint, small_config: MakeConfig, tmp_path: Path) -> None:
    config = small_config(max_train_epochs=1, mixed_precision="bf16", full_bf16=True, learning_rate=1e-2)
    assert training_dtype(config, checkpoint) == torch.bfloat16
    result = Trainer(checkpoint, config, tmp_path / "out").run()
    tensors = read_network(result.files[-1]).tensors  # saved as fp32, trained as bf16: no digits beyond
    assert all(torch.equal(tensor, tensor.bfloat16().float()) for tensor in tensors.values())
    assert any(tensor.any() for name, tensor in tensors.items() if "lora_up" in name) and result.bad_steps == 0


def test_fp16_needs_a_graphics_card(checkpoint: Checkpoint, small_config: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="mixed_precision = fp16: allowed on NVIDIA and AMD cards alone, .* on cpu"):
        Trainer(checkpoint, small_config(mixed_precision="fp16"), tmp_path / "out").run()


@pytest.mark.skipif(not hasattr(torch.amp, "GradScaler"), reason="torch before 2.3 has no fp16 on a CPU")
def test_fp16_finds_a_factor_and_trains(checkpoint: Checkpoint, small_config: MakeConfig, tmp_path: Path) -> None:
    """On a CPU, which the settings refuse because it is slow there; the arithmetic is the same."""
    config = small_config(mixed_precision="fp16", network_train_unet_only=True)
    exact = Trainer(checkpoint, small_config(network_train_unet_only=True), tmp_path / "a").run()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "check_checkpoint", lambda config, checkpoint: None)
        rough = Trainer(checkpoint, config, tmp_path / "b").run()
    assert rough.losses != exact.losses and rough.losses == pytest.approx(exact.losses, rel=0.01)
    assert rough.bad_steps == 0


@pytest.mark.parametrize(("capability", "allowed"), [((7, 5), False), ((8, 0), True), ((8, 6), True), ((12, 0), True)])
def test_bf16_wants_a_card_that_computes_in_it(
    capability: tuple[int, int], allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch counts what it emulates: an RTX 2080 (7.5) passes `is_bf16_supported` of newer versions."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "card")
    config = make_config({"mixed_precision": "bf16"})
    if allowed:
        check_precision(config, torch.device("cuda"))
    else:
        with pytest.raises(UserError, match="card has no bf16; set mixed_precision to fp16"):
            check_precision(config, torch.device("cuda"))
