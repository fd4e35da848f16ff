"""A small host of our own: one checkpoint, prompts with network tags, pictures, and folders."""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from lora_ext import __version__
from lora_ext.apply.active import ActiveNetworks
from lora_ext.apply.schedule import has_schedule, tags_at
from lora_ext.apply.tags import LoraTag, ParsedPrompt, parse_tags
from lora_ext.checkpoint.checkpoint import Checkpoint
from lora_ext.checkpoint.conditioning import encode_prompts
from lora_ext.checkpoint.devices import choose_device
from lora_ext.checkpoint.patches import TRAINING
from lora_ext.grid.png import infotext_chunk
from lora_ext.host.loan import Loan, WantedCheckpoint
from lora_ext.host.standalone.infotext import Infotext, format_infotext
from lora_ext.host.standalone.loader import choose_dtype, load_checkpoint
from lora_ext.host.standalone.sampling import SAMPLERS, Sampler, find_sampler, sample, to_pictures
from lora_ext.networks.block_weights import read_presets
from lora_ext.networks.library import NetworkLibrary
from lora_ext.protocols import (
    Borrow,
    CheckpointInfo,
    Folders,
    GeneratedImage,
    GenerateRequest,
    Progress,
    UserError,
)

if TYPE_CHECKING:
    from PIL import Image

MAX_SEED = 2**32 - 1
MAX_STEPS = 500
MAX_SIDE = 4096
GIGABYTE = 2**30
BLOCK_PRESETS = "lbwpresets.txt"


@contextlib.contextmanager
def _states_kept(checkpoint: Checkpoint) -> Iterator[None]:
    """Put `requires_grad` and the train/eval mode of everything back when the block is left."""
    roots: list[nn.Module] = [checkpoint.unet, checkpoint.vae, *(each.module for each in checkpoint.text_encoders)]
    gradients = [(parameter, parameter.requires_grad) for root in roots for parameter in root.parameters()]
    modes = [(module, module.training) for root in roots for module in root.modules()]
    try:
        yield
    finally:
        for parameter, requires_grad in gradients:
            parameter.requires_grad_(requires_grad)
            parameter.grad = None
        for module, training in modes:
            module.training = training


def _check_request(request: GenerateRequest) -> list[str]:
    """Everything that is out of range, each with what is allowed."""
    problems = []
    for name, side in (("width", request.width), ("height", request.height)):
        if side % 8 or not 8 <= side <= MAX_SIDE:
            problems.append(f"{name} is {side}; allowed: multiples of 8 from 8 to {MAX_SIDE}")
    for name, value, highest in (
        ("steps", request.steps, MAX_STEPS),
        ("batch_size", request.batch_size, 64),
    ):
        if not 1 <= value <= highest:
            problems.append(f"{name} is {value}; allowed: 1 to {highest}")
    if not 1.0 <= request.cfg_scale <= 100.0:
        problems.append(f"cfg_scale is {request.cfg_scale:g}; allowed: 1 to 100")
    if not -1 <= request.seed <= MAX_SEED:
        problems.append(f"seed is {request.seed}; allowed: -1 (any) and 0 to {MAX_SEED}")
    if request.sampler not in SAMPLERS:
        problems.append(f"sampler {request.sampler!r} is unknown; allowed: {', '.join(SAMPLERS)}")
    return problems


