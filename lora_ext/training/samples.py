"""Pictures of the network while it is trained, rendered by the host between steps, with the adapters attached."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
from torch import nn

from lora_ext.config.resolution import resolution_of
from lora_ext.config.sample_prompts import (
    FILEWORDS,
    SamplePrompt,
    parse_prompts_file,
    parse_sample_prompts,
    prompts_file,
    sampler_name,
)
from lora_ext.config.train_config import TrainConfig
from lora_ext.protocols import (
    Cancelled,
    ConfigError,
    Control,
    Events,
    GenerateRequest,
    ImageGenerator,
    Sample,
    UserError,
)
from lora_ext.training.modes import evaluating
from lora_ext.training.random_states import random_states_kept

_PHASE = "drawing samples"
_SHOWN_NAMES = 40


def read_sample_prompts(config: TrainConfig) -> list[SamplePrompt]:
    """The prompts of the settings or of the file that they name; UserError with every line that is wrong."""
    text = config.samples.sample_prompts
    path = prompts_file(text)
    if path is not None:
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"sample_prompts = {path}: the file cannot be read ({error}); give a text file in UTF-8, or the prompts"
            ) from error
    prompts, problems = parse_prompts_file(text, path.suffix) if path is not None else parse_sample_prompts(text)
    if problems:
        raise ConfigError(problems)
    return prompts


def check_samplers(
    config: TrainConfig, prompts: Sequence[SamplePrompt], known: Sequence[str], class_pictures: int = 0
) -> None:
    """Raise ConfigError for every sampler that the host does not have, where samples or class pictures are drawn."""
    if not prompts and not draws_by_itself(config) and not class_pictures:
        return
    named = [("sample_sampler", config.samples.sample_sampler)]
    named += [("sample_prompts: --ss", prompt.sampler) for prompt in prompts if prompt.sampler]
    more = f" … ({len(known) - _SHOWN_NAMES} more)" if len(known) > _SHOWN_NAMES else ""
    there = ", ".join(known[:_SHOWN_NAMES]) + more
    problems = [f"{name} = {each!r}: allowed are {there}" for name, each in named if sampler_name(each) not in known]
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))


def draws_by_itself(config: TrainConfig) -> bool:
    """Whether samples are drawn without being asked for during the run."""
    samples = config.samples
    return bool(samples.sample_every_n_epochs or samples.sample_every_n_steps or samples.sample_at_first)


def sample_request(prompt: SamplePrompt, config: TrainConfig, caption: str = "") -> GenerateRequest:
    """The picture of a prompt; what it leaves open is the run's: resolution, seed, sampler, clip skip.

    `caption` stands where the prompt says [filewords].
    """
    width, height = resolution_of(config.dataset.resolution) or (512, 512)
    return GenerateRequest(
        prompt=prompt.prompt.replace(FILEWORDS, caption),
        negative_prompt=prompt.negative_prompt,
        width=prompt.width or width,
        height=prompt.height or height,
        steps=prompt.steps,
        cfg_scale=prompt.cfg_scale,
        sampler=sampler_name(prompt.sampler or config.samples.sample_sampler),
        seed=config.learning.seed if prompt.seed is None else prompt.seed,
        clip_skip=config.captions.clip_skip,
    )


class SampleDrawer:
    """Draws the samples of a run when they are due or asked for; what goes wrong is told and never ends the run."""

    def __init__(
        self,
        config: TrainConfig,
        prompts: Sequence[SamplePrompt],
        first_caption: str,
        network: nn.Module,
        generator: ImageGenerator | None,
        events: Events,
        control: Control,
        weights_for_use: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """`weights_for_use` gives the context in which the network has the weights that its files take."""
        self.config = config
        self.events = events
        self.control = control
        self._prompts = list(prompts)
        self._first_caption = first_caption
        self._network = network
        self._generator = generator
        self._weights_for_use = weights_for_use
        self._told: set[str] = set()

    def before_first_step(self) -> None:
        """Draw where that is wanted before anything is trained."""
        if self.config.samples.sample_at_first:
            self._draw(0, 0)

    def draws_after(self, step: int) -> bool:
        """Whether the step is one of those wanted, without being asked; epochs win, as in sd-scripts."""
        every = self.config.samples.sample_every_n_steps
        return self.config.samples.sample_every_n_epochs is None and every is not None and step % every == 0

    def after_step(self, epoch: int, step: int) -> None:
        """Draw where the step is one of those wanted, or somebody has asked."""
        if self.control.take_sample_request() or self.draws_after(step):
            self._draw(epoch, step)

    def after_epoch(self, epoch: int, step: int) -> None:
        """Draw where the epoch is one of those wanted."""
        if self._is_epoch(epoch):
            self._draw(epoch, step)

    def after_last_step(self, epoch: int, step: int) -> None:
        """Draw at the end of a whole run, where either of both is wanted or somebody has asked."""
        if self.control.take_sample_request() or self.draws_after(step) or self._is_epoch(epoch):
            self._draw(epoch, step)

    def _is_epoch(self, epoch: int) -> bool:
        every = self.config.samples.sample_every_n_epochs
        return every is not None and epoch % every == 0

    def _draw(self, epoch: int, step: int) -> None:
        if self._generator is None:
            self.events.message("warning", "No samples are drawn: this program renders no pictures while it trains.")
            return
        if not self._prompts:
            self._prompts = [SamplePrompt(self._first_caption)]
            self.events.message(
                "info", f"There are no sample prompts: the first caption is drawn, “{self._first_caption}”."
            )
        total = len(self._prompts)
        for number, prompt in enumerate(self._prompts):
            self.events.phase(_PHASE, number, total)
            try:
                self._draw_one(self._generator, prompt, number, epoch, step)
            except Cancelled:
                return
            except Exception as error:  # the run is worth more than a picture of it
                reason = str(error) or type(error).__name__
                self.events.message("warning", f"The sample “{prompt.prompt}” of step {step} was not drawn: {reason}")
        self.events.phase(_PHASE, total, total)

    def _draw_one(self, generator: ImageGenerator, prompt: SamplePrompt, number: int, epoch: int, step: int) -> None:
        self._end_if_stopping()
        request = sample_request(prompt, self.config, self._first_caption)
        with random_states_kept(), torch.no_grad(), self._weights_for_use(), evaluating(self._network):
            (image,) = generator.generate(request, self._end_if_stopping)
        self._end_if_stopping()  # the host may have given up in the middle
        for text in image.messages:
            if text not in self._told:
                self.events.message("warning", f"Samples: {text}")
        self._told.update(image.messages)
        name = self.config.saving.output_name
        infotext = f"{image.infotext}, Network in training: {name}, Network epoch: {epoch}, Network step: {step}"
        self.events.sampled(Sample(replace(image, infotext=infotext), request.prompt, number, epoch, step))

    def _end_if_stopping(self, done: int = 0, total: int = 0) -> None:
        """Leave the samples where the run is to end; called between the steps of a picture too."""
        self.control.raise_if_stopping()
