"""What the core needs of the program around it, and what it tells that program: hosts, events, control.

Standard library only; every other module may import this one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:  # annotations only: nothing is imported upwards when the program runs
    from PIL import Image

    from lora_ext.checkpoint.checkpoint import Checkpoint

Progress = Callable[[int, int], None]
"""Called as progress(done, total) while something long goes on."""

MessageLevel = Literal["info", "warning", "error"]


class UserError(Exception):
    """Something a person can put right; the message names the value, what is allowed, and the remedy."""


class ConfigError(UserError):
    """All problems that were found in a set of settings, reported together."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        lines = "\n".join(f"  - {problem}" for problem in self.problems)
        count = len(self.problems)
        super().__init__(f"{count} problem{'s' if count != 1 else ''} in the settings:\n{lines}")


class Cancelled(Exception):
    """Raised inside long work after its `Control` was told to stop, where there is nothing to keep."""


class OtherCheckpointError(UserError):
    """A paused run cannot go on: another checkpoint is loaded than `wanted`, the name of its own."""

    def __init__(self, wanted: str, loaded: str) -> None:
        self.wanted = wanted
        super().__init__(f"this run trains on {wanted}, and now {loaded} is loaded: load {wanted} again, then resume")


@dataclass(frozen=True)
class StepReport:
    """One optimizer update. `loss` is the mean over the update's batches; `seconds` is its wall time.

    `bands` are the mean losses of the update's pictures by the timesteps that they were given ("0-250", "250-500",
    "500-750", "750-1000"), without bands that none of them fell into. `gradient_norm` is the length of the gradient
    before it is clipped.
    """

    step: int
    total_steps: int
    epoch: int
    total_epochs: int
    loss: float
    learning_rates: dict[str, float]
    seconds: float
    bands: dict[str, float] = field(default_factory=dict)
    gradient_norm: float | None = None


@dataclass(frozen=True)
class EpochReport:
    """One finished pass over the dataset; `loss` is the mean over its steps.

    Where changes of layers are held to a largest norm, `norms` has how many adapters were scaled down ("keys_scaled"),
    and the average and the longest norm ("average_norm", "maximum_norm").
    """

    epoch: int
    total_epochs: int
    step: int
    loss: float
    norms: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ValidationReport:
    """The loss of the held-out pictures after `step` updates, the mean over the timesteps in `by_timestep`.

    `best_epoch` and `best_loss` are those of the best measurement so far, which `is_best` tells of this one.
    """

    step: int
    epoch: int
    loss: float
    by_timestep: dict[int, float]
    best_epoch: int
    best_loss: float
    is_best: bool


@dataclass(frozen=True)
class SavedNetwork:
    """A network file that has just been written whole."""

    path: Path
    epoch: int
    step: int
    is_last: bool


@dataclass(frozen=True)
class PauseReport:
    """A run that stands still between two steps, with the checkpoint handed back.

    `network` is the file with what is trained so far, and `<lora:live_name:1>` stands for it in prompts meanwhile.
    `problem` says why the run could not go on when it was told to; `missing_checkpoint` names what has to be loaded.
    """

    step: int
    epoch: int
    network: Path
    live_name: str
    problem: str = ""
    missing_checkpoint: str = ""


@dataclass(frozen=True)
class Sample:
    """A picture of the network in training, after `step` updates; `prompt_number` is its prompt's place, from 0."""

    image: GeneratedImage
    prompt: str
    prompt_number: int
    epoch: int
    step: int


class Events:
    """What a run tells the program around it; every method may be overridden, all do nothing here."""

    def phase(self, name: str, done: int, total: int) -> None:
        """A stage before or between steps ("caching latents") has come to `done` of `total`."""

    def run_started(self, total_steps: int, total_epochs: int) -> None:
        """The first step is about to be taken."""

    def step(self, report: StepReport) -> None:
        """An optimizer update was made."""

    def epoch(self, report: EpochReport) -> None:
        """An epoch has ended."""

    def validated(self, report: ValidationReport) -> None:
        """The held-out pictures were measured."""

    def saved(self, saved: SavedNetwork) -> None:
        """A network file was written."""

    def paused(self, report: PauseReport) -> None:
        """The run is about to hand the checkpoint back, or stays paused though it was told to go on."""

    def resumed(self) -> None:
        """The run has the checkpoint again and goes on."""

    def sampled(self, sample: Sample) -> None:
        """A sample picture was drawn."""

    def message(self, level: MessageLevel, text: str) -> None:
        """Something worth reading by a person."""


@dataclass(frozen=True)
class ResumeRequest:
    """A paused run is to go on; with `load_checkpoint` its checkpoint is loaded first where another one is."""

    load_checkpoint: bool = False


