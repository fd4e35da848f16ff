"""The checkpoint of a paused training: compared with what the WebUI has loaded since, and loaded again on request."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from modules import sd_models, shared

from lora_ext.host.loan import WantedCheckpoint
from lora_ext.protocols import UserError


def bring_back(wanted: WantedCheckpoint) -> None:
    """See to it that this checkpoint is loaded; the caller holds the queue.

    Raises OtherCheckpointError where another one is, and is to stay; UserError where it cannot be loaded.
    """
    if wanted.load and not _is_loaded(wanted):
        _load(wanted)
    info = _loaded_info()
    if info is None:
        wanted.check("no checkpoint", None, "")
    else:
        wanted.check(info.name_for_extra, Path(info.filename), info.sha256 or "")


def _loaded_info() -> Any | None:
    model = shared.sd_model  # loads the chosen checkpoint where none is loaded yet
    return model.sd_checkpoint_info if model is not None else None


def _is_loaded(wanted: WantedCheckpoint) -> bool:
    info = _loaded_info()
    return info is not None and wanted.is_that(Path(info.filename), info.sha256 or "")


def _load(wanted: WantedCheckpoint) -> None:
    """Choose the checkpoint in the settings and load it, as the WebUI does when a person chooses it there.

    The setting's own callback would wait for the queue, which we hold.
    """
    known = list(sd_models.checkpoints_list.values())
    info = next((each for each in known if wanted.is_that(Path(each.filename), each.sha256 or "")), None)
    if info is None:
        raise UserError(
            f"{wanted.name} is not among the WebUI's checkpoints any more ({wanted.path}): put it back, press refresh "
            "beside the checkpoint's name, then resume"
        )
    if shared.opts.set("sd_model_checkpoint", info.title, run_callbacks=False):
        shared.opts.save(shared.config_filename)
    try:
        sd_models.reload_model_weights(info=info)
    except Exception as error:
        raise UserError(f"{wanted.name} could not be loaded ({error}): load it at the top of the page") from error
