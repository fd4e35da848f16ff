"""The number formats of a run: what the base computes in, and the way back to the very tensors that were there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from lora_ext.checkpoint.backups import room_on
from lora_ext.checkpoint.checkpoint import Checkpoint
from lora_ext.config.train_config import TrainConfig
from lora_ext.protocols import UserError

_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def training_dtype(config: TrainConfig, checkpoint: Checkpoint) -> torch.dtype:
    """The dtype of the base's weights during the run.

    `no` is fp32. `bf16` and `fp16` leave an fp32 base as it is, to compute under autocast, and take any other base as
    bf16 or fp16. With `full_bf16` every base is bf16.
    """
    if config.memory.full_bf16:
        return torch.bfloat16
    if config.memory.mixed_precision == "no" or checkpoint.dtype == torch.float32:
        return torch.float32
    return _HALF[config.memory.mixed_precision]


def autocasting(config: TrainConfig, checkpoint: Checkpoint) -> AbstractContextManager[object]:
    """Context of a forward pass: autocast where an fp32 base is to compute in bf16 or fp16, otherwise nothing."""
    half = _HALF.get(config.memory.mixed_precision)
    if half is not None and training_dtype(config, checkpoint) == torch.float32:
        autocast: AbstractContextManager[object] = torch.autocast(checkpoint.device.type, half)
        return autocast
    return nullcontext()


def has_bf16(device: torch.device) -> bool:
    """Whether an NVIDIA or AMD card computes in bf16 itself (NVIDIA's from RTX 3000 on): newer torch emulates it."""
    return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)


def check_precision(config: TrainConfig, device: torch.device) -> None:
    """Raise UserError where the device cannot compute in the wanted precision."""
    if config.memory.mixed_precision == "bf16" and device.type == "cuda" and not has_bf16(device):
        name = torch.cuda.get_device_name(device)
        raise UserError(f"mixed_precision = bf16: {name} has no bf16; set mixed_precision to fp16")
    if config.memory.mixed_precision == "fp16" and device.type != "cuda":
        raise UserError(
            f"mixed_precision = fp16: allowed on NVIDIA and AMD cards alone, and this runs on {device}; set it to bf16 "
            "or no"
        )


@contextmanager
def computing_in(modules: Iterable[nn.Module], dtype: torch.dtype) -> Iterator[None]:
    """Cast the floating parameters and buffers of `modules` to `dtype`, and put the original values back at the end.

    The originals are kept, not converted back: afterwards every tensor has its own memory, with the same bits. Where a
    GPU has no room for them too (SDXL in fp16, trained in bf16), they are in main memory, and the cast ones in theirs.
    """
    originals: list[tuple[Tensor, Tensor, bool]] = []
    room: dict[torch.device, int | None] = {}
    try:
        for tensor in _distinct_tensors(modules):
            if tensor.is_floating_point() and tensor.dtype != dtype:
                original = tensor.data
                moved = _is_replaceable(original, dtype) and not _has_room(original, room)
                originals.append((tensor, original.to("cpu", copy=True) if moved else original, moved))
                cast = original.to(dtype)
                tensor.data = _written_over(original, cast) if moved else cast
        yield
    finally:
        for tensor, original, moved in originals:
            tensor.data = _written_over(tensor.data, original) if moved else original


def _is_replaceable(tensor: Tensor, dtype: torch.dtype) -> bool:
    """Whether a tensor has memory to itself, of the size that it has in `dtype`."""
    size = tensor.numel() * tensor.element_size()
    return tensor.dtype.itemsize == dtype.itemsize and tensor.untyped_storage().nbytes() == size


def _has_room(tensor: Tensor, room: dict[torch.device, int | None]) -> bool:
    """Whether a tensor may stay on its device beside a cast one; takes its size off the bytes that are left there."""
    device, size = tensor.device, tensor.numel() * tensor.element_size()
    if device not in room:
        room[device] = room_on(device)
    left = room[device]
    if left is None or size > left:
        return left is None
    room[device] = left - size
    return True


def _written_over(memory: Tensor, values: Tensor) -> Tensor:
    """Values in the memory of a tensor of the same size in bytes, which takes no more: it may be short."""
    return memory.view(values.dtype).copy_(values)


def _distinct_tensors(modules: Iterable[nn.Module]) -> Iterator[Tensor]:
    """Each parameter and buffer once, also where modules share it."""
    seen: set[int] = set()
    for module in modules:
        for tensor in (*module.parameters(), *module.buffers()):
            if id(tensor) not in seen:
                seen.add(id(tensor))
                yield tensor
