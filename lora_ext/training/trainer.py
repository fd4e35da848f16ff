"""The trainer: from a checkpoint and a configuration to network files."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from lora_ext.checkpoint.checkpoint import Checkpoint
from lora_ext.config.train_config import TrainConfig
from lora_ext.dataset.dataset import ImageDataset
from lora_ext.dataset.encodings import EncodingCache
from lora_ext.networks.dropout import dropout_of
from lora_ext.networks.network import Network
from lora_ext.protocols import Cancelled, Control, Events, ImageGenerator, UserError
from lora_ext.training.checks import PreparedRun, check_checkpoint, prepare_run
from lora_ext.training.conditioning import TextConditioning, token_count
from lora_ext.training.learning import Learning
from lora_ext.training.loop import TrainingLoop
from lora_ext.training.noise import NoiseSource, generator_for
from lora_ext.training.out_of_memory import advice_for, is_out_of_memory
from lora_ext.training.pausing import PausePlace
from lora_ext.training.precision import autocasting, computing_in
from lora_ext.training.run import Run, TrainingResult, mean_finite
from lora_ext.training.run_facts import MetadataOfRun
from lora_ext.training.samples import SampleDrawer
from lora_ext.training.saving import NetworkSaver
from lora_ext.training.session import Session
from lora_ext.training.step import TrainingStep


class Trainer:
    """Trains a network on a checkpoint that belongs to someone else, and leaves it as it was.

    With a `pause_place` it can be paused; without one, requests for that are not looked at.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: TrainConfig,
        output_dir: Path,
        events: Events | None = None,
        control: Control | None = None,
        generator: ImageGenerator | None = None,
        pause_place: PausePlace | None = None,
        noise: NoiseSource | None = None,
    ) -> None:
        """`generator` renders samples with the checkpoint as it is; without one there are none.

        `noise` stands in for the noise that the settings ask for, to compare with other programs.
        """
        self.checkpoint = checkpoint
        self.config = config
        self.output_dir = output_dir
        self.events = events or Events()
        self.control = control or Control()
        self.pause_place = pause_place
        self.generator = generator
        self.noise = noise

    def run(self) -> TrainingResult:
        """Train, and write the network's files.

        Raises UserError for everything that a person can put right; a run that is told to end returns normally.
        """
        started = time.perf_counter()
        try:
            return self._run(started)
        except Cancelled:
            self.events.message("info", "Ended before the first step: nothing was trained, nothing was written.")
            return TrainingResult(
                [], 0, 0, math.nan, stopped=True, cancelled=self.control.cancelled,
                seconds=time.perf_counter() - started,
            )  # fmt: skip
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise UserError(advice_for(self.config, self.checkpoint.device)) from error
            raise

    def _run(self, started: float) -> TrainingResult:
        checkpoint, config = self.checkpoint, self.config
        check_checkpoint(config, checkpoint)
        encoder = checkpoint.text_encoders[0]
        prepared = prepare_run(config, self.output_dir, lambda caption: token_count(encoder, caption))
        self._announce(prepared)
        metadata = MetadataOfRun(checkpoint, prepared)
        with Session(checkpoint, config, prepared.rates) as session:
            generator = generator_for(config.learning.seed, "network")
            network = Network(session.targets(), generator, dropout_of(config.network))
            dataset = self._cached_dataset(prepared)
            conditioning = self._conditioning(dataset)
            encode = self._text_encoding(conditioning, dataset, trained="text_encoder" in prepared.rates)
            session.attach(network)
            learning = Learning(network, config, prepared.plan.total_steps)
            run = Run(
                plan=prepared.plan,
                session=session,
                dataset=dataset,
                conditioning=conditioning,
                step=TrainingStep(checkpoint, config, learning.optimizer, encode, self.noise),
                saver=NetworkSaver(config, self.output_dir, self.events, learning.tensors_for_file, metadata),
                samples=self._samples(prepared, dataset, learning),
                learning=learning,
            )
            TrainingLoop(run, config, self.events, self.control, self.pause_place).train()
        return self._result(run, started)

    def _announce(self, prepared: PreparedRun) -> None:
        for line in (*prepared.report.summary(), *prepared.plan.summary()):
            self.events.message("info", line)
        for line in prepared.warnings:
            self.events.message("warning", line)
        learning = self.config.learning
        for part, rate in (("unet", learning.unet_lr), ("text_encoder", learning.text_encoder_lr)):
            if part not in prepared.rates and (rate == 0 or (rate is None and learning.learning_rate == 0)):
                self.events.message("warning", f"The {part.replace('_', ' ')} is not trained: its learning rate is 0.")

    def _cached_dataset(self, prepared: PreparedRun) -> ImageDataset:
        """The dataset with its latents, encoded in fp32: half-precision VAEs give NaN."""
        dataset = ImageDataset(prepared.scan, self.config)
        generator = generator_for(self.config.learning.seed, "latents")
        with torch.no_grad(), computing_in([self.checkpoint.vae], torch.float32):
            dataset.cache_latents(self.checkpoint, self.events, self.control, generator)
        self.control.raise_if_stopping()
        return dataset

    def _conditioning(self, dataset: ImageDataset) -> TextConditioning:
        """What encodes captions, with room for the longest of the dataset."""
        settings = self.config.captions
        conditioning = TextConditioning(self.checkpoint.text_encoders[0], settings.clip_skip, settings.max_token_length)
        conditioning.fit(dataset.captions)
        return conditioning

    def _text_encoding(
        self, conditioning: TextConditioning, dataset: ImageDataset, trained: bool
    ) -> Callable[[list[str]], Tensor]:
        """What gives the text states of captions: the encoder itself while it is trained, otherwise a cache."""
        if trained:
            return conditioning.encode
        cache = EncodingCache(conditioning.encode)
        if dataset.captions_are_known:
            with autocasting(self.config, self.checkpoint):
                cache.prepare(dataset.captions, self.events, self.control)
        return cache

    def _samples(self, prepared: PreparedRun, dataset: ImageDataset, learning: Learning) -> SampleDrawer:
        return SampleDrawer(
            self.config, prepared.sample_prompts, dataset.captions[0], learning.network, self.generator, self.events,
            self.control, learning.weights_for_use,
        )  # fmt: skip

    def _result(self, run: Run, started: float) -> TrainingResult:
        stopped = self.control.stopping and run.steps < run.plan.total_steps
        return TrainingResult(
            files=run.saver.files,
            steps=run.steps,
            epochs=run.epoch,
            final_loss=mean_finite(run.epoch_losses),
            stopped=stopped,
            cancelled=self.control.cancelled,
            losses=run.losses,
            bad_steps=run.step.bad_steps,
            seconds=time.perf_counter() - started,
        )
