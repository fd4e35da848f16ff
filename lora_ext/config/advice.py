"""What is no mistake and usually goes wrong: the guides' warnings, as pure functions of the settings.

Each says what, why, and what to set. What depends on the pictures is in the dataset's report.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from lora_ext.config.algorithms import HAS_ALPHA, trains_text_encoder
from lora_ext.config.learning_rules import learning_advice
from lora_ext.config.network_rules import network_advice
from lora_ext.config.without_effect import without_effect

if TYPE_CHECKING:
    from lora_ext.config.train_config import TrainConfig

HIGHEST_USEFUL_RANK = 128
LEAST_ADAPTIVE_RATE = 0.1
HIGHEST_LION_RATE = 5e-5
FEWEST_STEPS_BETWEEN_PICTURES = 50
_CONSTANT = ("constant", "constant_with_warmup")


def advice(config: TrainConfig) -> list[str]:
    """Every warning that the settings alone give reason for."""
    checks = (
        _network, network_advice, _rates, _optimizer, learning_advice, _noise, _captions, _pictures, _speed,
        without_effect,
    )  # fmt: skip
    return [text for check in checks for text in check(config)]


def trained_rates(config: TrainConfig) -> dict[str, float]:
    """{setting: rate} of the parts that are trained, under the name of the setting that holds it."""
    learning, network = config.learning, config.network
    rates = {}
    for name, left_out in (
        ("unet_lr", network.network_train_text_encoder_only),
        ("text_encoder_lr", not trains_text_encoder(network)),
    ):
        own = getattr(learning, name)
        rate = learning.learning_rate if own is None else own
        if rate and not left_out:
            rates[name] = rate
    return rates


def _network(config: TrainConfig) -> Iterator[str]:
    network = config.network
    for rank_name, alpha_name in (("network_dim", "network_alpha"), ("conv_dim", "conv_alpha")):
        rank, alpha = getattr(network, rank_name), getattr(network, alpha_name)
        if rank and alpha and alpha > rank and network.network_algorithm in HAS_ALPHA:
            yield (
                f"{alpha_name} = {alpha:g} is above {rank_name} = {rank}: a step counts {alpha / rank:.3g} times, as "
                f"with a higher learning rate, which burns quickly; set {alpha_name} to {rank / 2:g}"
            )
    if network.network_dim > HIGHEST_USEFUL_RANK and network.network_algorithm in HAS_ALPHA - {"lokr"}:
        yield (
            f"network_dim = {network.network_dim}: above {HIGHEST_USEFUL_RANK} the file grows and the pictures do not "
            f"get better; set network_dim to {HIGHEST_USEFUL_RANK} or less"
        )
    if config.memory.mixed_precision == "fp16" and 0 < network.network_alpha <= 1 < network.network_dim:
        yield (
            f"mixed_precision = fp16 with network_alpha = {network.network_alpha:g}: small weights flush to zero; set "
            f"network_alpha to {network.network_dim / 2:g}, or mixed_precision to bf16 (cards from RTX 3000 on)"
        )


def _rates(config: TrainConfig) -> Iterator[str]:
    rates = trained_rates(config)
    unet, text = rates.get("unet_lr"), rates.get("text_encoder_lr")
    if unet and text and text > unet:
        yield (
            f"text_encoder_lr = {text:g} is above the U-Net's rate of {unet:g}: the text encoder burns first, and then "
            f"only the pictures' own tags can be prompted; set text_encoder_lr to {unet / 2:g}"
        )
    if _is_adaptive(config):
        small = {name: rate for name, rate in rates.items() if rate < LEAST_ADAPTIVE_RATE}
        if small:
            named = ", ".join(f"{name} = {rate:g}" for name, rate in small.items())
            yield (
                f"{config.learning.optimizer_type} finds the rate by itself and takes learning rates as factors: "
                f"{named} leaves next to nothing; set learning_rate to 1 and no other rates"
            )


def _optimizer(config: TrainConfig) -> Iterator[str]:
    learning, network = config.learning, config.network
    name = learning.optimizer_type.rpartition(".")[2].lower()
    if name in ("adamw", "adamw8bit", "pagedadamw", "pagedadamw8bit", "pagedadamw32bit") and (
        learning.lr_scheduler in _CONSTANT
    ):
        yield (
            f"lr_scheduler = {learning.lr_scheduler} with {learning.optimizer_type}, which wants a falling rate: the "
            "last epochs jump about; set lr_scheduler to cosine"
        )
    if name.startswith("dadapt") and network.network_alpha and network.network_alpha < network.network_dim / 2:
        yield (
            f"{learning.optimizer_type} with network_alpha = {network.network_alpha:g} at rank {network.network_dim}: "
            f"it may find too high a rate; set network_alpha to {network.network_dim / 2:g} or more"
        )
    if name in ("dadaptadam", "dadaptation", "dadaptadampreprint", "prodigy") and (
        "decouple" not in learning.optimizer_args
    ):
        more = " d_coef=2 use_bias_correction=True safeguard_warmup=True" if name == "prodigy" else " betas=0.9,0.99"
        yield (
            f"{learning.optimizer_type} without decouple=True does not work well: set optimizer_args to "
            f'"decouple=True weight_decay=0.01{more}"'
        )
    if name in ("lion", "lion8bit", "pagedlion8bit"):
        high = {name: rate for name, rate in trained_rates(config).items() if rate > HIGHEST_LION_RATE}
        if high:
            named = ", ".join(f"{name} = {rate:g}" for name, rate in high.items())
            yield (
                f"{learning.optimizer_type} wants rates 10 to 15 times below AdamW's, and {named}: "
                "set them between 2e-6 and 1e-5"
            )


def _is_adaptive(config: TrainConfig) -> bool:
    """Whether the optimizer finds the rate by itself (D-Adaptation, Prodigy), and rates are factors on it."""
    name = config.learning.optimizer_type.rpartition(".")[2].lower()
    return name.startswith(("dadapt", "prodigy"))


def _noise(config: TrainConfig) -> Iterator[str]:
    loss = config.loss
    if loss.noise_offset:
        yield (
            f"noise_offset = {loss.noise_offset:g} stacks badly with other networks that were trained so, and guides "
            "disagree about it: set it to 0 unless very dark or bright pictures are the point"
        )
    if loss.multires_noise_iterations:
        yield (
            f"multires_noise_iterations = {loss.multires_noise_iterations}: guides disagree about multires noise; set "
            "it to 0 unless you have compared"
        )
    if loss.noise_offset and loss.multires_noise_iterations:
        yield "noise_offset and multires noise do the same in two ways: set noise_offset to 0"
    if loss.min_snr_gamma is not None and loss.debiased_estimation_loss:
        yield (
            f"debiased_estimation_loss and min_snr_gamma = {loss.min_snr_gamma:g} weigh the steps one on top of the "
            "other: set min_snr_gamma to none, or switch debiased_estimation_loss off"
        )
    if loss.zero_terminal_snr and loss.prediction_type == "epsilon":
        yield (
            "zero_terminal_snr with noise prediction: at the last timestep there is nothing left to predict from; it "
            "is for checkpoints with v-prediction that were made so, switch it off otherwise"
        )


def _captions(config: TrainConfig) -> Iterator[str]:
    captions = config.captions
    if captions.caption_dropout_rate == 1 or captions.caption_dropout_every_n_epochs == 1:
        yield "every caption is left out each time, so that no word is learned: lower caption_dropout_rate"
    if captions.keep_tokens and not _looks_at_single_tags(config):
        yield (
            f"keep_tokens = {captions.keep_tokens} has no effect, because the tags stay in their order: switch "
            "shuffle_caption on, or set keep_tokens to 0"
        )
    if config.memory.caption_variants and "text_encoder_lr" in trained_rates(config):
        yield (
            f"caption_variants = {config.memory.caption_variants} has no effect, because the text encoder is trained "
            "and encodes captions anew each time: switch network_train_unet_only on, or set caption_variants to 0"
        )


def _looks_at_single_tags(config: TrainConfig) -> bool:
    captions = config.captions
    return bool(
        captions.shuffle_caption
        or captions.caption_tag_dropout_rate
        or captions.token_warmup_step
        or config.dataset.dataset_config.strip()
    )


def _pictures(config: TrainConfig) -> Iterator[str]:
    dataset = config.dataset
    if dataset.flip_aug:
        yield (
            "flip_aug is on: a parting, a scar, text or a sword in one hand is learned on both sides; switch it off "
            "where the sides of the subject differ"
        )
    if dataset.reg_data_dir.strip():
        yield (
            "regularisation pictures double the time, and the guides advise against them unless you know why: leave "
            "reg_data_dir empty if you do not"
        )
    if dataset.conditioning_data_dir.strip() and not config.loss.masked_loss:
        yield "conditioning_data_dir is given and masked_loss is off: the masks have no effect; switch masked_loss on"


def _speed(config: TrainConfig) -> Iterator[str]:
    memory, dataset, saving, samples = config.memory, config.dataset, config.saving, config.samples
    changing = [name for name in ("random_crop", "color_aug") if getattr(dataset, name)]
    changing += ["face_crop_aug_range"] if dataset.face_crop_aug_range.strip() else []
    keeps = memory.cache_latents or memory.cache_latents_to_disk
    if changing and keeps:
        yield (
            f"{' and '.join(changing)} change the picture each time, so that latents are not kept: every step encodes "
            f"its pictures anew, which is slower; leave {' and '.join(changing)} off if time matters"
        )
    elif not changing and not keeps:
        yield (
            "cache_latents is off: every step encodes its pictures anew, which is slower and rarely worth it; "
            "switch cache_latents on"
        )
    for name, steps in (
        ("save_every_n_steps", saving.save_every_n_steps),
        ("sample_every_n_steps", samples.sample_every_n_steps if samples.sample_every_n_epochs is None else None),
    ):
        if steps is not None and steps < FEWEST_STEPS_BETWEEN_PICTURES:
            yield (
                f"{name} = {steps}: training stands still while files are written and samples are drawn; set {name} "
                f"to {FEWEST_STEPS_BETWEEN_PICTURES} or more"
            )