class Control:
    """What a person asks of a run while it goes on or is paused; safe to use from any thread."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._cancel = threading.Event()
        self._save = threading.Event()
        self._pause = threading.Event()
        self._resume: ResumeRequest | None = None
        self._asked = threading.Event()
        self._sample = threading.Event()

    def stop(self) -> None:
        """End after the present step and keep what is trained."""
        self._stop.set()
        self._asked.set()

    def cancel(self) -> None:
        """End after the present step and write nothing more."""
        self._cancel.set()
        self._asked.set()

    def save_now(self) -> None:
        """Write the network after the present step and go on."""
        self._save.set()
        self._asked.set()

    def pause(self) -> None:
        """Hand the checkpoint back after the present step, until `resume`."""
        self._resume = None
        self._pause.set()

    def resume(self, load_checkpoint: bool = False) -> None:
        """Go on; a pause that has not begun yet is left out."""
        self._pause.clear()
        self._resume = ResumeRequest(load_checkpoint)
        self._asked.set()

    def sample_now(self) -> None:
        """Draw the samples after the present step and go on."""
        self._sample.set()

    @property
    def stopping(self) -> bool:
        """Whether the run is to end, keeping its work or not."""
        return self._stop.is_set() or self._cancel.is_set()

    @property
    def cancelled(self) -> bool:
        """Whether the run is to end without writing anything more."""
        return self._cancel.is_set()

    def take_save_request(self) -> bool:
        """Whether a save was asked for since the last call."""
        asked = self._save.is_set()
        self._save.clear()
        return asked

    def take_pause_request(self) -> bool:
        """Whether a pause was asked for since the last call."""
        asked = self._pause.is_set()
        self._pause.clear()
        return asked

    def take_resume_request(self) -> ResumeRequest | None:
        """How the run was told to go on since the last call, None where it was not."""
        asked, self._resume = self._resume, None
        return asked

    def wait_for_request(self) -> None:
        """Wait until something is asked of a paused run; may return once for what was asked before."""
        self._asked.wait()
        self._asked.clear()

    def take_sample_request(self) -> bool:
        """Whether samples were asked for since the last call."""
        asked = self._sample.is_set()
        self._sample.clear()
        return asked

    def raise_if_stopping(self) -> None:
        """Raise `Cancelled` when the run is to end; for stages before there is anything to keep."""
        if self.stopping:
            raise Cancelled("stopped on request")


@dataclass(frozen=True)
class GenerateRequest:
    """One call for images. `prompt` may hold `<lora:…>` tags; seeds count up through a batch.

    `width`, `height` in pixels (multiples of 8); `clip_skip` 1 is the encoder's last layer.
    """

    prompt: str
    negative_prompt: str = ""
    width: int = 512
    height: int = 512
    steps: int = 20
    cfg_scale: float = 7.0
    sampler: str = "Euler a"
    seed: int = -1
    batch_size: int = 1
    clip_skip: int = 1


@dataclass(frozen=True)
class GeneratedImage:
    """A picture with the WebUI's infotext and what there is to tell about it (unknown tags, …)."""

    image: Image.Image
    seed: int
    infotext: str
    messages: tuple[str, ...] = ()


class ImageGenerator(Protocol):
    """Renders pictures with whatever is loaded."""

    def generate(self, request: GenerateRequest, progress: Progress | None = None) -> list[GeneratedImage]:
        """Render `request.batch_size` pictures."""
        ...


@dataclass(frozen=True)
class CheckpointInfo:
    """What a status bar shows of the loaded checkpoint.

    `chosen` is what stands in the program's own list of checkpoints, where it has one; it may still be waiting.
    """

    name: str
    architecture: str
    prediction_type: str
    device: str
    dtype: str
    vae: str = "baked"
    free_memory_gb: float | None = None
    total_memory_gb: float | None = None
    chosen: str = ""


@dataclass(frozen=True)
class Folders:
    """Where a host keeps things: networks and checkpoints are written to the first of their folders, read from all."""

    networks: tuple[Path, ...]
    runs: Path
    images: Path
    checkpoints: tuple[Path, ...] = ()


class Borrow(Protocol):
    """Exclusive use of the host's checkpoint, from entering to leaving a `Host.borrow()` block."""

    @property
    def checkpoint(self) -> Checkpoint:
        """The loaded checkpoint, unpatched, frozen, ready to train adapters on.

        After a pause it may be another view: the program may have loaded the same file anew.
        """
        ...

    def suspend(self) -> None:
        """Give the checkpoint back for a while; everything is as it was before it was borrowed."""
        ...

    def resume(self, load_checkpoint: bool = False) -> None:
        """Borrow the same checkpoint again; waits for pictures in the making.

        With `load_checkpoint` it is loaded first where another one is. Raises UserError where it cannot be borrowed
        now (OtherCheckpointError: another one is loaded); nothing is held then.
        """
        ...


class Host(ImageGenerator, Protocol):
    """The program around the core: it owns the checkpoint, renders pictures, and has folders.

    `shows_cards`: it lists networks as cards, with the words and the picture in the files beside them.
    """

    name: str
    shows_cards: bool

    def checkpoint_info(self) -> CheckpointInfo:
        """What is loaded at the moment."""
        ...

    def borrow(self) -> AbstractContextManager[Borrow]:
        """Exclusive use of the checkpoint; everything is as it was when the block is left, however it is left."""
        ...

    def samplers(self) -> list[str]:
        """Names that `GenerateRequest.sampler` takes."""
        ...

    def folders(self) -> Folders:
        """Where networks, runs and pictures live."""
        ...

    def network_saved(self, path: Path) -> None:
        """A network file was written or replaced: it is to be usable at once."""
        ...

    def loaded_checkpoint(self) -> Path | None:
        """The file of the loaded checkpoint; None where none is loaded, or it has none."""
        ...

    def checkpoint_saved(self, path: Path) -> None:
        """A checkpoint's file was written or replaced: it is to be in the program's list."""
        ...

    def set_live_network(self, name: str, path: Path | None) -> None:
        """From now on `<lora:name:1>` stands for this file, wherever it lies; None takes the name away."""
        ...

    def live_network_problem(self) -> str:
        """Why the name of `set_live_network` does nothing in prompts, as far as is known; empty where it does."""
        ...
