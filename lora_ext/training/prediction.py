"""What the checkpoint is taken to predict, and the noise schedule that a run goes by."""

from __future__ import annotations

from collections.abc import Iterator

from lora_ext.checkpoint.checkpoint import Checkpoint, PredictionType
from lora_ext.checkpoint.schedule import NoiseSchedule
from lora_ext.config.train_config import TrainConfig
from lora_ext.protocols import UserError

_WORDS = {"epsilon": "noise", "v_prediction": "velocity"}


def prediction_type_of(config: TrainConfig, checkpoint: Checkpoint) -> PredictionType:
    """What the run takes the checkpoint to predict: what the settings say, or what was found when it was loaded."""
    if config.loss.prediction_type == "auto":
        return checkpoint.prediction_type
    return "v_prediction" if config.loss.prediction_type == "v_prediction" else "epsilon"


def schedule_of(config: TrainConfig, checkpoint: Checkpoint) -> NoiseSchedule:
    """The run's noise schedule: the checkpoint's, rescaled where zero terminal SNR is wanted; SNRs come from it too."""
    schedule = checkpoint.schedule
    return schedule.with_zero_terminal_snr() if config.loss.zero_terminal_snr else schedule


def check_prediction(config: TrainConfig, checkpoint: Checkpoint) -> None:
    """Raise UserError where the loss asks for another kind of prediction than the run goes by."""
    kind = prediction_type_of(config, checkpoint)
    if config.loss.scale_v_pred_loss_like_noise_pred and kind == "epsilon":
        raise UserError(
            f"scale_v_pred_loss_like_noise_pred is for checkpoints that predict the velocity, and {checkpoint.name} "
            "predicts the noise: switch it off, or set prediction_type = v_prediction if that is wrong"
        )
    if config.loss.v_pred_like_loss and kind == "v_prediction":
        raise UserError(
            f"v_pred_like_loss is for checkpoints that predict the noise, and {checkpoint.name} predicts the velocity: "
            "set it to none, or set prediction_type = epsilon if that is wrong"
        )


def prediction_warnings(config: TrainConfig, checkpoint: Checkpoint) -> Iterator[str]:
    """What a person should know of settings that do not go with the checkpoint."""
    kind, found = prediction_type_of(config, checkpoint), checkpoint.prediction_type
    if kind != found:
        yield (
            f"prediction_type = {kind}, but {checkpoint.name} was found to predict the {_WORDS[found]}: it is trained "
            f"as if it predicted the {_WORDS[kind]}, and drawn as what it was found to be; auto goes by what was found"
        )
    if config.loss.zero_terminal_snr and kind == "epsilon":
        yield (
            "zero_terminal_snr with a checkpoint that predicts the noise: nothing is learned from its last timesteps, "
            "which are noise alone; it is meant for checkpoints with v-prediction"
        )
