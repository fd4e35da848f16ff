"""Two checkpoints in their files, compared: what both have, and how the second differs from the first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lora_ext.checkpoint.checkpoint import Architecture, PredictionType
from lora_ext.checkpoint.file_weights import CheckpointFile, open_checkpoint_file
from lora_ext.checkpoint.inpainting import INPAINTING_CHANNELS
from lora_ext.checkpoint.layouts import LAYOUTS, current_name
from lora_ext.checkpoint.stated_prediction import stated_prediction
from lora_ext.networks.blocks import block_index
from lora_ext.networks.weight_delta.stored import is_finite
from lora_ext.protocols import UserError

_TRANSFORMERS = ("_proj_in", "_proj_out")
_INPUT = "lora_unet_conv_in", "lora_unet_input_blocks_0_0"


@dataclass(frozen=True)
class CheckpointPair:
    """Two checkpoints of one architecture, and the prediction type that they state (None: neither says it)."""

    base: CheckpointFile
    tuned: CheckpointFile
    prediction: PredictionType | None

    @property
    def architecture(self) -> Architecture:
        """The kind of both."""
        return self.base.architecture

    def keys(self, unet: bool, text_encoders: bool, convolutions: bool) -> list[str]:
        """The modules of sd-scripts' LoRA, with `convolutions` those of its LoCon, as far as both files have them.

        UserError where such a module has another shape in the other file.
        """
        wanted = [key for key in self.base.weights if self._is_wanted(key, unet, text_encoders, convolutions)]
        shared = [key for key in wanted if key in self.tuned.weights]
        for key in shared:
            before, after = tuple(self.base.weights[key].shape), tuple(self.tuned.weights[key].shape)
            if before != after:
                raise UserError(
                    f"{key} is {before} in {self.base.name} and {after} in {self.tuned.name}: only checkpoints of one "
                    "build can be compared; choose the one that the other was made from"
                )
        return shared

    def missing(self, unet: bool, text_encoders: bool, convolutions: bool) -> list[str]:
        """The modules that only one of both has."""
        different = set(self.base.weights) ^ set(self.tuned.weights)
        weights = {**self.base.weights, **self.tuned.weights}
        return sorted(
            key for key in different if weights[key].parameter.ndim > 1
            and self._is_wanted(key, unet, text_encoders, convolutions)
        )  # fmt: skip

    def _is_wanted(self, key: str, unet: bool, text_encoders: bool, convolutions: bool) -> bool:
        if not key.startswith("lora_unet_"):
            return text_encoders
        weights = self.base.weights if key in self.base.weights else self.tuned.weights
        if not unet or weights[key].parameter.ndim < 2 or block_index(key, self.architecture) is None:
            return False
        return convolutions or "_transformer_blocks_" in key or key.endswith(_TRANSFORMERS)

    def groups(self, keys: Iterable[str]) -> list[set[str]]:
        """The keys, those together that are parts of one tensor, in the order in which the base file has them."""
        found: dict[str, set[str]] = {}
        for key in keys:
            found.setdefault(self.base.tensor_of(key), set()).add(key)
        return [found[name] for name in self.base.file.shapes if name in found]

    def differences(self, group: set[str]) -> Iterator[tuple[str, Tensor]]:
        """(key, tuned - base in fp32) of modules of one tensor that differ; UserError where values are not finite."""
        before, after = dict(self.base.values(group)), dict(self.tuned.values(group))
        for key in sorted(group):
            names = self.base.tensor_of(key), self.tuned.tensor_of(key)
            first, second = before.pop(key), after.pop(key)
            if not same(first, second):
                yield key, self._difference(names, first, second)

    def other_tensors(self, keys: Iterable[str]) -> list[tuple[str, str]]:
        """(name in base, name in tuned) of the tensors of U-Net, VAE and text encoders that are none of the modules'.

        Those that only one of both has, or in another shape, are not among them.
        """
        taken = {self.base.tensor_of(key) for key in keys}
        layout = LAYOUTS[self.architecture]
        in_tuned = {current_name(name, layout): name for name in self.tuned.file.shapes}
        prefixes = tuple(layout.parts.values())
        found = []
        for name, shape in self.base.file.shapes.items():
            other = in_tuned.get(current_name(name, layout))
            if (
                name in taken
                or other is None
                or not name.startswith(prefixes)
                or self.tuned.file.shapes[other] != shape
            ):
                continue
            if self.base.file.dtypes[name].is_floating_point:
                found.append((name, other))
        return found

    def read(self, names: tuple[str, str]) -> tuple[Tensor, Tensor]:
        """A tensor of both files, as stored."""
        (_, before), (_, after) = *self.base.file.read({names[0]}), *self.tuned.file.read({names[1]})
        return before, after

    def _difference(self, names: tuple[str, str], before: Tensor, after: Tensor) -> Tensor:
        change = difference(before, after)
        if not is_finite(change):
            is_base = not is_finite(before.float())
            file, name = (self.base, names[0]) if is_base else (self.tuned, names[1])
            raise UserError(
                f"{file.file.path}: {name} holds values that are no numbers (NaN or infinite): the checkpoint is "
                "damaged; get it again"
            )
        return change

    def notes(self) -> Iterator[str]:
        """What a person should know of the two files before they are compared."""
        for each in (self.base, self.tuned):
            if any(name.startswith("model_ema.") for name in each.file.shapes):
                yield f"{each.name} has averaged weights (EMA) too; its own are compared, as the WebUI uses them."
        channels = {each.name: _input_channels(each) for each in (self.base, self.tuned)}
        if len(set(channels.values())) > 1:
            name = next(name for name, count in channels.items() if count == INPAINTING_CHANNELS)
            yield f"{name} is an inpainting checkpoint, the other is none: the input convolution is not compared."
        types = {each.name: _usual_type(each) for each in (self.base, self.tuned)}
        if len(set(types.values())) > 1:
            words = " and ".join(f"{name} in {str(dtype).removeprefix('torch.')}" for name, dtype in types.items())
            yield f"{words}: what the coarser one has rounded away counts as a difference."


def open_pair(base: Path, tuned: Path) -> CheckpointPair:
    """Both by their headers; UserError where one is no checkpoint, or where they are of different kinds."""
    first, second = open_checkpoint_file(base), open_checkpoint_file(tuned)
    if first.architecture != second.architecture:
        raise UserError(
            f"{base.name} is an {first.architecture} checkpoint and {tuned.name} an {second.architecture} one: only "
            "checkpoints of one kind can be compared"
        )
    types = stated_prediction(first.file), stated_prediction(second.file)
    if None not in types and types[0] != types[1]:
        words = {"epsilon": "noise (ε)", "v_prediction": "velocity (v)"}
        raise UserError(
            f"{base.name} predicts the {words[str(types[0])]} and {tuned.name} the {words[str(types[1])]}: no network "
            "makes one of the other; choose the checkpoint that it was made from"
        )
    return CheckpointPair(first, second, types[0] or types[1])


def same(before: Tensor, after: Tensor) -> bool:
    """Whether both hold the same numbers in the same dtype; what is no number is not the same as anything."""
    return before.dtype == after.dtype and torch.equal(before, after)


def difference(before: Tensor, after: Tensor) -> Tensor:
    """after - before in fp32, rounded once; neither is changed."""
    exact = torch.float64 if torch.float64 in (before.dtype, after.dtype) else torch.float32
    return after.to(exact).sub(before.to(exact)).float()


def _input_channels(checkpoint: CheckpointFile) -> int | None:
    view = next((checkpoint.weights[key] for key in _INPUT if key in checkpoint.weights), None)
    return None if view is None else view.shape[1]


def _usual_type(checkpoint: CheckpointFile) -> torch.dtype:
    """The dtype that most of the modules have."""
    types = [checkpoint.file.dtypes[checkpoint.tensor_of(key)] for key in checkpoint.weights]
    return max(set(types), key=types.count)
