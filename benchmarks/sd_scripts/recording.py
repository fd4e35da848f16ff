"""What is drawn in a run of ours, written down to be handed to sd-scripts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import save_file
from torch import Tensor

from lora_ext.dataset.dataset import Batch, ImageDataset
from lora_ext.networks.network import Network
from lora_ext.training.noise import Draw, SeededNoise

DRAWING = ("randn", "rand", "randint")
"""torch's functions from which noise and timesteps are made."""


class Recorder:
    """Writes down a run's first network, its batches, and each step's random numbers as torch draws them.

    The numbers are taken before anything is made of them (a noise offset, say), so that each program makes of them
    what its own rules say.
    """

    def __init__(self) -> None:
        self.network: dict[str, Tensor] = {}
        self.batches: list[Batch] = []
        self.draws: list[list[tuple[str, Tensor]]] = []

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Write down what happens inside the block."""
        attach, batches, draw = Network.attach, ImageDataset.batches, SeededNoise.__call__

        def attach_recorded(network: Network) -> None:
            self.network = self.network or network.state_dict_for_file()
            attach(network)

        def batches_recorded(dataset: ImageDataset, *arguments: Any, **named: Any) -> Iterator[Batch]:
            for batch in batches(dataset, *arguments, **named):
                self.batches.append(batch)
                yield batch

        def draw_recorded(source: SeededNoise, latents: Tensor, step: int, part: int) -> Draw:
            self.draws.append([])
            with self._writing_down(self.draws[-1]):
                return draw(source, latents, step, part)

        with ExitStack() as patches:
            patches.enter_context(mock.patch.object(Network, "attach", attach_recorded))
            patches.enter_context(mock.patch.object(ImageDataset, "batches", batches_recorded))
            patches.enter_context(mock.patch.object(SeededNoise, "__call__", draw_recorded))
            yield

    @contextmanager
    def _writing_down(self, numbers: list[tuple[str, Tensor]]) -> Iterator[None]:
        def recorded(name: str, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
            def drawn(*arguments: Any, **named: Any) -> Tensor:
                result = function(*arguments, **named)
                numbers.append((name, result.clone()))
                return result

            return drawn

        with ExitStack() as patches:
            for name in DRAWING:
                patches.enter_context(mock.patch.object(torch, name, recorded(name, getattr(torch, name))))
            yield

    def write(self, folder: Path, latent_scale: float) -> None:
        """Write `network.safetensors`, `handed.safetensors` and `handed.json` into a folder for the driver.

        Tensors: `latents.CAPTION` (4, h/8, w/8), unscaled, and `draw.STEP.NUMBER.FUNCTION`. The captions tell the
        pictures apart.
        """
        save_file(self.network, str(folder / "network.safetensors"))
        tensors: dict[str, Tensor] = {}
        for batch in self.batches:
            for caption, latents in zip(batch.captions, batch.latents, strict=True):
                tensors[f"latents.{caption}"] = (latents / latent_scale).contiguous()
        for step, numbers in enumerate(self.draws):
            for place, (name, numbers_drawn) in enumerate(numbers):
                tensors[f"draw.{step}.{place}.{name}"] = numbers_drawn
        save_file(tensors, str(folder / "handed.safetensors"))
        order = [batch.captions for batch in self.batches[: len(self.draws)]]
        (folder / "handed.json").write_text(json.dumps(order), encoding="utf-8")
