"""Writing a checkpoint tensor by tensor: never more than one of them in memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lora_ext.checkpoint.safetensors_file import DTYPES as STORABLE
from lora_ext.checkpoint.tensor_files import TensorFile
from lora_ext.merge.work import AS_STORED, DTYPES, OutputFile, Work
from lora_ext.networks.file import file_size, write_tensors
from lora_ext.networks.library import identity
from lora_ext.protocols import UserError

_CHUNK = 8 << 20  # bytes

Change = Callable[[str, Tensor, torch.dtype], Tensor]
"""(name, tensor as stored, dtype to be) → the tensor as it is written, on the CPU."""


@dataclass(frozen=True)
class CheckpointOutput:
    """A checkpoint that is going to be written: the one that it is made of, and the dtype of each of its tensors."""

    source: TensorFile
    dtypes: Mapping[str, torch.dtype]

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        shapes = self.source.shapes
        return sum(math.prod(shapes[name]) * dtype.itemsize for name, dtype in self.dtypes.items())

    def file_size(self, metadata: Mapping[str, str]) -> int:
        """Bytes of the file."""
        return file_size(self._outlines(), metadata)

    def write(self, out: Path, metadata: Mapping[str, str], change: Change, work: Work) -> OutputFile:
        """Write it at once, whole or not at all; `work` is told of the bytes.

        Raises UserError where the source changes meanwhile.
        """
        path, done, total = self.source.path, 0, self.size
        before = identity(path)

        def content(name: str) -> Iterator[bytes]:
            nonlocal done
            tensor = change(name, _stored(self.source, name), self.dtypes[name])
            data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
            for begin in range(0, len(data), _CHUNK):
                chunk = bytes(data[begin : begin + _CHUNK])
                yield chunk
                done += len(chunk)
                work.step(done, total)
            if done == total and identity(path) != before:
                raise UserError(f"{path} was replaced by another program meanwhile: start anew")

        work.step(0, total)
        write_tensors(out, self._outlines(), metadata, content)
        return OutputFile(out, out.stat().st_size)

    def _outlines(self) -> dict[str, Tensor]:
        shapes = self.source.shapes
        return {name: torch.empty(shapes[name], dtype=dtype, device="meta") for name, dtype in self.dtypes.items()}


def checkpoint_output(source: TensorFile, precision: str) -> CheckpointOutput:
    """The checkpoint in a `--precision`; whole numbers and the noise schedule's tables are always kept as they are.

    Raises UserError for a pickled file with a tensor that a .safetensors cannot hold.
    """
    dtypes = dict(source.dtypes)
    for name, dtype in dtypes.items():
        if dtype not in STORABLE.values():
            words = str(dtype).removeprefix("torch.")
            raise UserError(f"{source.path}: {name} is of the type {words}, which no .safetensors holds: take it out")
    if precision != AS_STORED:
        dtypes |= {
            name: DTYPES[precision]
            for name, dtype in source.dtypes.items()
            if dtype.is_floating_point and "." in name  # names without a dot belong to no part: betas, alphas_cumprod
        }
    return CheckpointOutput(source, dtypes)


def _stored(source: TensorFile, name: str) -> Tensor:
    try:
        ((_, tensor),) = source.read({name})
    except OSError as error:  # not one of the output
        raise UserError(f"{source.path} cannot be read ({error.strerror or error})") from error
    return tensor