class StandaloneHost:
    """A `Host` with a checkpoint of its own; safe to call from several threads, one works at a time."""

    name = "standalone"
    shows_cards = False

    def __init__(self, checkpoint_path: Path, home: Path, device: str = "auto", dtype: str = "auto") -> None:
        """Load the checkpoint; networks, runs and pictures live under `home`. Bad input raises `UserError`.

        `device` and `dtype` are torch's names, or "auto": a GPU in half precision if there is one, else fp32 on a CPU.
        """
        self.home = Path(home)
        models = self.home / "models"
        self._folders = Folders(
            (models / "Lora",), self.home / "runs", self.home / "images", (models / "Stable-diffusion",)
        )
        for folder in (*self._folders.networks, self._folders.runs, self._folders.images):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(f"{folder}: cannot be made ({error.strerror}); choose another home folder.") from error
        self._device = choose_device(device)
        self._dtype = choose_dtype(self._device, dtype)
        self.library = NetworkLibrary(list(self._folders.networks))
        self._lock = threading.RLock()
        self._borrowed = False
        self.load_checkpoint(Path(checkpoint_path))

    def load_checkpoint(self, path: Path) -> None:
        """Load a checkpoint in place of the present one; waits for pictures in the making and while it is borrowed."""
        with self._lock:
            hashes = self.home / "cache" / "sha256.json"
            self.loaded = load_checkpoint(path, self._device, self._dtype, hashes)
            self._ledger = self.loaded.checkpoint.ledger
            self._networks = ActiveNetworks(self.loaded.checkpoint, self._ledger, self.library)

    def checkpoint_info(self) -> CheckpointInfo:
        """The checkpoint with its device and dtype, and the GPU's memory where it is on one."""
        checkpoint = self.loaded.checkpoint
        free = total = None
        if checkpoint.device.type == "cuda":
            free, total = (size / GIGABYTE for size in torch.cuda.mem_get_info(checkpoint.device))
        return CheckpointInfo(
            name=checkpoint.name,
            architecture=checkpoint.architecture,
            prediction_type=checkpoint.prediction_type,
            device=str(checkpoint.device),
            dtype=str(checkpoint.dtype).removeprefix("torch."),
            free_memory_gb=free,
            total_memory_gb=total,
        )

    def samplers(self) -> list[str]:
        """The names of the samplers."""
        return list(SAMPLERS)

    def folders(self) -> Folders:
        """Folders under the home folder."""
        return self._folders

    def network_saved(self, path: Path) -> None:
        """Make sure that a later prompt finds the file: its folder becomes a network folder if it is in none."""
        folder = Path(path).resolve().parent
        if any(folder.is_relative_to(known.resolve()) for known in self._folders.networks):
            return
        self._folders = replace(self._folders, networks=(*self._folders.networks, folder))
        self.library.folders = self._folders.networks

    def loaded_checkpoint(self) -> Path | None:
        """The file of the loaded checkpoint."""
        return self.loaded.checkpoint.path

    def checkpoint_saved(self, path: Path) -> None:
        """There is no list to renew: folders are looked into when they are asked for."""

    def live_network_problem(self) -> str:
        """There is none: every tag is applied here."""
        return ""

    def set_live_network(self, name: str, path: Path | None) -> None:
        """From now on `<lora:name:1>` stands for this file, wherever it lies; None takes the name away."""
        with self._lock:
            self.library.set_live(name, path)

    def borrow(self) -> AbstractContextManager[Borrow]:
        """The checkpoint without any network in it, for one thread alone; waits for pictures in the making."""
        return Loan(self._lend)

    @contextlib.contextmanager
    def _lend(self, wanted: WantedCheckpoint | None) -> Iterator[Checkpoint]:
        with self._lock:
            if wanted is not None:
                self._bring_back(wanted)
            checkpoint = self.loaded.checkpoint
            with self._ledger.exclusive(TRAINING), _states_kept(checkpoint):
                self._borrowed = True
                try:
                    yield checkpoint
                finally:
                    self._borrowed = False
            if checkpoint.device.type == "cuda":
                torch.cuda.empty_cache()

    def _bring_back(self, wanted: WantedCheckpoint) -> None:
        """See to it that the checkpoint of a paused training is the one that is loaded."""
        loaded = self.loaded.checkpoint
        if wanted.load and wanted.path is not None and not wanted.is_that(loaded.path, loaded.sha256):
            self.load_checkpoint(wanted.path)
            loaded = self.loaded.checkpoint
        wanted.check(loaded.name, loaded.path, loaded.sha256)

    def generate(self, request: GenerateRequest, progress: Progress | None = None) -> list[GeneratedImage]:
        """Render pictures with the networks that the prompt names; waits while the checkpoint is borrowed.

        Whoever has borrowed it may render in its own thread: the weights stay as they are and tags are left out.
        """
        problems = _check_request(request)
        if problems:
            raise UserError("; ".join(problems) + ".")
        sampler = find_sampler(request.sampler)
        parsed = parse_tags(request.prompt, self._block_presets())
        first = secrets.randbelow(MAX_SEED - request.batch_size + 1) if request.seed == -1 else request.seed
        seeds = [(first + index) % (MAX_SEED + 1) for index in range(request.batch_size)]
        with self._lock:
            messages = self._activate(parsed)
            hashes = {} if self._borrowed else self._networks.hashes()
            pictures = self._render(request, sampler, parsed, seeds, progress)
        return [
            GeneratedImage(picture, seed, self._infotext(request, sampler, seed, hashes), tuple(messages))
            for picture, seed in zip(pictures, seeds, strict=True)
        ]

    def _activate(self, parsed: ParsedPrompt) -> list[str]:
        """Put exactly the prompt's networks into the weights; what went wrong with which."""
        if not self._borrowed:
            messages = self._networks.activate(parsed.tags)
            embeddings = self._networks.embeddings().items()
            unused = [
                f"{network}: its embedding {name} is left out, as all are here" for name, (network, _) in embeddings
            ]
            return [*parsed.problems, *messages, *unused]
        names = ", ".join(tag.name for tag in parsed.tags)
        ignored = [f"the networks of the prompt ({names}) are left out while a network is in training"] if names else []
        return [*parsed.problems, *ignored]

    def _switching(self, tags: Sequence[LoraTag], progress: Progress | None) -> Progress | None:
        """Put the networks of the first step into the weights, and with each step that is made those of the next."""
        if not has_schedule(tags):
            return progress
        self._networks.activate(tags_at(tags, 0))

        def told(done: int, total: int) -> None:
            self._networks.activate(tags_at(tags, done))
            if progress is not None:
                progress(done, total)

        return told

    def _block_presets(self) -> dict[str, list[str]]:
        """A person's own presets for `lbw=`: lines NAME:1,0,… in a file of the home folder."""
        try:
            return read_presets((self.home / BLOCK_PRESETS).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}

    def _render(
        self,
        request: GenerateRequest,
        sampler: Sampler,
        prompt: ParsedPrompt,
        seeds: list[int],
        progress: Progress | None,
    ) -> list[Image.Image]:
        checkpoint = self.loaded.checkpoint
        both = encode_prompts(checkpoint.text_encoders, [prompt.text, request.negative_prompt], request.clip_skip)
        wanted, unwanted = both[:1], both[1:]
        if checkpoint.architecture == "SDXL" and not request.negative_prompt:
            unwanted = unwanted.zeros()  # SDXL was trained on it for no text, and the WebUI does so
        size = (request.height // 8, request.width // 8)
        if not self._borrowed:
            progress = self._switching(prompt.tags, progress)
        latents = sample(checkpoint, sampler, wanted, unwanted, size, seeds, request.steps, request.cfg_scale, progress)
        if not torch.isfinite(latents).all():
            raise UserError(
                f"the picture came out as NaN or infinity in {checkpoint.dtype}: "
                "use dtype float32, or a lower weight of the networks in the prompt."
            )
        with torch.no_grad():
            return to_pictures(torch.cat([checkpoint.decode_latents(each[None]) for each in latents]))

    def _infotext(self, request: GenerateRequest, sampler: Sampler, seed: int, hashes: dict[str, str]) -> str:
        checkpoint = self.loaded.checkpoint
        entries: dict[str, object | None] = {
            "Steps": request.steps,
            "Sampler": sampler.infotext_name,
            "Schedule type": sampler.schedule_type,
            "CFG scale": float(request.cfg_scale),
            "Seed": seed,
            "Size": f"{request.width}x{request.height}",
            "Model hash": checkpoint.sha256[:10],
            "Model": checkpoint.name.replace(",", "").replace(":", ""),
            "Clip skip": request.clip_skip if request.clip_skip > 1 else None,
            "RNG": "CPU",
            "Lora hashes": ", ".join(f"{name}: {digits}" for name, digits in hashes.items()) or None,
            "Version": f"LoRA Workshop {__version__}",
        }
        parameters = {key: str(value) for key, value in entries.items() if value is not None}
        return format_infotext(Infotext(request.prompt, request.negative_prompt, parameters))

    def save_image(self, image: GeneratedImage, folder: Path | None = None) -> Path:
        """Write a PNG with its infotext into `folder`, the host's own by default; returns its path."""
        return save_image(image, self._folders.images if folder is None else folder)


def save_image(image: GeneratedImage, folder: Path) -> Path:
    """Write a PNG with its infotext as `00000-seed.png`, numbered on from what is there; returns its path."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        heads = [path.name.split("-", 1)[0] for path in folder.glob("*-*.png")]
        number = max((int(head) for head in heads if head.isdecimal()), default=-1) + 1
        while True:
            path = folder / f"{number:05d}-{image.seed}.png"
            try:
                file = path.open("xb")
            except FileExistsError:
                number += 1
                continue
            with file:
                image.image.save(file, "PNG", pnginfo=infotext_chunk(image.infotext))
            return path
    except OSError as error:
        raise UserError(f"{folder}: the picture cannot be written there ({error.strerror or error}).") from error
