"""The trainer: from a checkpoint and a configuration to network files."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lora_ext.checkpoint.checkpoint import Checkpoint
from lora_ext.config.train_config import TrainConfig
from lora_ext.dataset.class_pictures import check_class_pictures, draw_class_pictures
from lora_ext.dataset.dataset import ImageDataset
from lora_ext.networks.dropout import dropout_of
from lora_ext.networks.file import NetworkFile
from lora_ext.networks.network import Network
from lora_ext.networks.targets import Target, described
from lora_ext.protocols import Cancelled, Control, Events, ImageGenerator, UserError
from lora_ext.training.base_warnings import base_warnings
from lora_ext.training.checks import PreparedRun, check_checkpoint, prepare_run
from lora_ext.training.first_network import begin_with, first_network, tensors_of
from lora_ext.training.first_weights import left_out, read_base_networks
from lora_ext.training.learning import Learning
from lora_ext.training.loop import TrainingLoop
from lora_ext.training.noise import NoiseSource, generator_for
from lora_ext.training.out_of_memory import advice_for, is_out_of_memory
from lora_ext.training.pausing import PausePlace
from lora_ext.training.prediction import prediction_warnings
from lora_ext.training.prior import prior_prediction
from lora_ext.training.random_states import random_states_kept
from lora_ext.training.resuming import check_same_run, facts_of, find_state
from lora_ext.training.retreat import Retreat, free_memory
from lora_ext.training.run import Run, TrainingResult, mean_finite
from lora_ext.training.run_facts import MetadataOfRun
from lora_ext.training.samples import SampleDrawer
from lora_ext.training.saving import NetworkSaver
from lora_ext.training.session import Session
from lora_ext.training.state_folders import SavedState
from lora_ext.training.state_saving import StateSaver
from lora_ext.training.step import TrainingStep
from lora_ext.training.text_encoding import prepare_text
from lora_ext.training.validation import Validation, held_out_pictures


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
        network_folders: Sequence[Path] = (),
    ) -> None:
        """`generator` renders samples with the checkpoint as it is; without one there are none.

        `noise` stands in for the noise that the settings ask for, to compare with other programs.
        `network_folders` is where networks are looked for that the settings name, besides the output folder.
        """
        self.checkpoint = checkpoint
        self.config = config
        self.output_dir = output_dir
        self.events = events or Events()
        self.control = control or Control()
        self.pause_place = pause_place
        self.generator = generator
        self.noise = noise
        self.network_folders = (*network_folders, output_dir)

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
            if not is_out_of_memory(error):
                raise
        free_memory()  # outside of the except block: the error's traceback holds the tensors of the step
        raise UserError(advice_for(self.config, self.checkpoint.device))

    def _run(self, started: float) -> TrainingResult:
        checkpoint, config = self.checkpoint, self.config
        check_checkpoint(config, checkpoint)
        encoder, weighted = checkpoint.text_encoders[0], config.captions.weighted_captions
        prepared = prepare_run(config, self.output_dir, lambda caption: encoder.count_tokens(caption, weighted))
        check_class_pictures(prepared.scan, self.generator)
        base = read_base_networks(config.network, self.network_folders)
        state = find_state(config, self.output_dir)
        first = None if state else first_network(config.network, self.network_folders, checkpoint.architecture)
        self._announce(prepared)
        for note in left_out(base, first):
            self.events.message("warning", note)
        prepared = self._with_class_pictures(prepared)
        facts = facts_of(prepared.scan, checkpoint, base, config.loss.masked_loss)
        changes = check_same_run(state, prepared, facts) if state else []
        source = state.network if state else tensors_of(first) if first else None
        like = source if config.network.dim_from_weights else None
        with Session(checkpoint, config, prepared.rates, base, like) as session:
            network = self._network(session, first, state)
            run = self._set_up(session, network, prepared, MetadataOfRun(checkpoint, prepared, base), facts)
            if state:
                self._go_on(run, state, changes)
            TrainingLoop(run, config, self.events, self.control, self.pause_place).train()
        return self._result(run, started)

    def _network(self, session: Session, first: NetworkFile | None, state: SavedState | None) -> Network:
        """The network with the weights that the run begins with: what is made from it may take copies of them."""
        config = self.config
        targets = session.targets()
        self._announce_targets(session, targets)
        network = Network(targets, generator_for(config.learning.seed, "network"), dropout_of(config.network))
        if config.memory.full_bf16:
            network.cast(torch.bfloat16)
        if state:
            network.load_state_tensors(state.network)
        for note in begin_with(network, first) if first else ():
            self.events.message("warning", note)
        return network

    def _set_up(
        self, session: Session, network: Network, prepared: PreparedRun, metadata: MetadataOfRun, facts: dict[str, Any]
    ) -> Run:
        """Everything that the first step needs; the network is attached."""
        checkpoint, config = self.checkpoint, self.config
        dataset = self._cached_dataset(prepared)
        held_out = held_out_pictures(prepared.held_out, checkpoint, config, self.events, self.control)
        prior = prior_prediction(config, prepared.scan, network)
        further = [*(held_out.captions if held_out else ()), *(prior.captions if prior else ())]
        trained = "text_encoder" in network.parameters_by_group()
        conditioning, encode = prepare_text(checkpoint, dataset, config, trained, self.events, self.control, further)
        session.attach(network)
        learning = Learning(network, config, prepared.plan.total_steps)
        step = TrainingStep(
            checkpoint, config, learning.optimizer, encode, self.noise, prior, self._retreat(session),
            learning.takes_found_inf,
        )  # fmt: skip
        run = Run(
            plan=prepared.plan,
            session=session,
            dataset=dataset,
            conditioning=conditioning,
            network=network,
            step=step,
            saver=NetworkSaver(config, self.output_dir, self.events, learning.tensors_for_file, metadata),
            samples=self._samples(prepared, dataset, learning),
            validation=Validation(
                held_out, step.diffusion, network, self.events, self.control, learning.weights_for_use
            ),
            learning=learning,
            facts=facts,
        )
        metadata.validation = run.validation.metadata
        run.states = StateSaver(config, self.output_dir, self.events, run.snapshot, metadata)
        run.parts = {
            "optimizer": learning, "step": run.step, "files": run.saver, "states": run.states,
            "metadata": metadata, "validation": run.validation,
        }  # fmt: skip
        return run

    def _retreat(self, session: Session) -> Retreat | None:
        """What a run does when memory does not suffice for a step, None where it ends then."""
        if self.config.memory.on_out_of_memory != "retreat":
            return None
        return Retreat(self.events, session.checkpoint_gradients)

    def _go_on(self, run: Run, state: SavedState, changes: Sequence[str]) -> None:
        """Begin where a saved state was, and say what has changed since."""
        run.go_on_from(state, self.events)
        self.events.message("info", f"Goes on after step {run.steps} of {run.plan.total_steps}.")
        for change in changes:
            self.events.message("warning", f"Changed since the state was saved: {change}.")

    def _announce(self, prepared: PreparedRun) -> None:
        for line in (*prepared.report.summary(), *prepared.plan.summary()):
            self.events.message("info", line)
        of_base = base_warnings(self.config, prepared.scan, self.checkpoint)
        for line in (*prepared.warnings, *prediction_warnings(self.config, self.checkpoint), *of_base):
            self.events.message("warning", line)
        learning = self.config.learning
        for part, rate in (("unet", learning.unet_lr), ("text_encoder", learning.text_encoder_lr)):
            if part not in prepared.rates and (rate == 0 or (rate is None and learning.learning_rate == 0)):
                self.events.message("warning", f"The {part.replace('_', ' ')} is not trained: its learning rate is 0.")

    def _announce_targets(self, session: Session, targets: Sequence[Target]) -> None:
        self.events.message("info", described(targets))
        if session.selection is not None:
            for note in session.selection.notes:
                self.events.message("info", note)
            for warning in session.selection.warnings:
                self.events.message("warning", warning)

    def _cached_dataset(self, prepared: PreparedRun) -> ImageDataset:
        """The dataset, with the latents that are kept."""
        dataset = ImageDataset(prepared.scan, self.config)
        generator = generator_for(self.config.learning.seed, "latents")
        dataset.cache_latents(self.checkpoint, self.events, self.control, generator)
        self.control.raise_if_stopping()
        return dataset

    def _with_class_pictures(self, prepared: PreparedRun) -> PreparedRun:
        """The run with the class pictures that were missing, drawn by the checkpoint as it is."""
        if self.generator is None:
            return prepared
        with random_states_kept(), torch.no_grad():
            scan = draw_class_pictures(prepared.scan, self.config, self.generator, self.events, self.control)
        return replace(prepared, scan=scan)

    def _samples(self, prepared: PreparedRun, dataset: ImageDataset, learning: Learning) -> SampleDrawer:
        return SampleDrawer(
            self.config, prepared.sample_prompts, dataset.captions[0], learning.network, self.generator, self.events,
            self.control, learning.weights_for_use,
        )  # fmt: skip

    def _result(self, run: Run, started: float) -> TrainingResult:
        ended_early = run.steps < run.plan.total_steps
        stopped = self.control.stopping and ended_early
        note = run.validation.note if ended_early and not stopped else ""
        if note:
            self.events.message("info", f"The run has {note}.")
        return TrainingResult(
            files=run.saver.files,
            steps=run.steps,
            epochs=run.epoch,
            final_loss=mean_finite(run.epoch_losses),
            stopped=stopped,
            cancelled=self.control.cancelled,
            losses=run.losses,
            bad_steps=run.step.bad_steps,
            best_epoch=run.validation.best.epoch if run.validation.best else None,
            note=note,
            seconds=time.perf_counter() - started,
        )
