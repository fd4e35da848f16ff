"""Prior prediction: the network is held to what the base predicts without it, instead of to pictures of the class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lora_ext.checkpoint.conditioning import Frame
from lora_ext.config.train_config import TrainConfig
from lora_ext.dataset.dataset import Batch
from lora_ext.dataset.folders import DatasetScan
from lora_ext.networks.network import Network

Predict = Callable[[Tensor, Tensor, list[str], Sequence[Frame]], Tensor]
"""What the U-Net predicts for noisy latents (batch, 4, h, w) at timesteps (batch,) under captions, SDXL with frames."""


@dataclass(frozen=True)
class PriorPrediction:
    """Where the network is to change nothing, the target is the base's own prediction: one more pass, without a graph.

    Regularisation pictures are such places, under their own captions. A dataset without any has a `caption`: under it
    each training picture is one too, in a term of its own, which takes a further pass with a graph.
    """

    network: Network
    weight: float
    caption: str | None = None

    @property
    def captions(self) -> list[str]:
        """The captions that no picture of the dataset has."""
        return [] if self.caption is None else [self.caption]

    @torch.no_grad()
    def target(self, predict: Predict, noisy: Tensor, timesteps: Tensor, batch: Batch, target: Tensor) -> Tensor:
        """The target with the base's prediction in the rows of regularisation pictures."""
        rows = [row for row, is_reg in enumerate(batch.is_reg) if is_reg]
        if not rows:
            return target
        captions, frames = [batch.captions[row] for row in rows], [batch.frames[row] for row in rows if batch.frames]
        with self.network.disabled():
            base = predict(noisy[rows], timesteps[rows], captions, frames)
        replaced = target.clone()
        replaced[rows] = base.to(target.dtype)
        return replaced

    def weights(self, weights: Tensor, batch: Batch) -> Tensor:
        """Weights (batch,) of samples, those of regularisation pictures times the prior's."""
        return weights * torch.tensor([self.weight if is_reg else 1.0 for is_reg in batch.is_reg])

    def of_training_pictures(
        self, predict: Predict, noisy: Tensor, timesteps: Tensor, frames: Sequence[Frame] = ()
    ) -> tuple[Tensor, Tensor]:
        """What network and base predict under `caption`, both (batch, 4, h, w); the former with its graph."""
        captions = [self.caption or ""] * len(noisy)
        with self.network.disabled(), torch.no_grad():
            base = predict(noisy, timesteps, captions, frames)
        return predict(noisy, timesteps, captions, frames), base


def prior_prediction(config: TrainConfig, scan: DatasetScan, network: Network) -> PriorPrediction | None:
    """The prior prediction that the settings want; None where they want none.

    Without regularisation pictures the training pictures take their part, under the class prompt (the empty one where
    there is none): what the base makes of the class is kept while the subject is learned.
    """
    weight = config.loss.prior_prediction_weight
    if not weight:
        return None
    has_reg = any(subset.is_reg for subset in scan.subsets)
    return PriorPrediction(network, weight, None if has_reg else config.dataset.class_prompt.strip())
