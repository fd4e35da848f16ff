"""Values of noise, loss and validation that fight each other."""

from __future__ import annotations

from collections.abc import Iterable

from lora_ext.config.groups import DatasetSettings, LossSettings, SampleSettings


def loss_contradictions(loss: LossSettings) -> Iterable[tuple[tuple[str, ...], str]]:
    """Settings of noise and loss that exclude each other: (names involved, what is wrong and what to set)."""
    if loss.min_timestep >= loss.max_timestep:
        yield (
            ("min_timestep", "max_timestep"),
            (
                f"min_timestep = {loss.min_timestep} is not below max_timestep = {loss.max_timestep}, which leaves no "
                "timestep to train: lower the former or raise the latter"
            ),
        )
    if loss.adaptive_noise_scale is not None and not loss.noise_offset:
        yield (
            ("adaptive_noise_scale", "noise_offset"),
            (
                f"adaptive_noise_scale = {loss.adaptive_noise_scale:g} changes a noise offset, and there is none: "
                "give noise_offset (0.05, say), or set adaptive_noise_scale to none"
            ),
        )
    if loss.scale_v_pred_loss_like_noise_pred and loss.prediction_type == "epsilon":
        yield (
            ("scale_v_pred_loss_like_noise_pred", "prediction_type"),
            (
                "scale_v_pred_loss_like_noise_pred is for v-prediction, and prediction_type is epsilon: "
                "switch the former off"
            ),
        )
    if loss.v_pred_like_loss and loss.prediction_type == "v_prediction":
        yield (
            ("v_pred_like_loss", "prediction_type"),
            "v_pred_like_loss is for noise prediction, and prediction_type is v_prediction: set the former to none",
        )


def validation_contradictions(
    dataset: DatasetSettings, samples: SampleSettings
) -> Iterable[tuple[tuple[str, ...], str]]:
    """An early stop that has nothing to go by: (names involved, what is wrong and what to set).

    A dataset file may hold pictures out too.
    """
    held_out = samples.validation_split or samples.validation_data_dir.strip() or dataset.dataset_config.strip()
    if samples.early_stopping_patience is not None and not held_out:
        yield (
            ("early_stopping_patience", "validation_split", "validation_data_dir"),
            (
                f"early_stopping_patience = {samples.early_stopping_patience} goes by the validation, and no pictures "
                "are held out for one: set validation_split (0.1, say) or validation_data_dir"
            ),
        )
