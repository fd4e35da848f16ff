"""Noise and loss."""

from __future__ import annotations

from dataclasses import dataclass

from lora_ext.config.fields import setting

LOSS_TYPES = ("l2", "l1", "huber", "smooth_l1")
HUBER_SCHEDULES = ("constant", "exponential", "snr")
TIMESTEP_SAMPLINGS = ("uniform", "logit_normal", "sigmoid", "early", "late")
PREDICTION_TYPES = ("auto", "epsilon", "v_prediction")


@dataclass(frozen=True)
class LossSettings:
    """Noise and loss."""

    min_snr_gamma: float | None = setting(
        5.0, "Min-SNR gamma", "Evens out the weight of noisy and clean steps; 5 is usual, none switches it off.",
        minimum=0.01, maximum=1000,
    )  # fmt: skip
    noise_offset: float = setting(
        0.0, "Noise offset", "Lets very dark and very bright pictures be learned; contested, 0.05 if at all.",
        minimum=0, maximum=1,
    )  # fmt: skip
    noise_offset_random_strength: bool = setting(
        False, "Random noise offset", "Each batch gets another share of the noise offset, from none to all."
    )
    adaptive_noise_scale: float | None = setting(
        None, "Adaptive noise offset", "Adds so much times the latents' mean to the noise offset.", minimum=-10,
        maximum=10,
    )  # fmt: skip
    multires_noise_iterations: int = setting(
        0, "Multires noise", "Levels of coarser noise on top, 6 to 10; 0 switches it off; contested.", minimum=0,
        maximum=64, unit="levels",
    )  # fmt: skip
    multires_noise_discount: float = setting(
        0.3, "Multires discount", "Strength of each coarser level against the one before, 0.1 to 0.8.", minimum=0,
        maximum=1,
    )  # fmt: skip
    ip_noise_gamma: float | None = setting(
        None, "Input perturbation", "Extra noise on the input that is not to be predicted; 0.1 if at all.", minimum=0,
        maximum=1,
    )  # fmt: skip
    ip_noise_gamma_random_strength: bool = setting(
        False, "Random perturbation", "Each batch gets another share of the input perturbation."
    )
    min_timestep: int = setting(
        0, "First timestep", "Trains on timesteps from here on; higher ones are noisier.", minimum=0, maximum=999
    )
    max_timestep: int = setting(1000, "Last timestep", "Trains on timesteps below this.", minimum=1, maximum=1000)
    timestep_sampling: str = setting(
        "uniform", "Timesteps",
        "How often each timestep comes up: all alike; logit_normal favours the middle (sigmoid is its usual form); "
        "early favours the clean ones (detail), late the noisy ones (layout).", choices=TIMESTEP_SAMPLINGS,
        sd_scripts="",
    )  # fmt: skip
    logit_mean: float = setting(
        0.0, "Logit mean", "Of logit_normal: above 0 favours noisy timesteps.", minimum=-10, maximum=10
    )
    logit_std: float = setting(
        1.0, "Logit deviation", "Of logit_normal: smaller is narrower.", minimum=0.01, maximum=10
    )
    prediction_type: str = setting(
        "auto", "Prediction",
        "What the checkpoint predicts; auto takes what was found when it was loaded, which is nearly always right.",
        choices=PREDICTION_TYPES, sd_scripts="v_parameterization",
    )  # fmt: skip
    zero_terminal_snr: bool = setting(
        False, "Zero terminal SNR", "The last timestep is pure noise; for checkpoints made so, with v-prediction."
    )
    loss_type: str = setting(
        "l2", "Loss", "How errors count; huber and smooth_l1 mind outliers less.", choices=LOSS_TYPES
    )
    huber_schedule: str = setting(
        "snr", "Huber schedule", "How huber_c runs over the timesteps: alike, or higher for clean ones.",
        choices=HUBER_SCHEDULES,
    )  # fmt: skip
    huber_c: float = setting(
        0.1, "Huber c", "Where huber losses turn from squares to straight lines.", minimum=1e-6, maximum=10
    )
    huber_scale: float = setting(
        1.0, "Huber scale", "Factor on huber_c; the snr schedule takes none.", minimum=0.001, maximum=1000
    )
    scale_v_pred_loss_like_noise_pred: bool = setting(
        False, "Scale v-loss like noise", "Gives the loss of v-prediction the weights of noise prediction's."
    )
    v_pred_like_loss: float | None = setting(
        None, "v-like loss", "For noise prediction: adds so much of a loss that is weighted as v-prediction's.",
        minimum=0, maximum=100,
    )  # fmt: skip
    debiased_estimation_loss: bool = setting(
        False, "Debiased estimation", "Weighs noisy timesteps up; instead of min-SNR."
    )
    masked_loss: bool = setting(
        False,
        "Masked loss",
        "Learn only where the masks of the mask folder are white; masks from transparency need no switch.",
    )
    masked_loss_normalize: bool = setting(
        True, "Even out masks", "Divide by the mask's area, so that small subjects count as much as large ones.",
        sd_scripts="",
    )  # fmt: skip
    prior_prediction_weight: float = setting(
        0.0, "Prior prediction",
        "Holds the network to what the base predicts without it, with this weight: for regularisation pictures, which "
        "take a third longer then, or where there are none for the training pictures under the class prompt, which "
        "takes twice the time; 0 switches it off.", minimum=0, maximum=100, sd_scripts="",
    )  # fmt: skip
