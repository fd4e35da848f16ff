"""How captions reach the text encoder."""

from __future__ import annotations

from dataclasses import dataclass

from lora_ext.config.fields import setting

TEXT_CHUNKINGS = ("webui", "sd-scripts")


@dataclass(frozen=True)
class CaptionSettings:
    """How captions reach the text encoder."""

    shuffle_caption: bool = setting(
        False, "Shuffle tags", "Bring the comma-separated tags into a new order each time a picture comes up."
    )
    keep_tokens: int = setting(
        0, "Keep first tags", "So many tags at the front stay where they are; 1 keeps a trigger word in front.",
        minimum=0, maximum=255,
    )  # fmt: skip
    keep_tokens_separator: str = setting(
        "", "Keep separator", "What stands before it in a caption stays in front, what follows a second one stays last."
    )
    caption_separator: str = setting(",", "Tag separator", "What stands between the tags of a caption.")
    secondary_separator: str = setting(
        "", "Inner separator", "Holds tags together while they are shuffled; becomes the tag separator afterwards."
    )
    caption_prefix: str = setting("", "Prefix", "Put before every caption.")
    caption_suffix: str = setting("", "Suffix", "Put after every caption.")
    caption_dropout_rate: float = setting(
        0.0, "Drop captions", "Share of the times that a picture comes up without its caption.", minimum=0, maximum=1
    )
    caption_dropout_every_n_epochs: int = setting(
        0, "Drop every", "Every so many epochs all captions are left out; 0 never.", minimum=0, maximum=100000,
        unit="epochs",
    )  # fmt: skip
    caption_tag_dropout_rate: float = setting(
        0.0, "Drop tags", "Share of the tags that are left out each time; kept ones stay.", minimum=0, maximum=1
    )
    token_warmup_min: int = setting(
        1, "Tags at first", "So many tags of a caption are used at the first step of the tag warmup.", minimum=1,
        maximum=1000, unit="tags",
    )  # fmt: skip
    token_warmup_step: float = setting(
        0.0, "Tag warmup", "Steps until all tags are used; below 1 it is a share of all steps, 0 switches it off.",
        minimum=0, unit="steps",
    )  # fmt: skip
    enable_wildcard: bool = setting(
        False, "Wildcards", "A caption's lines and {a|b} alternatives are chosen from at random each time."
    )
    weighted_captions: bool = setting(
        False, "Weighted captions", "(word:1.2) weighs a word in captions as it does in prompts."
    )
    max_token_length: int = setting(
        225, "Longest caption", "Words beyond so many tokens are cut off.", choices=(75, 150, 225), unit="tokens"
    )
    caption_chunks: str = setting(
        "webui", "Long captions",
        "webui feeds chunks of 77 tokens, as the WebUI does with prompts; sd-scripts joins them to one text.",
        choices=TEXT_CHUNKINGS, sd_scripts="",
    )  # fmt: skip
    clip_skip: int = setting(
        1, "Clip skip",
        "1 takes the text encoder's last layer; 2, the one before it, suits anime bases; SDXL has its own.",
        minimum=1, maximum=12,
    )  # fmt: skip
