"""The WebUI as a `Host`: its loaded checkpoint, its rendering, its folders."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from modules import (
    devices,
    paths_internal,
    sd_models,
    sd_samplers,
    sd_samplers_kdiffusion,
    sd_schedulers,
    sd_vae,
    shared,
)

from lora_ext.checkpoint.checkpoint import Checkpoint
from lora_ext.checkpoint.patches import PatchLedger
from lora_ext.host.loan import Loan, WantedCheckpoint
from lora_ext.host.webui import builtin_lora, settings
from lora_ext.host.webui.borrow import borrowed, queue_held
from lora_ext.host.webui.bring_back import bring_back
from lora_ext.host.webui.checkpoint_view import architecture_of, checkpoint_view, prediction_type_of
from lora_ext.host.webui.text_caches import reset_text_caches
from lora_ext.host.webui.watch import interrupts_watched
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
    from lora_ext.jobs.runner import JobRunner

GIGABYTE = 2**30
_NOT_LOADED = CheckpointInfo("no checkpoint is loaded", "", "", "", "", "")


class WebUIHost:
    """A `Host` around the WebUI's process; safe to call from any thread."""

    name = "the WebUI"
    shows_cards = True

    def __init__(self) -> None:
        self._library = NetworkLibrary(self.folders().networks)
        self._lock = threading.Lock()
        self._ledger = PatchLedger()
        self._patched_model: weakref.ref[Any] | None = None
        self._borrower: int | None = None
        self._runner: JobRunner | None = None
        self._live_problem = ""

    @property
    def library(self) -> NetworkLibrary:
        """The networks in the folders of the moment: the settings may name more of them at any time."""
        self._library.folders = self.folders().networks
        return self._library

    @property
    def ledger(self) -> PatchLedger:
        """The changed weights of the model that is loaded at the moment: another instance, another ledger."""
        model = sd_models.model_data.sd_model
        with self._lock:
            if self._patched_model is None or self._patched_model() is not model:
                self._ledger = PatchLedger()
                self._patched_model = weakref.ref(model) if model is not None else None
            return self._ledger

    def checkpoint(self) -> Checkpoint:
        """A view of the loaded model; raises UserError where none is loaded, or one of a kind that is not supported."""
        return checkpoint_view(self._model())

    def checkpoint_info(self) -> CheckpointInfo:
        """What is loaded at the moment; asking loads nothing and does not wait."""
        model = sd_models.model_data.sd_model
        if model is None:
            return _NOT_LOADED
        weights = next(model.model.diffusion_model.parameters())
        free = total = None
        if devices.device.type == "cuda":
            free, total = (size / GIGABYTE for size in torch.cuda.mem_get_info(devices.device))
        vae = sd_vae.loaded_vae_file
        return CheckpointInfo(
            name=model.sd_checkpoint_info.name_for_extra,
            architecture=architecture_of(model),
            prediction_type=prediction_type_of(model),
            device=str(devices.device),
            dtype=str(weights.dtype).removeprefix("torch."),
            vae=Path(vae).name if vae else "baked",
            free_memory_gb=free,
            total_memory_gb=total,
            chosen=shared.opts.sd_model_checkpoint or "",
        )

    def samplers(self) -> list[str]:
        """The WebUI's samplers, and those that take a schedule with each behind the name, as in "DPM++ 2M Karras"."""
        names = [sampler.name for sampler in sd_samplers.all_samplers]
        schedules = [schedule.label for schedule in sd_schedulers.schedulers[1:]]
        takers = [sampler.name for sampler in sd_samplers_kdiffusion.samplers_data_k_diffusion]
        return names + [f"{name} {schedule}" for name in takers if name in names for schedule in schedules]

    def folders(self) -> Folders:
        """The WebUI's folder for networks, LyCORIS' and those in the settings where there are some, and ours."""
        own = Path(paths_internal.data_path, "lora-workshop")
        lora = getattr(shared.cmd_opts, "lora_dir", None) or Path(paths_internal.models_path, "Lora")
        lyco = getattr(shared.cmd_opts, "lyco_dir_backcompat", None)
        networks = [Path(lora).absolute()]
        if lyco and Path(lyco).is_dir():
            networks.append(Path(lyco).absolute())
        networks += [folder for folder in settings.extra_folders() if folder not in networks]
        checkpoints = [Path(sd_models.model_path), getattr(shared.cmd_opts, "ckpt_dir", None)]
        return Folders(
            tuple(networks),
            (own / "runs").absolute(),
            (own / "images").absolute(),
            tuple(Path(folder).absolute() for folder in checkpoints if folder),
        )

    def network_saved(self, path: Path) -> None:
        """The built-in lists the file; what the WebUI remembers of prompts is forgotten: the name may be an old one."""
        with contextlib.nullcontext() if self._borrower == threading.get_ident() else queue_held():
            builtin_lora.refresh_list()
            reset_text_caches()

    def loaded_checkpoint(self) -> Path | None:
        """The file of the model that is loaded at the moment; asking loads nothing and does not wait."""
        model = sd_models.model_data.sd_model
        return Path(model.sd_checkpoint_info.filename) if model is not None else None

    def checkpoint_saved(self, path: Path) -> None:
        """The WebUI's list of checkpoints is made anew, as its own button does it."""
        sd_models.list_models()

    def set_live_network(self, name: str, path: Path | None) -> None:
        """From now on `<lora:name:1>` stands for this file, wherever it lies; None takes the name away."""
        self.library.set_live(name, path)
        self._live_problem = ""

    def live_network_problem(self) -> str:
        """That tags are left to the built-in, which knows no live network: by the settings, or the last prompt was."""
        return settings.LEFT if settings.left_to_builtin() else self._live_problem

    def note_live_problem(self, problem: str) -> None:
        """What but the settings kept a live network out of the prompt that was activated just now; else empty."""
        self._live_problem = problem

    def watch(self, runner: JobRunner) -> None:
        """The runner that trains on this host: the WebUI's interrupt stops its run."""
        self._runner = runner

    def borrow(self) -> AbstractContextManager[Borrow]:
        """The loaded checkpoint for the calling thread; waits for the WebUI's queue."""
        return Loan(self._lend)

    @contextlib.contextmanager
    def _lend(self, wanted: WantedCheckpoint | None) -> Iterator[Checkpoint]:
        with queue_held():
            if wanted is not None:
                bring_back(wanted)
            model = self._model()
            with borrowed(model, self.ledger, self._end_run) as checkpoint, interrupts_watched(self._runner):
                self._borrower = threading.get_ident()
                try:
                    yield checkpoint
                finally:
                    self._borrower = None

    def generate(self, request: GenerateRequest, progress: Progress | None = None) -> list[GeneratedImage]:
        """Render with the WebUI's own pipeline; waits for its queue, except in the thread that has the checkpoint."""
        from lora_ext.host.webui.generate import render

        if self._borrower == threading.get_ident():
            return render(request, self._model(), progress, in_training=True)
        with queue_held():
            return render(request, self._model(), progress, in_training=False)

    def _model(self) -> Any:
        model = shared.sd_model  # loads the chosen checkpoint where none is loaded yet
        if model is None:
            raise UserError("no checkpoint is loaded: choose one at the top of the page")
        return model

    def _end_run(self) -> None:
        """Tell the run that has the checkpoint to stop and to keep its work."""
        record = self._runner.status().record if self._runner is not None else None
        if self._runner is not None and record is not None and record.active:
            self._runner.stop(record.id)
